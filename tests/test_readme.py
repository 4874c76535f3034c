"""README.md can be pasted: its commands parse, read what earlier ones wrote, and don't write over each other."""

import importlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from launch.runs import read_run
from tests import readme_commands as readme
from tests.binaries import VERBS
from tests.conftest import ROOT
from tests.readme_commands import Command, README

MAKES: dict[str, dict[str, str]] = {
    "prune": {"": "model"},
    "train": {"model": "model"},
    "sample": {"": "images", "images": "images"},
    "score": {"": "scores"},
    "reference": {"images": "images", "prompts.csv": "prompts", "fid_pytorch_fid.npz": "images"},
    "prepare": {"": "data"},
    "shapes_teacher": {"made/teacher": "model"},
}
"""Program -> what it leaves in its workdir, and the kind of that."""

READS = {
    **dict.fromkeys(
        ("teacher", "model", "models", "pipeline", "latents.pipeline", "student_init", "beside", "vae"), "model"
    ),
    **dict.fromkeys(("data", "source"), "data"),
    **dict.fromkeys(("images", "reference", "scoring.reference", "score.reference", "init"), "images"),
    **dict.fromkeys(("prompts", "scoring.prompts"), "prompts"),
    **dict.fromkeys(("captions", "inception", "latents", "curves"), "a file of the user's"),
    "scores": "scores",
}
"""Setting -> the kind of what it names."""

BUNDLED = {"shapes_teacher": "model", "shapes_world/demo": "data", "shapes": "images"}
BUNDLED |= {"teacher": "model", "random": "model"}  # of `student_init`
NO_WORKDIR = ("bench", "cost", "plan")
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
        if not command.program:
            found += _other(command, f"line {command.line}")
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
    made, workdirs = dict(BUNDLED), dict[str, Any]()
    if not ordered:
        made |= {path: kind for command in settings for path, kind in _made(command)}
    for command in shown:
        if command in settings:
            for key, value in _read(command.program, settings[command]):
                kind, own = READS.get(key), value in documented and not value.startswith("runs/")
                if kind is None or not (own or made.get(value) == kind):
                    yield f"line {command.line}: {key} is {value}, which is no {kind} of an earlier command"
            yield from _claim(command, settings[command], workdirs)
        made |= dict(_made(command))


def _read(program: str, config: Any) -> Iterator[tuple[str, str]]:
    """Settings that name files, and what they name."""
    if program == "sweep":
        for one in {read_run(variants, config.settings) for variants in config.runs}:
            yield from _read("train", one)
    for key, value in readme.flattened(config).items():
        for one in value if isinstance(value, tuple) else (value,):
            is_name = key in READS and not (program in TEXTS and key == "prompts")
            if isinstance(one, str) and one and (is_name or one.startswith("runs/")) and key != "settings":
                yield key, one


def _made(command: Command) -> Iterator[tuple[str, str]]:
    if command.target:
        yield command.target, "prompts"
    for inner, kind in MAKES.get(command.program, {}).items():
        yield f"{_workdir(command)}/{inner}".rstrip("/"), kind


def _workdir(command: Command) -> str:
    given = [flag.removeprefix("--workdir=") for flag in command.arguments if flag.startswith("--workdir=")]
    return given[0] if given else ""


def _claim(command: Command, config: Any, workdirs: dict[str, Any]) -> Iterator[str]:
    """Notes whose the workdir is."""
    workdir = _workdir(command)
    if bool(workdir) == (command.program in NO_WORKDIR):
        yield f"line {command.line}: launch.{command.program} with workdir {workdir!r}"
    for former, whose in workdirs.items():
        nested = former != workdir and f"{former}/".startswith(f"{workdir}/") or workdir.startswith(f"{former}/")
        if workdir and (nested or (former == workdir and whose != (command.program, config))):
            yield f"line {command.line}: workdir {workdir} is that of another command"
    if workdir:
        workdirs[workdir] = command.program, config


