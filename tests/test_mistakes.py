"""Mistakes on the command line: each is told in one line, with a hint, before anything slow is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_lines import ROOT, Left, run_all

TRAIN = ["--config=configs/distill.py:v1,bk_small"]
GIVEN = [*TRAIN, "--config.teacher=TEACHER", "--config.data=DATA", "--workdir=/no/such/workdir"]
SAMPLE = ["--config=configs/sample.py", "--config.model=MODEL", "--config.prompt=a", "--workdir=/no/such/workdir"]
SCORE = ["--config=configs/score.py", "--config.images=DIR", "--workdir=/no/such/workdir"]
PRUNE = ["--config=configs/prune.py", "--config.teacher=TEACHER", "--workdir=/no/such/workdir"]
PREPARE = ["--config=configs/prepare.py", "--config.source=DIR", "--workdir=/no/such/workdir"]
MISTAKES = [  # program, arguments, what the line says
    # flags and names of settings
    ("train", [*TRAIN, "--teacher=X"], ("--teacher", "did you mean --config.teacher?")),
    ("train", [*TRAIN, "--stepz=2"], ("--stepz", "--config.steps")),
    ("train", [*TRAIN, "--work_dir=X"], ("--work_dir", "--workdir")),
    ("train", [*TRAIN, "--config.learning_rate=1e-4"], ("did you mean --config.optimizer.learning_rate?",)),
    ("train", [*TRAIN, "--config.loss.outptu=2"], ("--config.loss.outptu", "--config.loss.output")),
    ("train", [*TRAIN, "--config.guidance_scale=2"], ("config.sheets.guidance_scale", "config.scoring.guidance_scale")),
    ("sample", ["--config=configs/sample.py", "--config.metrics=x"], ("did you mean --config.score.metrics?",)),
    ("train", [*TRAIN, "--config.loss=1"], ("--config.loss=1", "loss.feature")),
    ("train", [*TRAIN, "--config.xyzzy=1"], ("--config.xyzzy", "more", "--help")),
    ("train", [*TRAIN, "bk_tiny"], ("'bk_tiny'", "--config.KEY=VALUE")),
    # config files and variants
    ("train", [], ("--config=configs/distill.py",)),
    ("train", ["--config="], ("--config=configs/distill.py",)),
    ("train", ["--config=configs/distil.py"], ("configs/distil.py", "configs/distill.py")),
    ("train", ["--config=distill.py"], ("distill.py", "did you mean configs/distill.py?")),
    ("train", ["--config=configs/sample.py"], ("launch.sample", "launch.train takes --config=configs/distill.py")),
    ("compare", ["--config=configs/cost.py:v1"], ("launch.cost", "launch.compare takes --config=configs/compare.py")),
    ("train", ["--config=/no/such/file.py"], ("/no/such/file.py", "configs/distill.py")),
    ("train", ["--config=configs/distill.py:v1,bk_smal"], ("'bk_smal'", "'bk_small'", "and 14 more")),
    ("score", ["--config=configs/score.py:bk_sd"], ("'bk_sd'", "'bk_sdm'")),
    ("sweep", ["--config=configs/sweep.py:shapes,rate"], ("'rate'", "'rates'")),
    ("train", ["--config=configs/distill.py:v1,v2"], ("v1 and v2",)),
    ("report", ["--config=configs/report.py:v1"], ("configs/report.py:v1", "no variants")),
    ("train", ["--config.steps=1", *TRAIN], ("--config.steps=1", "--config=configs/distill.py:v1,bk_small")),
    # values of another kind
    ("train", [*TRAIN, "--config.flip=perhaps"], ("--config.flip=perhaps", "yes, no", "--config.flip=yes")),
    ("train", [*TRAIN, "--config.resolution=512px"], ("=512px", "whole number", "--config.resolution=512")),
    ("train", [*TRAIN, "--config.steps=1e3"], ("=1e3", "whole number", "--config.steps=1000")),
    ("train", [*TRAIN, "--config.noise_offset=a lot"], ("=a lot", "a number", "--config.noise_offset=0.5")),
    ("train", [*TRAIN, "--config.evaluators=clip_score"], ("a list", """--config.evaluators="('clip_score',)\"""")),
    ("tradeoff", ["--config=configs/tradeoff.py", "--config.over_guidance=2.5"], ("=2.5", "a list", '="(2.5,)"')),
    ("bench", ["--config=configs/bench.py", "--config.widths=('a',)"], ("config.widths", "'a'", "a whole number")),
    ("train", [*TRAIN, "--config.steps"], ("--config.steps", "no value")),
    # of other tasks
    ("train", ["--config=configs/lora.py", "--config.adapter.rnak=2"], ("did you mean --config.adapter.rank?",)),
    (
        "train",
        ["--config=configs/lora.py", "--config.task=distil", "--workdir=X"],
        ("--config.task=distil", "another file"),
    ),
    ("train", ["--config=configs/dreambooth.py:v1", "--workdir=X"], ("--config.model=",)),
    ("train", ["--config=configs/dreambooth.py:v3"], ("'v3'", "v1")),
    # values that can't be used
    ("train", GIVEN[:-1], ("--workdir",)),
    ("train", [*TRAIN, "--workdir=X"], ("--config.teacher=",)),
    ("train", [*GIVEN, "--config.remat=atention"], ("remat", "'atention'", "'attention'")),
    ("train", [*GIVEN, "--config.attention=flsh"], ("attention", "'flsh'", "'flash'")),
    ("train", [*GIVEN, "--config.dtype=float16"], ("dtype", "'float16'", "bfloat16")),
    ("train", [*GIVEN, "--config.student=bk_smal"], ("student", "'bk_smal'", "'bk_small'")),
    ("train", [*GIVEN, "--config.optimizer.beta2=1"], ("optimizer.beta2", "1.0")),
    ("train", [*GIVEN, "--config.evaluators=('clip_scor',)"], ("evaluators", "'clip_scor'", "'clip_score'")),
    ("train", [*GIVEN, "--distributed=here"], ("--distributed", "'here'", "HOST:PORT")),
    ("plan", ["--config=configs/distill.py:v1", "--config.plan.price=-1"], ("plan.price", "-1")),
    ("plan", ["--config=configs/lora.py:v1", "--config.plan.student=bk_smal"], ("'bk_smal'", "'bk_small'")),
    ("plan", ["--config=configs/dreambooth.py", "--config.plan.generation=v3"], ("plan.generation", "'v3'", "v2_base")),
    ("prune", [*PRUNE, "--config.format=safetensor"], ("format", "'safetensor'", "'safetensors'")),
    ("prune", [*PRUNE, "--config.student=bk_smal"], ("student", "'bk_smal'", "'bk_small'")),
    ("sample", [*SAMPLE, "--config.sampler=eular"], ("sampler", "'eular'", "'euler'", "and 6 more")),
    ("sample", [*SAMPLE, "--config.protocol=bk_sd"], ("protocol", "'bk_sd'", "'bk_sdm'")),
    ("sample", [*SAMPLE, "--config.prompts=FILE"], ("prompts", "prompt")),
    ("prepare", [*PREPARE, "--config.kind=parket"], ("kind", "'parket'", "'parquet'")),
    ("prepare", [*PREPARE, "--config.validation=2"], ("validation", "2.0")),
    ("score", SCORE, ("metrics", "--config.metrics=")),
    ("score", [*SCORE, "--config.metrics=('fid_clen',)"], ("metrics", "'fid_clen'", "'fid_clean'")),
    ("cost", ["--config=configs/cost.py"], ("generation", "pipeline")),
    (
        "sweep",
        ["--config=configs/sweep.py:rates", "--config.settings=('stepz=1',)", "--workdir=X"],
        ("stepz=1", "steps"),
    ),
    (
        "compare",
        ["--config=configs/compare.py", "--config.model=M", "--config.steps=-1", "--workdir=X"],
        ("steps", "-1"),
    ),
    ("demo", ["--config=configs/demo.py", "--config.images=0", "--workdir=X"], ("images", "0")),
]


