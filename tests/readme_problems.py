"""What a user would stumble over who pastes the commands of README.md, found without running them."""

import importlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bksdm_jax.pipelines.config import split_lora
from tests import readme_commands as readme
from tests.binaries import VERBS
from tests.conftest import ROOT
from tests.readme_commands import Command

MAKES: dict[str, dict[str, str]] = {
    "convert_lora": {"": "LoRA"},
    "prune": {"": "model"},
    "train": {"model": "model", "lora.safetensors": "LoRA"},
    "sample": {"": "images", "images": "images"},
    "score": {"": "scores"},
    "reference": {"images": "images", "prompts.csv": "prompts", "fid_pytorch_fid.npz": "images"},
    "prepare": {"": "data"},
    "analyse": {"": "scores of blocks"},
    "attribute": {"teacher/images": "images", "student_1/images": "images"},
    "shapes_teacher": {"made/teacher": "model"},
    "subjects": {"": "images"},
}
"""Program -> what it leaves in its workdir, and the kind of that."""

READS = {
    **dict.fromkeys(
        (
            *("teacher", "model", "models", "pipeline", "latents.pipeline", "student_init", "beside", "vae"),
            "prior.model",
        ),
        "model",
    ),
    **dict.fromkeys(("data", "source"), "data"),
    **dict.fromkeys(("images", "reference", "scoring.reference", "score.reference", "init"), "images"),
    **dict.fromkeys(("prompts", "scoring.prompts"), "prompts"),
    **dict.fromkeys(("captions", "inception", "latents", "curves", "dataset"), "a file of the user's"),
    "scores": "scores",
    "lora": "LoRA",
    "block_scores": "scores of blocks",
}
"""Setting -> the kind of what it names."""

BUNDLED = {"shapes_teacher": "model", "shapes_world/demo": "data", "shapes_world/hearts": "data", "shapes": "images"}
BUNDLED |= {"teacher": "model", "random": "model"}  # of `student_init`
NO_WORKDIR = ("bench", "cost", "plan")
SEVERAL = ("subjects",)  # commands with one workdir
TEXTS = ("compare",)  # its `prompts` are texts
OF_OTHERS = ("--help", "--prediction v")


def problems(text: str, values: Mapping[str, str] | None = None) -> list[str]:
    """What a user would stumble over; `values` take the place of exported variables."""
    try:
        shown = readme.commands(text, values)
    except ValueError as error:
        return [str(error)]
    settings, found = _settings(shown)
    documented = {span for _, span in readme.spans(text)} | set((values or {}).values())
    found += _paths(shown, settings, documented, ordered=values is None)
    return [*found, *_inline(text, settings), *_files(text)]


def _settings(shown: list[Command]) -> tuple[dict[Command, Any], list[str]]:
    """Those of the programs, and what is wrong with commands by themselves."""
    settings, found = {}, []
    for command in shown:
        if re.search(r"\.\.\.|(^|\s)#|(?<![$\w])[A-Z]{3,}\b(?!=)", command.text):
            found.append(f"line {command.line}: a note or a placeholder in {command.text!r}")
        if not command.program or command.words[0] == "launch/tpu_pod.sh":
            found += _other(command, f"line {command.line}")
        if not command.program:
            continue
        try:
            config = readme.parsed(command.program, command.arguments)
            list(_read(command.program, config))  # also the runs of a sweep
            settings[command] = config
        except ValueError as error:
            found.append(f"line {command.line}: {error}")
    return settings, found


def _paths(shown: list[Command], settings: dict[Command, Any], documented: set[str], ordered: bool) -> Iterator[str]:
    """What is read without having been written, and what is written twice."""
    known, workdirs = dict(BUNDLED), dict[str, Any]()
    if not ordered:
        known |= {path: kind for command in settings for path, kind in made(command)}
    for command in shown:
        if command in settings:
            for key, value in _read(command.program, settings[command]):
                kind, own = READS.get(key), value in documented and not value.startswith("runs/")
                if kind is None or not (own or known.get(value) == kind):
                    yield f"line {command.line}: {key} is {value}, which is no {kind} of an earlier command"
            yield from _claim(command, settings[command], workdirs)
        known |= dict(made(command))


def _read(program: str, config: Any) -> Iterator[tuple[str, str]]:
    """Settings that name files, and what they name."""
    if program == "sweep":
        for one in set(config.read().values()):
            yield from _read("train", one)
    for key, value in readme.flattened(config).items():
        for one in value if isinstance(value, tuple) else (value,):
            is_name = key in READS and not (program in TEXTS and key == "prompts")
            if isinstance(one, str) and one and (is_name or one.startswith("runs/")) and key != "settings":
                yield key, split_lora(one)[0] if key == "lora" else one


def made(command: Command) -> Iterator[tuple[str, str]]:
    """Path and kind of what a command leaves for others."""
    if command.target:
        yield command.target, "prompts"
    for inner, kind in MAKES.get(command.program, {}).items():
        yield f"{_workdir(command)}/{inner}".rstrip("/"), kind


