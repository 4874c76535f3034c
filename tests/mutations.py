"""Mutants of the JSON files of a model, as plain data: drawn by Hypothesis, printed, read back and applied."""

import ast
import copy
import inspect
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from hypothesis import strategies as st

Change = list[Any]
"""[file, operation, path or paths, value]; paths are lists of keys and positions."""
Mutant = dict[str, Any]
"""`base`, the name of the folder that is changed, and `changes`, a list of `Change`."""

_LONG = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a": ' * 100_000 + "1" + "}" * 100_000,
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "1000 numbers": json.dumps(list(range(1000))),
    "1000 lists": json.dumps([[1]] * 1000),
    "long": json.dumps("x" * 100_000),
    "long lines": json.dumps("line\n" * 20_000),
    "many keys": json.dumps({f"key{i}": i for i in range(1000)}),
}
"""Name -> JSON too long to print."""
_HOSTILE = [
    *(None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 1e-320, 1e308, 10**9, 2**31, 2**63, 2**64, -(10**30)),
    *(math.nan, math.inf, -math.inf),
    *("", "a", "1", "None", "nul\0nul", "\ud800", "a\nb", "\x1b[31m", "../../etc/passwd", "/dev/zero", "%s{}", "é😀"),
    *([], [[]], {}, [None], [1, 2], [[1], [2]], {"a": {"b": [1, {"c": None}]}}, [{}], [[[]]]),
    *(f"@@{name}@@" for name in _LONG),
]
_PLAUSIBLE = [
    *("UNet2DConditionModel", "FlaxUNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer"),
    *("DDIMScheduler", "FlaxPNDMScheduler", "EulerDiscreteScheduler", "T5Tokenizer", "PreTrainedTokenizerFast"),
    *("F32", "F16", "BF16", "F64", "F8_E4M3", "F4", "U8", "BOOL", "C64", "<|endoftext|>", "!"),
    *(4, 8, 16, 32, 64, 77, 128, 512, 600, 1000, 1024, 4096, 0.5, 1e-5),
    *([32, 64], [32, 32], [2, 2], [1, 2], [32, 64, 64], [8] * 8, [[1, 1], [1, 1]], [True, False]),
]
VALUES = _HOSTILE + _PLAUSIBLE
_TEXTS = {
    "empty": lambda data: b"",
    "null": lambda data: b"null",
    "list": lambda data: b"[" + data + b"]",
    "number": lambda data: b"1e400",
    "string": lambda data: b'"text"',
    "deep": lambda data: _LONG["deep list"].encode(),
    "half": lambda data: data[: len(data) // 2],
    "bad byte": lambda data: data[: len(data) // 2] + b"\xff" + data[len(data) // 2 :],
    "cut letter": lambda data: data.replace(b'"', b'"\xc3', 1),
    "nul": lambda data: data.replace(b":", b":\0", 1),
    "utf-16": lambda data: data.decode(errors="ignore").encode("utf-16"),
    "byte-order mark": lambda data: b"\xef\xbb\xbf" + data,
    "twice": lambda data: data + data,
    "git lfs": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
"""Operations on a whole file."""
_SIZES = (-(2**40), -100, -8, -1, 0, 1, 8, 100, 2**20, 2**40, 2**62)
_FACTORS = (-1, 2, 3, 7, 1000, 10**6, 10**12, 0.5)
_KEY = re.compile("[a-z_]+")
_OFTEN = 8
"""How much oftener a file is changed whose keys are known."""
_LENGTHS = (0, 1, -1, 2, 8, 1000)


def keys_read(*modules: ModuleType) -> list[str]:
    """Every text in the readers' sources that may be a key, or a value that they know."""
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+", node.value):
                found.add(node.value)
    return sorted(found)


@st.composite
def mutants(draw: st.DrawFn, bases: Mapping[str, Mapping[str, bytes]], known: Mapping[str, Collection[str]]) -> Mutant:
    """Mutants of one to four changes.

    Args:
        bases: name -> path of a JSON or safetensors file in this folder -> its bytes.
        known: the same path -> keys that its reader knows, besides those in the file.
    """
    base = draw(st.sampled_from([name for name in bases for _ in range(_OFTEN if len(bases[name]) > 4 else 1)]))
    changes: list[Change] = []
    often = [name for name in sorted(bases[base]) for _ in range(1 + _OFTEN * (name in known))]
    files = {name: header_of(data) if name.endswith(".safetensors") else data for name, data in bases[base].items()}
    for _ in range(draw(st.sampled_from((1, 1, 1, 1, 2, 2, 3, 4)))):
        file = draw(st.sampled_from(often))
        earlier = [change for change in changes if change[0] == file]
        if any(change[1] == "text" for change in earlier):
            continue
        tree = json.loads(files[file])
        for change in earlier:
            _change(tree, *change[1:])
        changes.append([file, *draw(_changes(tree, list(known.get(file, ())), file.endswith(".safetensors")))])
    return {"base": base, "changes": changes}


@st.composite
def _changes(draw: st.DrawFn, tree: dict[str, Any], known: list[str], weights: bool) -> Change:
    """One change of a file that holds `tree`, without the file's name."""
    # Those of values first and most often.
    operations = ["set"] * 8 + ["drop", "rename", "swap", "copy", "scale", "stretch", "wrap", "unwrap", "again", "text"]
    operation = draw(st.sampled_from(operations + ["length", "data"] * weights))
    if operation == "text":
        return ["text", None, draw(st.sampled_from(sorted(_TEXTS)))]
    if operation in ("length", "data"):
        return [operation, None, draw(st.sampled_from(_SIZES))]
    path = draw(_paths(tree, known))
    if operation in ("swap", "copy"):
        return [operation, path, draw(_paths(tree, []))]
    values: dict[str, Sequence[Any]] = {"set": [*VALUES, *known], "again": [*VALUES, *known], "rename": known or [""]}
    values |= {"scale": _FACTORS, "stretch": _LENGTHS}
    return [operation, path, draw(st.sampled_from(values.get(operation, [None])))]


@st.composite
def _paths(draw: st.DrawFn, tree: Any, known: list[str]) -> list[Any]:
    """A path in the tree; known keys that a settings object lacks are as likely as those that it has."""
    path: list[Any] = []
    while isinstance(tree, (dict, list)):
        settings = isinstance(tree, dict) and (not path or str(path[-1]).endswith("_config"))
        inside = list(tree) if isinstance(tree, dict) else list(range(min(len(tree), 1000)))
        keys = list(dict.fromkeys([*inside, *(filter(_KEY.fullmatch, known) if settings else ())]))
        if not keys or (path and draw(st.booleans())):
            break
        path.append(draw(st.sampled_from(keys)))
        if isinstance(tree, dict) and path[-1] not in tree:
            break
        tree = tree[path[-1]]
    return path or [""]


def header_of(data: bytes) -> bytes:
    """The JSON of a safetensors file."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def mutated(files: Mapping[str, bytes], mutant: Mutant) -> dict[str, bytes]:
    """The changed files of a mutant's base."""
    changed = {}
    for name in dict.fromkeys(change[0] for change in mutant["changes"]):
        changes = [change[1:] for change in mutant["changes"] if change[0] == name]
        weights = name.endswith(".safetensors")
        tree = json.loads(header_of(files[name]) if weights else files[name])
        for change in changes:
            _change(tree, *change)
        text = re.sub('"@@(.*?)@@"', lambda found: _LONG[found[1]], json.dumps(tree))
        for operation, path, value in changes:
            if operation == "again":
                text = f"{text[:-1]}, {json.dumps(path[0])}: {json.dumps(value)}}}"
        data = re.sub('"@@(.*?)@@"', lambda found: _LONG[found[1]], text).encode()
        for operation, _, value in changes:
            data = _TEXTS[value](data) if operation == "text" else data
        changed[name] = _weights(files[name], data, changes) if weights else data
    return changed


def _weights(file: bytes, header: bytes, changes: list[Change]) -> bytes:
    """A safetensors file with another header, of which `length` changes the stated size, and `data` the data's."""
    more = {operation: value for operation, _, value in changes if operation in ("length", "data")}
    length = max(len(header) + more.get("length", 0), 0)
    rest = memoryview(file)[8 + len(header_of(file)) :]
    size = max(len(rest) + min(more.get("data", 0), 2**20), 0)
    return length.to_bytes(8, "little") + header + bytes(rest[:size]) + bytes(max(size - len(rest), 0))


def _change(tree: Any, operation: str, path: list[Any], value: Any) -> None:
    """Changes a tree in place; what doesn't apply is left out."""
    if operation in ("text", "length", "data", "again"):
        return
    parent, key = _parent(tree, path), path[-1]
    if parent is None or (not _has(parent, key) and (operation != "set" or isinstance(parent, list))):
        return
    if operation == "set":
        parent[key] = copy.deepcopy(value)
    elif operation == "drop":
        del parent[key]
    elif operation == "rename" and isinstance(parent, dict):
        parent[value or f"{key}_"] = parent.pop(key)
    elif operation in ("swap", "copy"):
        other = _parent(tree, value)
        if other is not None and _has(other, value[-1]):
            ours, theirs = copy.deepcopy(parent[key]), copy.deepcopy(other[value[-1]])
            parent[key] = theirs
            if operation == "swap":
                other[value[-1]] = ours
    elif operation == "scale":
        parent[key] = _scaled(parent[key], value)
    elif operation == "stretch" and isinstance(parent[key], list):
        parent[key] = parent[key] * value if value > 0 else parent[key][:value]
    elif operation == "wrap":
        parent[key] = [parent[key]]
    elif operation == "unwrap" and isinstance(parent[key], (dict, list)) and parent[key]:
        parent[key] = next(iter(parent[key].values() if isinstance(parent[key], dict) else parent[key]))


def _parent(tree: Any, path: list[Any]) -> Any:
    """The object or list that holds the path's end; None if an earlier change has taken it away."""
    for key in path[:-1]:
        if not _has(tree, key):
            return None
        tree = tree[key]
    return tree if isinstance(tree, (dict, list)) and isinstance(path[-1], (str, int)[isinstance(tree, list)]) else None


def _has(tree: Any, key: Any) -> bool:
    if isinstance(tree, dict):
        return key in tree
    return isinstance(tree, list) and isinstance(key, int) and key < len(tree)


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [_scaled(entry, factor) for entry in value]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value)(value * factor) if number else value


def described(mutant: Mutant) -> str:
    """A mutant as text that `json.loads` reads back."""
    return json.dumps(mutant)
