"""Scheduler files as people have them give what Diffusers' pipeline makes of them, or are refused by name."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.samplers import SAMPLERS, sampler_calls
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats import scheduler_json
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers, schedule_to_diffusers
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.sampling.text_to_image import SamplerConfig, require_sampler
from tests import sampling_oracle
from tests.scheduler_files import FILES, with_scheduler

CLASSES = {scheduler.sampler: name for name, scheduler in scheduler_json.SCHEDULERS.items() if "Parallel" not in name}

FULL = [
    name
    for name in scheduler_json.SCHEDULERS
    if name not in ("DPMSolverSDEScheduler", "SASolverScheduler")  # need packages that aren't installed
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", FILES)
def test_latents_are_those_of_the_pipeline(name: str, sampler: str) -> None:
    """Those of the model's own class, or of another that is made from it."""
    file, steps = FILES[name], 9
    schedule, (kind, options) = schedule_from_diffusers(file), SAMPLERS[sampler]
    theirs = sampling_oracle.scheduler_of(file)
    if schedule.sampler != kind or options:
        options = {key: value for key, value in options.items() if key != "sigma_spacing"}
        options |= {"use_karras_sigmas": True} if sampler.endswith("karras") else {}
        theirs = getattr(diffusers, CLASSES[kind]).from_config(theirs.config, **options)
    if schedule.zero_snr and kind in ("pndm", "heun"):
        with pytest.raises(InputError, match="zero terminal SNR"):
            sampler_calls(sampler, schedule, steps)
        return
    noise, added = normal(1, 4, 4, 4), normal(20, 1, 4, 4, 4)
    try:
        expected = sampling_oracle.sample(theirs, steps, noise, added)
    except (AssertionError, IndexError, NotImplementedError, ValueError):
        with pytest.raises(InputError, match=r"steps: 9 steps repeat|predicts z_0"):
            sampler_calls(sampler, schedule, steps)
        return
    calls = sampler_calls(sampler, schedule, steps)
    ours, largest = sampling_oracle.in_numpy(calls, noise, added)
    if not (largest > 1e2 and kind in ("heun", "pndm")):  # they overshoot, and `stand_in`'s sine is chaos
        sampling_oracle.require_close(ours, expected, largest, schedule, calls)


@pytest.mark.parametrize("name", FILES)
def test_noise_levels_are_those_of_diffusers(name: str) -> None:
    ours = schedule_from_diffusers(FILES[name])
    # Towards 0, float32 leaves Diffusers' a rounding error.
    tolerance = {"rtol": 1e-4, "atol": 1e-7} if ours.zero_snr else {"rtol": 2e-5}
    theirs = sampling_oracle.scheduler_of(FILES[name]).alphas_cumprod.numpy()
    np.testing.assert_allclose(ours.alphas_cumprod(), theirs, **tolerance)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
        ({"_class_name": "NoSuchScheduler"}, "NoSuchScheduler"),
        ({"_class_name": 3}, "_class_name"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"thresholding": True}, "thresholding"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "karras and beta"),
        ({"solver_order": 0}, "solver_order"),
        ({"algorithm_type": "dpm"}, "algorithm_type"),
        ({"disable_corrector": 3}, "disable_corrector"),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, "rescale_betas_zero_snr"),
        ({"rescale_betas_zero_snr": True, "_class_name": "DDIMScheduler"}, "rescale_betas_zero_snr"),
        ({"skip_prk_steps": "yes"}, "skip_prk_steps"),
        ({"steps_offset": -1}, "steps_offset"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], fact: str) -> None:
    with pytest.raises(InputError, match=rf"s\.json: .*{fact}"):
        schedule_from_diffusers(FILES["SD 1.5"] | change, "s.json")


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, np.float32)


def test_the_index_says_which_class_it_is(micro_torch_teacher: Path, tmp_path: Path) -> None:
    model = with_scheduler(micro_torch_teacher, tmp_path / "model", FILES["SD 1.5"], "DDIMScheduler")
    assert find_model(model).architectures.schedule.sampler == "ddim"
    model = with_scheduler(micro_torch_teacher, tmp_path / "flow", FILES["SD 1.5"], "FlowMatchEulerDiscreteScheduler")
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler"):
        find_model(model)


