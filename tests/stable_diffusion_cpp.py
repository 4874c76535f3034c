"""Repeats which files stable-diffusion.cpp takes, and how far its images are from PyTorch Diffusers'.

  python3.11 -m venv ENV
  ENV/bin/pip install cyllama==0.2.18
  python -m tests.stable_diffusion_cpp --python=ENV/bin/python --workdir=DIR [--generation=v2]

The wheel carries stable-diffusion.cpp (its `build_config.json` says which version) and needs an environment of its own.
`DIR` must not exist; it takes 10 GB of disk and is removed at the end. Needs 10 GB of memory, and 6 minutes on two idle
cores.

The networks have Stable Diffusion's sizes and random weights; `launch.prune` writes the students. Both programs start
from PyTorch's noise of one seed and take four Euler steps, at timesteps 999, 666, 333 and 0, without guidance. The
prompt is empty: stable-diffusion.cpp has CLIP's vocabulary built in, Diffusers gets the same token ids.

Of SD 2.x, stable-diffusion.cpp guesses the prediction type from an output of the U-Net if it isn't told. Random weights
look like epsilon to it; what it makes of trained ones isn't checked here.

Prints a line for each file; ends with status 1 if one is unexpected.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm_jax.formats.clip_json import clip_text_to_transformers
from bksdm_jax.pipelines.save import SINGLE_FILE
from bksdm_jax.pipelines.stable_diffusion import TEACHERS, TEXT_ENCODERS
from tests import tiny

SIZE, STEPS, SEED = 64, 4, 7
LINE = "{:9}{:20}{:14}{:6}{}"
START, END, PADDING = 49406, 49407, {"v1": 49407, "v2": 0}
VAE = tiny.VAE | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}

# It runs where nothing but the wheel is installed. The wheel itself refuses folders, which stable-diffusion.cpp reads;
# its converter needs a rule, here one that no weight matches.
RENDER = """
import json, sys
from cyllama.utils import validation
validation.validate_model_file = lambda *args, **options: None
from cyllama.sd import Prediction, RngType, SampleMethod, Scheduler, SDContext, SDContextParams, SDType, convert_model

model, gguf, prediction, image, size, steps, seed = json.loads(sys.argv[1])
if gguf:
    convert_model(model, gguf, SDType.Q8_0, tensor_type_rules="none=q8_0")
params = SDContextParams(model_path=gguf or model, n_threads=2)
params.rng_type = RngType.CPU  # PyTorch's
if prediction:
    params.prediction = Prediction[prediction]
try:
    context = SDContext(params)
except RuntimeError:
    sys.exit("refused")
options = {"sample_method": SampleMethod.EULER, "scheduler": Scheduler.DISCRETE, "cfg_scale": 1.0}
context.generate("", width=size, height=size, sample_steps=steps, seed=seed, **options)[0].save_png(image)
"""


class Fact(NamedTuple):
    """What is known of one file.

    Attributes:
        form: the format of `launch.prune`, or `gguf`: q8_0, converted from `single_file_spaced`.
        levels: bound for the largest difference, of 255; None: the file is refused.
        option: the prediction type that stable-diffusion.cpp is told; empty: none.
        scheduler: the prediction type in a folder's `scheduler_config.json`.
        compared: the prediction type of Diffusers' image.
    """

    student: str
    form: str
    levels: int | None
    option: str = ""
    scheduler: str = "epsilon"
    compared: str = "epsilon"

    @property
    def format(self) -> str:
        return "single_file_spaced" if self.form == "gguf" else self.form


FORMS = ("safetensors", "single_file", "single_file_spaced")
FACTS = (
    Fact("sd", "single_file", 1),
    Fact("bk_tiny", "safetensors", 1),
    Fact("bk_tiny", "safetensors", 1, scheduler="v_prediction"),
    Fact("bk_tiny", "safetensors", 1, "V", "v_prediction", "v_prediction"),
    Fact("bk_tiny", "single_file", None),
    Fact("bk_tiny", "single_file_spaced", 1),
    Fact("bk_tiny", "single_file_spaced", 1, "V", compared="v_prediction"),
    Fact("bk_tiny", "gguf", 10),
    *(Fact(student, form, None) for student in ("bk_base", "bk_small", "no_mid") for form in FORMS),
)


def write_teacher(folder: Path, generation: str) -> None:
    """Stable Diffusion's networks with random weights, as a folder."""
    text = CLIPTextModel(CLIPTextConfig(**clip_text_to_transformers(TEXT_ENCODERS[generation])))
    tiny.write_torch_pipeline(folder, TEACHERS[generation], vae=VAE, text=tiny.randomize(text, 2))


