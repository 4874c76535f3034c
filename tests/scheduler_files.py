"""Scheduler files as on the hub, or as older versions of Diffusers wrote them."""

import json
from pathlib import Path
from typing import Any

from tests import tiny

SD = tiny.SD_BETAS | {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False}
V = {"prediction_type": "v_prediction"}

FILES = {
    "SD 1.5": SD | {"_class_name": "PNDMScheduler", "trained_betas": None, "_diffusers_version": "0.6.0"},
    "SD 2.1": SD | V | {"_class_name": "DDIMScheduler", "trained_betas": None, "_diffusers_version": "0.8.0"},
    "DDIM of 2022": tiny.SD_BETAS | {"_class_name": "DDIMScheduler", "set_alpha_to_one": False},
    "DDIM without anything": tiny.SD_BETAS | {"_class_name": "DDIMScheduler"},
    "DDIM that clips": SD | {"_class_name": "DDIMScheduler", "clip_sample": True, "clip_sample_range": 0.5},
    "offset 0": SD | {"_class_name": "PNDMScheduler", "steps_offset": 0},
    "offset 7": SD | {"_class_name": "DDIMScheduler", "steps_offset": 7},
    "no offset": tiny.SD_BETAS | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "Runge-Kutta": SD | {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
    "Runge-Kutta by default": tiny.SD_BETAS | V | {"_class_name": "PNDMScheduler"},
    "Runge-Kutta, trailing": tiny.SD_BETAS | {"_class_name": "PNDMScheduler", "timestep_spacing": "trailing"},
    "Runge-Kutta, linspace": tiny.SD_BETAS | {"_class_name": "PNDMScheduler", "timestep_spacing": "linspace"},
    "Euler": tiny.SD_BETAS | {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear"},
    "Euler, trailing": SD | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
    "DDPM": tiny.SD_BETAS | {"_class_name": "DDPMScheduler", "clip_sample_range": 0.7},
    "DPM-Solver": SD | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++"},
    "DPM-Solver, single steps": tiny.SD_BETAS | {"_class_name": "DPMSolverSinglestepScheduler"},
    "UniPC": SD | {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2", "use_karras_sigmas": True},
    "LMS": SD | {"_class_name": "LMSDiscreteScheduler"},
    "nulls": SD | {"_class_name": "DDPMScheduler", "clip_sample": None, "steps_offset": None},
    "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "LCM": tiny.SD_BETAS | {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    "Heun": SD | {"_class_name": "HeunDiscreteScheduler"},
    "DPM-Solver++ 2M SDE Karras": SD
    | {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "sde-dpmsolver++",
        "use_karras_sigmas": True,
        "final_sigmas_type": "sigma_min",
    },
    "predicts z_0": tiny.SD_BETAS | {"_class_name": "DDIMScheduler", "prediction_type": "sample"},
    "zero SNR": SD
    | V
    | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}


def with_scheduler(model: Path, folder: Path, file: dict[str, Any], listed: str = "") -> Path:
    """A copy of a pipeline folder, by links, with another scheduler file; `listed` is the class in the index."""
    folder.mkdir()
    for part in model.iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(file))
    index = json.loads((model / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", listed or file["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