def _workdir(command: Command) -> str:
    given = [flag.removeprefix("--workdir=") for flag in command.arguments if flag.startswith("--workdir=")]
    return given[0] if given else ""


def _claim(command: Command, config: Any, workdirs: dict[str, Any]) -> Iterator[str]:
    """Notes whose workdir it is."""
    workdir = _workdir(command)
    if bool(workdir) == (command.program in NO_WORKDIR):
        yield f"line {command.line}: launch.{command.program} with workdir {workdir!r}"
    for former, whose in workdirs.items():
        shared = command.program in SEVERAL and whose[0] == command.program
        is_same = former == workdir and (shared or whose == (command.program, config))
        if workdir and not is_same and (f"{former}/".startswith(f"{workdir}/") or workdir.startswith(f"{former}/")):
            yield f"line {command.line}: workdir {workdir} is that of another command"
    if workdir:
        workdirs[workdir] = command.program, config


def _other(command: Command, where: str) -> Iterator[str]:
    """A command that isn't a program of `launch/`."""
    match command.words:
        case ["make", *words]:
            for word in words:
                rule = rf"^{word.split('=')[0]} \?=" if "=" in word else rf"^{word}:"
                yield from _named("Makefile", rule, word, where)
        case ["pip", "install", "--editable", extras]:
            for extra in extras.strip(".[]").split(","):
                yield from _named("pyproject.toml", rf"^{extra} = \[", extra, where)
        case ["launch/tpu_pod.sh", verb, *_]:
            yield from _named("launch/tpu_pod.sh", rf"^  {verb}\)", verb, where)
        case ["python", "-m", module, *_]:
            if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
                yield f"{where}: no module {module}"
        case ["python", "-c", code, *_]:
            compile(code, where, "exec")
        case ["source", ".venv/bin/activate"] | ["export", *_] | ["mkdir", "-p", _]:
            pass
        case _:
            yield f"{where}: {command.text!r} is unknown here"


def _named(file: str, pattern: str, name: str, where: str) -> Iterator[str]:
    if not re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE):
        yield f"{where}: {file} has no {name}"


def _inline(text: str, shown: Mapping[Command, Any]) -> Iterator[str]:
    """Commands and flags within the prose; flags are added to the section's commands, if it has any."""
    first = {command.program: command for command in reversed(shown)}
    for command in readme.inline(text):
        where, word = f"`{command.text}`", command.words[0]
        in_section = {one.program for one in shown if one.section == command.section}
        if command.text in OF_OTHERS or command.words[-1] == "--help" or word == "export":
            if command.program and command.program not in VERBS:
                yield f"{where}: no such program"
        elif command.program and word == "python":
            yield from _accepted({command.program}, command.arguments, where)
        elif command.program:
            known = first[command.program].arguments if command.program in first else []
            if command.arguments:
                yield from _accepted({command.program}, [*known, *command.arguments], where)
            elif command.program not in VERBS:
                yield f"{where}: no such program"
        elif word.startswith("--"):
            yield from _flags(first, in_section or set(first), command, where)
        elif "=" in word:
            yield from _other(Command(0, "", "", ("make", *command.words)), where)
        else:
            yield from _other(command, where)


def _flags(first: Mapping[str, Command], programs: set[str], command: Command, where: str) -> Iterator[str]:
    if all("=" in word for word in command.words):
        found = [list(_accepted({name}, [*first[name].arguments, *command.words], where)) for name in sorted(programs)]
        yield from min(found, key=len)
    elif command.words != ("--distributed",):
        key = command.text.removeprefix("--config.")
        settings = [readme.flattened(readme.parsed(name, first[name].arguments)) for name in sorted(programs)]
        if not any(key in one for one in settings):
            yield f"{where}: no setting of {', '.join(sorted(programs))}"


def _accepted(programs: set[str], arguments: list[str], where: str) -> Iterator[str]:
    for program in programs:
        try:
            readme.parsed(program, arguments)
        except ValueError as error:
            yield f"{where}: {error}"


def _files(text: str) -> Iterator[str]:
    for name in sorted(readme.mentioned_files(text)):
        if not readme.exists(name):
            yield f"{name}: no such file"
    headings = {re.sub(r"[^\w -]", "", name).lower().replace(" ", "-") for name in re.findall(r"^#+ (.*)", text, re.M)}
    for name in re.findall(r"\]\(#([^)]+)\)", text):
        if name not in headings:
            yield f"#{name}: no such heading"
    named = "\n".join(span for _, span in readme.spans(text))
    for name, variants in re.findall(r"configs/(\w+)\.py:([\w,.-]+)", named):
        try:
            importlib.import_module(f"configs.{name}").get_config(variants)
        except (ImportError, ValueError) as error:
            yield f"configs/{name}.py:{variants}: {error}"