def prune(teacher: Path, student: str, form: str, folder: Path) -> Path:
    """The path of the student that `launch.prune` writes."""
    options = {"teacher": teacher, "student": student, "format": form}
    command = [sys.executable, "-m", "launch.prune", "--config=configs/prune.py", f"--workdir={folder}"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder if form == "safetensors" else folder / SINGLE_FILE


def diffusers_images(folder: Path, padding: int, predictions: Sequence[str]) -> dict[str, np.ndarray]:
    """Prediction type -> PyTorch Diffusers' image, levels [H, W, 3]."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(SEED))
    with torch.inference_mode():
        states = pipeline.text_encoder(torch.tensor([[START, END, *[padding] * 75]])).last_hidden_state
    images = {}
    for prediction in predictions:
        options = {"timestep_spacing": "linspace", "prediction_type": prediction}
        pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **options)
        options = {"prompt_embeds": states, "latents": noise, "guidance_scale": 1, "output_type": "np"}
        images[prediction] = pipeline(num_inference_steps=STEPS, height=SIZE, width=SIZE, **options).images[0] * 255
    return images


def render(python: str, model: Path, gguf: Path | None, option: str, image: Path) -> bool:
    """Writes stable-diffusion.cpp's image; False if it refuses the file."""
    task = [str(model), str(gguf or ""), option, str(image), SIZE, STEPS, SEED]
    result = subprocess.run([python, "-c", RENDER, json.dumps(task)], capture_output=True, text=True, check=False)
    lines = result.stderr.strip().splitlines()
    if result.returncode and lines[-1:] != ["refused"]:
        sys.exit(f"{model}: stable-diffusion.cpp ended with status {result.returncode}\n" + "\n".join(lines[-5:]))
    return not result.returncode


def check_student(python: str, workdir: Path, generation: str, facts: Sequence[Fact]) -> int:
    """Prints what happens to one student's files; returns the number of unexpected lines."""
    student, wrong, images = facts[0].student, 0, {}
    for file_format, of_format in itertools.groupby(facts, lambda fact: fact.format):
        folder = workdir / file_format
        model = prune(workdir / "teacher", student, file_format, folder)
        for fact in of_format:
            if model == folder:
                tiny.scheduler(fact.scheduler).save_pretrained(folder / "scheduler")
            gguf = workdir / "model.gguf" if fact.form == "gguf" else None
            levels, said = None, "refused"
            if render(python, model, gguf, fact.option, workdir / "image.png"):
                source = workdir / ("teacher" if student == "sd" else "safetensors")
                images = images or diffusers_images(source, PADDING[generation], sorted({f.compared for f in facts}))
                found = np.asarray(Image.open(workdir / "image.png"), np.float32)
                levels = int(np.abs(found - images[fact.compared].round()).max())
                said = f"loaded; largest difference {levels} ({fact.compared})"
            if (levels is None) != (fact.levels is None) or (levels or 0) > (fact.levels or 0):
                wrong += 1
                said += " UNEXPECTED"
            config = fact.scheduler if model == folder else "-"
            print(LINE.format(student, fact.form, config, fact.option or "-", said), flush=True)
        if model != folder:
            shutil.rmtree(folder)
    shutil.rmtree(workdir / "safetensors", ignore_errors=True)
    return wrong


def main() -> None:
    """Checks every student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment with the wheel")
    parser.add_argument("--workdir", required=True, type=Path, help="for temporary files")
    parser.add_argument("--generation", choices=list(PADDING), default="v1")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True)
    print(LINE.format("student", "form", "config says", "told", "stable-diffusion.cpp"))
    try:
        write_teacher(options.workdir / "teacher", options.generation)
        wrong = sum(
            check_student(options.python, options.workdir, options.generation, list(facts))
            for _, facts in itertools.groupby(FACTS, lambda fact: fact.student)
        )
    finally:
        shutil.rmtree(options.workdir)
    if wrong:
        sys.exit(f"{wrong} lines are unexpected")


if __name__ == "__main__":
    main()