@pytest.mark.parametrize("name", ["DDIM without anything", "offset 0", "Euler", "UniPC", "zero SNR"])
def test_what_is_written_does_not_clip_in_diffusers(micro_torch_teacher: Path, tmp_path: Path, name: str) -> None:
    pipeline = load_pipeline(with_scheduler(micro_torch_teacher, tmp_path / "model", FILES[name]))
    written = write_pipeline(tmp_path / "out", pipeline, SaveConfig())
    theirs = StableDiffusionPipeline.from_pretrained(written, safety_checker=None)
    assert type(theirs.scheduler).__name__ == FILES[name]["_class_name"]
    other = DDIMScheduler.from_config(theirs.scheduler.config)
    assert (other.config.clip_sample, other.config.steps_offset) == (False, 1)


@pytest.mark.parametrize("name", FILES)
def test_flax_folders_name_classes_that_exist(
    micro_torch_teacher: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bksdm_jax.pipelines.save.require_flax_expressible", lambda config: None)  # 8 norm groups
    pipeline = load_pipeline(with_scheduler(micro_torch_teacher, tmp_path / "model", FILES[name]))
    if pipeline.schedule.zero_snr or pipeline.schedule.timestep_spacing not in (None, "leading"):
        with pytest.raises(InputError, match=r"format: .*(SNR|timestep_spacing)"):
            write_pipeline(tmp_path / "out", pipeline, SaveConfig("flax"))
        return
    written = write_pipeline(tmp_path / "out", pipeline, SaveConfig("flax"))
    cls = json.loads((written / "model_index.json").read_text())["scheduler"][1]
    scheduler, state = getattr(diffusers, cls).from_pretrained(written / "scheduler")
    np.testing.assert_allclose(state.common.alphas_cumprod, pipeline.schedule.alphas_cumprod(), rtol=1e-4)
    scheduler.set_timesteps(state, 5, (1, 4, 8, 8))
    assert scheduler.config.prediction_type == pipeline.schedule.prediction_type


@pytest.mark.parametrize("name", FULL)
def test_files_that_diffusers_saves_are_read_and_copied(micro_torch_teacher: Path, tmp_path: Path, name: str) -> None:
    """With all their keys, among them infinities."""
    getattr(diffusers, name).from_config(FILES["SD 1.5"]).save_pretrained(tmp_path / "saved")
    file = json.loads((tmp_path / "saved" / "scheduler_config.json").read_text())
    pipeline = load_pipeline(with_scheduler(micro_torch_teacher, tmp_path / "model", file))
    written = write_pipeline(tmp_path / "out", pipeline, SaveConfig())
    again = json.loads((written / "scheduler" / "scheduler_config.json").read_text())
    assert again == file | {"clip_sample": False, "steps_offset": 1}


def test_a_class_that_is_not_sampled_is_read() -> None:
    file = FILES["SD 1.5"] | {"_class_name": "SASolverScheduler", "algorithm_type": "data_prediction"}
    schedule = schedule_from_diffusers(file)
    for sampler in ("ddim", "dpmpp_2m"):
        sampler_calls(sampler, schedule, 5)
    with pytest.raises(InputError, match="ddim"):
        sampler_calls("scheduler", schedule, 5)


def test_runge_kutta_needs_four_steps(micro_torch_teacher: Path, tmp_path: Path) -> None:
    model = with_scheduler(micro_torch_teacher, tmp_path / "model", FILES["Runge-Kutta"])
    networks = find_model(model).architectures
    require_sampler(SamplerConfig(steps=4, resolution=16), networks)
    with pytest.raises(InputError, match="steps: 3"):
        require_sampler(SamplerConfig(steps=3, resolution=16), networks)


@pytest.mark.parametrize(
    "schedule", [ScheduleConfig(), ScheduleConfig(prediction_type="v_prediction", zero_snr=True, sampler="ddim")]
)
def test_a_schedule_survives_its_file(schedule: ScheduleConfig) -> None:
    assert schedule_from_diffusers(schedule_to_diffusers(schedule)) == schedule
