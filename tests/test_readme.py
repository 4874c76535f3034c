"""README.md can be pasted: its commands parse, read what earlier ones wrote, and don't write over each other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bksdm_jax.base.images import save_png
from bksdm_jax.formats.low_rank import LowRank
from bksdm_jax.formats.write_lora import write_lora
from bksdm_jax.pipelines.embedded import teacher_folder
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.shapes.world import example
from tests import binaries
from tests import readme_commands as readme
from tests.conftest import ROOT
from tests.readme_commands import README
from tests.readme_problems import made, problems

SHORT = {
    "prune": {},
    "analyse": {"data": "photos", "images": 8, "batch_size": 8},
    "attribute": {"steps": 1},
    "train": {"steps": 2, "batch_size": 2, "checkpoint_every": 0},
    "sample": {"steps": 1},
    "score": {"reference_count": 8, "cache": "cache"},
    "report": {},
    "tradeoff": {"steps": 1, "over_guidance": "(3.0,)", "reference_count": 8, "cache": "cache"},
    "prepare": {"workers": 1},
    "cost": {},
    "compare": {"steps": 0},
    "convert_lora": {},
}
"""Programs that can run here, with settings that make them short."""
DISTILLATION = {"sheets.steps": 0, "validation.images": 0}
"""The same of `launch.train` for a distillation."""


def test_it_can_be_pasted() -> None:
    assert problems(README.read_text(encoding="utf-8")) == []


def test_it_can_be_pasted_for_other_models() -> None:
    """With the variables that it gives for them."""
    text = README.read_text(encoding="utf-8")
    others = [command for command in readme.inline(text) if command.words[0] == "export"]
    assert others
    for command in others:
        assert problems(text, readme.variables([command])) == []


def _runs_here(command: readme.Command) -> bool:
    elsewhere = any(word in command.text for word in ("coco", "CompVis"))
    return command.program in SHORT and command.words[0] == "python" and not elsewhere


@pytest.mark.slow
def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other in one folder, but for those that need files or hardware that aren't here, or hours."""
    monkeypatch.setattr(binaries, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    _write_shapes(tmp_path / "photos", 8)
    _write_lora(tmp_path / "style.safetensors")
    ran = []
    for command in readme.commands(README.read_text(encoding="utf-8")):
        if command.words[0] == "mkdir" or command.target:
            script = command.text.replace("$OUT", "runs/shapes")
            subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
            if command.target:
                _keep_lines(tmp_path / command.target, 8)
        elif command.words[-1] == "--workdir=runs/shapes/small":  # the pruned student stands in for a trained one
            shutil.copytree(tmp_path / "runs/shapes/pruned", tmp_path / "runs/shapes/small/model")
        elif _runs_here(command):
            distils = command.program == "train" and "configs/distill.py" in command.text
            short = SHORT[command.program] | (DISTILLATION if distils else {})
            more = [f"--config.{key}={value}" for key, value in short.items()]
            binaries.succeed(command.program, [*command.arguments, *more])
            ran.append(command.program)
            enough = any if command.program == "train" else all  # a model or a LoRA
            assert enough((tmp_path / path).exists() for path, _ in made(command))
    students = ["prune", "analyse", "prune", "attribute", "sample", "score", "sample", "score", "report", "tradeoff"]
    with_lora = ["sample", "convert_lora", "sample", "prune", "train", "sample"]
    assert ran == [*students, *with_lora, "prepare", "prepare", "train", "cost", "cost", "compare"]


def _keep_lines(path: Path, count: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 256
    path.write_text("".join(lines[:count]), encoding="utf-8")


def _write_lora(path: Path) -> None:
    """A LoRA of the shapes teacher."""
    kernel = load_pipeline(teacher_folder()).denoiser.params["conv_in"]["kernel"]
    down, up = np.ones((2, 4, 3, 3), np.float32), np.zeros((kernel.shape[-1], 2), np.float32)
    write_lora(path, {"unet": {"conv_in": LowRank(down, up, 1.0)}})


def _write_shapes(folder: Path, count: int) -> None:
    """Images with captions, as a user has them."""
    folder.mkdir()
    rows = ["file_name,text"]
    for index in range(count):
        image, caption = example("train", index)
        save_png(folder / f"{index}.png", image)
        rows.append(f'{index}.png,"{caption}"')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


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
        ("tpu_pod.sh keep", "tpu_pod.sh kep", "kep"),
        ("interop]'", "interopt]'", "interopt"),
        ("--config.switch_at=10", "--config.swich_at=10", "swich_at"),
        ("--config.lora=style.safetensors", "--config.lora=style.safetensor", "lora is style.safetensor,"),
        ("('$OUT/small_style',)", "('$OUT/style',)", "lora is runs/shapes/style,"),
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