def _other(command: Command, where: str) -> Iterator[str]:
    """A command that isn't a program of `launch/`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    match command.words:
        case ["make", *words]:
            for word in words:
                rule = rf"^{word.split('=')[0]} \?=" if "=" in word else rf"^{word}:"
                if not re.search(rule, makefile, re.MULTILINE):
                    yield f"{where}: Makefile has no {word}"
        case ["pip", "install", "--editable", extras]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extra in re.fullmatch(r"\.\[(.*)\]", extras)[1].split(","):
                if extra not in known["optional-dependencies"]:
                    yield f"{where}: no extra {extra}"
        case ["launch/tpu_pod.sh", verb, *_]:
            if not re.search(rf"^  {verb}\)", (ROOT / "launch/tpu_pod.sh").read_text(encoding="utf-8"), re.MULTILINE):
                yield f"{where}: launch/tpu_pod.sh has no {verb}"
        case ["python", "-m", module, *_]:
            if not (ROOT / f"{module.replace('.', '/')}.py").is_file():
                yield f"{where}: no module {module}"
        case ["python", "-c", code, *_]:
            compile(code, where, "exec")
        case ["source", ".venv/bin/activate"] | ["export", *_] | ["mkdir", "-p", _]:
            pass
        case _:
            yield f"{where}: {command.text!r} is unknown here"


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
    for name, variants in re.findall(r"configs/(\w+)\.py:([\w,.-]+)", "\n".join(span for _, span in readme.spans(text))):
        try:
            importlib.import_module(f"configs.{name}").get_config(variants)
        except (ImportError, ValueError) as error:
            yield f"configs/{name}.py:{variants}: {error}"


def test_it_can_be_pasted() -> None:
    assert problems(README.read_text(encoding="utf-8")) == []


def test_it_can_be_pasted_for_other_models() -> None:
    """With the variables that it gives for them."""
    text = README.read_text(encoding="utf-8")
    others = [command for command in readme.inline(text) if command.words[0] == "export"]
    assert others
    for command in others:
        assert problems(text, readme.variables([command])) == []


def test_its_length() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 420


@pytest.mark.parametrize(
    ("old", "new", "fact"),
    [
        ("--config.student=bk_small", "--config.studnt=bk_small", "studnt"),
        ("$GENERATION,bk_small", "$GENERATION,bk_smal", "'bk_smal'"),
        ("--config.guidance_scale=3 ", "--config.guidance_scale=three ", "three"),
        ("'data=$DATA'", "'dat=$DATA'", "dat"),
        ("$GENERATION,rates", "$GENERATION,rate", "'rate'"),
        ("python -m launch.prepare", "python -m launch.prepair", "prepair"),
        ("--distributed=auto", "--distribute=auto", "distribute"),
        ("--workdir=$OUT/pruned", "", "workdir ''"),
        ("--config.images=$OUT/small_images", "--config.images=$OUT/images", "runs/shapes/images"),
        ("--config.model=$OUT/small/model", "--config.model=$OUT/small", "model is runs/shapes/small,"),
        ("--config.source=runs/photos", "--config.source=runs/pictures", "runs/pictures"),
        ("--config.images=val2014", "--config.images=val2017", "val2017"),
        ("> $OUT/prompts.txt", "> $OUT/captions.txt", "runs/shapes/prompts.txt"),
        ("runs/coco/prompts.csv", "runs/coco/prompt.csv", "runs/coco/prompt.csv"),
        ("--workdir=$OUT/teacher_images", "--workdir=$OUT/small_images", "workdir runs/shapes/small_images"),
        ("--workdir=$OUT/rates", "--workdir=$OUT/small", "workdir runs/shapes/small"),
        ("--workdir=$OUT/rates", "--workdir=$OUT/small/rates", "workdir runs/shapes/small/rates"),
        ("--config.data=$DATA", "--config.data=DATA", "placeholder"),
        ("bench.py:update,small,bk_base", "bench.py:update,small,bk_base  # fast", "note"),
        (" DATA=shapes_world/demo", "", "$DATA"),
        ("\nmake install\n", "\nmake instal\n", "instal"),
        ("tpu_pod.sh create", "tpu_pod.sh creat", "creat"),
        ("interop]'", "interopt]'", "interopt"),
        ("--config.switch_at=10", "--config.swich_at=10", "swich_at"),
        ("`--config.most_rejects`", "`--config.many_rejects`", "many_rejects"),
        ("`launch.compare`", "`launch.compares`", "compares"),
        ("`configs/score.py:shapes`", "`configs/score.py:shape`", "'shape'"),
        ("`notebooks/first_student", "`notebooks/first_students", "first_students"),
        (".github/students.svg", ".github/pupils.svg", "pupils"),
        ("#bring-your-own-data", "#bring-your-data", "#bring-your-data"),
    ],
)
def test_it_finds(old: str, new: str, fact: str) -> None:
    text = README.read_text(encoding="utf-8")
    assert old in text
    assert fact in "\n".join(problems(text.replace(old, new, 1)))