@pytest.fixture(scope="module")
def left() -> list[Left]:
    """What each of `MISTAKES` leaves."""
    return run_all([(program, arguments) for program, arguments, _ in MISTAKES])


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=lambda number: " ".join(MISTAKES[number][1][-1:]))
def test_a_mistake_is_one_line_and_told_at_once(left: list[Left], number: int) -> None:
    facts, said = MISTAKES[number][2], left[number]
    assert said.status == 1
    assert said.imported == []
    assert said.output == ""
    (line,) = said.errors.splitlines()
    assert line.startswith("error: "), line
    assert all(fact in line for fact in facts), line
    assert not any(python in line for python in ("invalid literal", "Error", "<class", "Stage(")), line
    known = line.partition("known: ")[2].partition(" ... and ")[0]
    assert known.count(",") < 10, line


def test_the_program_itself_ends_so() -> None:
    command = [sys.executable, "-m", "launch.compare", "--config=configs/compar.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert "configs/compare.py" in line


def test_configs_are_found_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "prune.py"
    own.write_text("from configs.prune import get_config\n")
    (made,) = run_all([("prune", ["--config=configs/prune.py", "--config.student=x", "--workdir=X"])], tmp_path)
    assert "config.teacher" in made.errors  # the one in this folder, which takes from the installed one
    copy = tmp_path / "configs" / "mine.py"
    copy.write_text((ROOT / "configs" / "sample.py").read_text(encoding="utf-8"), encoding="utf-8")
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    others, syntax = run_all([("train", [f"--config={copy}"]), ("train", [f"--config={broken}"])], tmp_path)
    assert "launch.sample" in others.errors
    assert "broken.py" in syntax.errors
    assert len(syntax.errors.splitlines()) == 1
    (installed,) = run_all([("cost", ["--config=configs/cost.py:v3"])], tmp_path)
    assert "'v3'" in installed.errors
