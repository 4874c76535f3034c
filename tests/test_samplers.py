"""Samplers and guidance against Diffusers' schedulers and pipelines, and against formulas."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.guidance import guided
from bksdm_jax.diffusion.noise import as_noise, image_keys
from bksdm_jax.diffusion.samplers import SAMPLERS, SCHEDULER, sampler_calls
from bksdm_jax.diffusion.schedule import SPACINGS, ScheduleConfig, add_noise
from bksdm_jax.diffusion.solver import run, solve, step
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.sampling.generate import starting_noise
from bksdm_jax.sampling.text_to_image import first_step
from tests import sampling_oracle, tiny
from tests.arrays import stand_in

EITHER = [False, True]
SIGMAS = ["", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
FINAL = {"final_sigmas_type": ["zero", "sigma_min"]}
RESCALE = {"rescale_betas_zero_snr": EITHER}
COMMON = {
    "betas": [tiny.SD_BETAS, {"beta_schedule": "squaredcos_cap_v2"}],
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "timestep_spacing": list(SPACINGS),
    "steps": [1, 2, 10, 25, 50],
    "strength": [None, 0.3, 0.8],
}
CLASSES: dict[str, dict[str, list[Any]]] = {
    "DDIMScheduler": RESCALE | {"set_alpha_to_one": EITHER, "eta": [0.0, 0.5, 1.0]},
    "DDPMScheduler": RESCALE | {"variance_type": ["fixed_small", "fixed_small_log", "fixed_large"]},
    "PNDMScheduler": {"skip_prk_steps": EITHER, "set_alpha_to_one": EITHER},
    "EulerDiscreteScheduler": RESCALE
    | FINAL
    | {
        "spacing": SIGMAS,
        "interpolation_type": ["linear", "log_linear"],
        "timestep_type": ["discrete", "continuous"],
    },
    "EulerAncestralDiscreteScheduler": RESCALE,
    "HeunDiscreteScheduler": {"spacing": SIGMAS, "clip_sample": EITHER},
    "DPMSolverMultistepScheduler": RESCALE
    | FINAL
    | {
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"],
        "solver_type": ["midpoint", "heun"],
        "solver_order": [1, 2, 3],
        "lower_order_final": EITHER,
        "euler_at_final": EITHER,
        "spacing": [*SIGMAS, "use_lu_lambdas"],
        "lambda_min_clipped": [-math.inf, -5.1],
    },
    "UniPCMultistepScheduler": RESCALE
    | FINAL
    | {
        "solver_type": ["bh1", "bh2"],
        "solver_order": [1, 2, 3],
        "lower_order_final": EITHER,
        "spacing": SIGMAS,
        "disable_corrector": [[], [0, 1]],
    },
    "LCMScheduler": RESCALE | {"original_inference_steps": [50, 60]},
}
MANY = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # half a million combinations


def predict(x: jax.Array, t: jax.Array) -> jax.Array:
    return stand_in(x, t, jnp)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, np.float32)


def require_close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= tolerance * np.abs(np.asarray(theirs)).max()


def require_as_diffusers(name: str, choice: dict[str, Any]) -> None:
    """The same latents, or both refuse."""
    file = choice | choice["betas"] | {"_class_name": name, "steps_offset": 1}
    steps, strength, eta = file.pop("steps"), file.pop("strength"), file.pop("eta", 0.0)
    file.pop("betas")
    if spacing := file.pop("spacing", ""):
        file[spacing] = True
    if file.get("rescale_betas_zero_snr") and file["prediction_type"] == "epsilon":
        file["prediction_type"] = "v_prediction"
    generator = np.random.default_rng(0)
    noise, latents = generator.standard_normal((2, 1, 2, 2, 3), np.float32)
    added = generator.standard_normal((110, 1, 2, 2, 3), np.float32)
    schedule = schedule_from_diffusers(file)

    try:
        begin = None if strength is None else first_step(steps, strength)
        calls = sampler_calls(SCHEDULER, schedule, steps, begin, eta)
    except InputError:
        calls = None
    try:
        scheduler = sampling_oracle.scheduler_of(file)
        theirs = sampling_oracle.sample(scheduler, steps, noise, added, eta, strength, latents)
    except Exception:  # of many types
        assert calls is None, (steps, strength, file)
        return
    if calls is None:
        assert strength is not None or not np.isfinite(theirs).all(), (steps, strength, file)
        return
    ours, largest = sampling_oracle.in_numpy(calls, noise, added, None if strength is None else latents)
    if not np.isfinite(theirs).all():  # -inf * 0 at the end, or the root of a rounding error below 0
        assert file.get("solver_type") == "bh1" or (eta == 1 and "DDIM" in name), (steps, strength, file)
    elif not (largest > 1e2 and ("Heun" in name or "PNDM" in name)):  # they overshoot, and `stand_in`'s sine is chaos
        sampling_oracle.require_close(ours, theirs, largest, schedule, calls)


@pytest.mark.parametrize("name", CLASSES)
def test_latents_are_those_of_diffusers_for_all_pairs_of_options(name: str) -> None:
    for choice in sampling_oracle.covering(COMMON | CLASSES[name], 2):
        require_as_diffusers(name, choice)


def combinations(name: str) -> Iterator[dict[str, Any]]:
    options = COMMON | CLASSES[name]
    if name in MANY:
        return sampling_oracle.covering(options, 3)
    return (dict(zip(options, values, strict=True)) for values in itertools.product(*options.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_latents_are_those_of_diffusers_for_all_combinations(name: str) -> None:
    for choice in combinations(name):
        require_as_diffusers(name, choice)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_scan_computes_what_the_table_says(sampler: str) -> None:
    calls = sampler_calls(sampler, ScheduleConfig(), 6)
    noise, added, latents = normal(2, 4, 4, 4), normal(len(calls), 2, 4, 4, 4), normal(2, 4, 4, 4)
    ours = jax.jit(lambda x, more: solve(calls, predict, x, step_noise=more))(noise, added)
    require_close(ours, sampling_oracle.in_numpy(calls, noise, added)[0], 1e-4)
    calls = sampler_calls(sampler, ScheduleConfig(), 6, begin=2)
    ours = solve(calls, predict, jnp.asarray(noise), jnp.asarray(latents), jnp.asarray(added))
    require_close(ours, sampling_oracle.in_numpy(calls, noise, added, latents)[0], 1e-4)


@pytest.mark.parametrize("sampler", ["pndm", "ddim", "heun", "unipc", "dpmpp_2m_sde"])
def test_runs_in_parts_and_single_steps_equal_the_run(sampler: str) -> None:
    calls = sampler_calls(sampler, ScheduleConfig(), 5)
    noise, added = jnp.asarray(normal(2, 4, 4, 4)), jnp.asarray(normal(len(calls), 2, 4, 4, 4))
    whole = solve(calls, predict, noise, step_noise=added)

    def numbered(memory: Any, x: jax.Array, t: jax.Array, number: jax.Array) -> tuple[Any, jax.Array]:
        return [*memory[1:], number], predict(x, t)

    begun = calls.begin(noise)
    first, memory, estimates = run(
        calls.between(0, 3), numbered, begun, added, [jnp.array(-1), jnp.array(-1)], estimates=True
    )
    assert [int(n) for n in memory] == [1, 2]
    assert estimates.shape == (3, *noise.shape)
    second, _, none = run(calls.between(3), numbered, first, added, memory, number=3)
    assert none is None
    require_close(second[0], whole)

    slots = begun
    for i in range(len(calls)):
        out = predict(calls.scales[i].astype(np.float32) * slots[0], jnp.float32(calls.timesteps[i]))
        start, weights = (jnp.asarray(rows[i], jnp.float32) for rows in (calls.starts, calls.weights))
        slots, estimate = step(calls, slots, out, start, weights, added[i])
        if i < 3:
            require_close(estimates[i], estimate)
    require_close(slots[0], whole)


def test_steps_count_the_calls_that_belong_together() -> None:
    steps = {name: sampler_calls(name, ScheduleConfig(), 5).steps.tolist() for name in ("ddim", "pndm", "heun")}
    assert steps["ddim"] == [0, 1, 2, 3, 4]
    assert steps["pndm"] == [0, 0, 1, 2, 3, 4]
    assert steps["heun"] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    runge_kutta = sampler_calls("pndm", ScheduleConfig(skip_prk_steps=False), 5).steps.tolist()
    assert runge_kutta == [0] * 4 + [1] * 4 + [2] * 4 + [3, 4]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_network_gives_back_the_image(sampler: str) -> None:
    """It knows z_0; no oracle is needed to say where a run must end."""
    schedule = ScheduleConfig(prediction_type="v_prediction", set_alpha_to_one=True)
    calls = sampler_calls(sampler, schedule, 20)
    wanted, abar = jnp.asarray(normal(2, 4, 4, 4)), jnp.asarray(schedule.alphas_cumprod(), jnp.float32)

    def knows(x: jax.Array, t: jax.Array) -> jax.Array:
        level = jnp.interp(t, jnp.arange(1000.0), abar)
        noise = (x - jnp.sqrt(level) * wanted) / jnp.sqrt(1 - level)
        return jnp.sqrt(level) * noise - jnp.sqrt(1 - level) * wanted

    noise = jnp.asarray(normal(2, 4, 4, 4))
    added = jnp.asarray(normal(len(calls), 2, 4, 4, 4))
    assert np.abs(solve(calls, knows, noise, step_noise=added) - wanted).max() < 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m_sde", "lcm"])
def test_noise_from_keys_depends_on_each_images_key_alone(sampler: str) -> None:
    calls = sampler_calls(sampler, ScheduleConfig(), 4)
    keys, indices = image_keys(2, jnp.arange(3, dtype=jnp.uint32)), jnp.arange(3, dtype=jnp.uint32)
    noise = starting_noise(2, indices, (4, 4, 4))
    together = solve(calls, predict, noise, step_noise=keys)
    require_close(solve(calls, predict, noise[1:2], step_noise=keys[1:2]), together[1:2])
    others = solve(calls, predict, noise, step_noise=image_keys(3, indices))
    assert (np.abs(np.asarray(others - together)).max(axis=(1, 2, 3)) > 0.01).all()
    with pytest.raises(ValueError, match="noise"):
        solve(calls, predict, noise)


def test_an_image_run_begins_from_noised_latents() -> None:
    schedule = ScheduleConfig()
    noise, latents = jnp.asarray(normal(2, 4, 4, 4)), jnp.asarray(normal(2, 4, 4, 4))
    calls = sampler_calls("ddim", schedule, 10, begin=4)
    level = jnp.full(2, schedule.alphas_cumprod()[int(calls.timesteps[0])], jnp.float32)
    require_close(calls.begin(noise, latents)[0], add_noise(latents, noise, level))
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("sampler", "schedule", "steps", "facts"),
    [
        ("ddim", {}, 0, ("steps", "0", "1000")),
        ("ddim", {}, 1001, ("steps", "1001", "1000")),
        ("pndm", {"skip_prk_steps": False}, 3, ("steps", "3", "skip_prk_steps")),
        ("pndm", {"zero_snr": True, "prediction_type": "v_prediction"}, 5, ("pndm", "zero terminal SNR")),
        ("euler_ancestral", {"prediction_type": "sample"}, 5, ("euler_ancestral", "z_0")),
        ("lcm", {}, 51, ("steps", "51", "50")),
        (SCHEDULER, {"sampler": ""}, 5, ("sampler", "dpmpp_2m_karras")),
        ("ddim", {"steps_offset": 5}, 1000, ("steps_offset", "5", "1004", "999")),
        ("euler_ancestra", {}, 5, ("euler_ancestra", "'euler_ancestral'")),
    ],
)
def test_what_has_no_run_is_refused(sampler: str, schedule: dict[str, Any], steps: int, facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        sampler_calls(sampler, ScheduleConfig(**schedule), steps)
    assert all(fact in str(error.value) for fact in facts), error.value


def test_only_ddim_takes_eta() -> None:
    with pytest.raises(InputError, match=r"eta.*0\.5.*euler"):
        sampler_calls("euler", ScheduleConfig(), 5, eta=0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [("algorithm_type", "dpmsolver"), ("variance_type", "learned_range"), ("predict_x0", False), ("solver_order", 4)],
)
def test_options_that_are_not_implemented_are_refused_by_name(option: str, value: Any) -> None:
    classes = {"variance_type": "DDPMScheduler", "predict_x0": "UniPCMultistepScheduler"}
    file = tiny.SD_BETAS | {option: value, "_class_name": classes.get(option, "DPMSolverMultistepScheduler")}
    schedule = schedule_from_diffusers(file)
    with pytest.raises(InputError, match=f"{option} {value}"):
        sampler_calls(SCHEDULER, schedule, 5)
    sampler_calls("ddim", schedule, 5)


def test_guidance_takes_conditioning_of_several_arrays() -> None:
    def network(x: jax.Array, t: jax.Array, conditioning: dict[str, Any]) -> jax.Array:
        context, pooled = conditioning["context"], conditioning["added"]["pooled"]
        return x * context.mean(axis=(1, 2))[:, None, None, None] + pooled.sum(axis=1)[:, None, None, None] + t[0]

    def conditioning() -> dict[str, Any]:
        return {"context": jnp.asarray(normal(2, 5, 6)), "added": {"pooled": jnp.asarray(normal(2, 3))}}

    x, wanted, negative = jnp.asarray(normal(2, 8, 8, 4)), conditioning(), conditioning()
    times = jnp.full((2,), 7.0)
    with_text, without = network(x, times, wanted), network(x, times, negative)
    expected = without + 4.0 * (with_text - without)
    require_close(guided(network, wanted, negative, 4.0)(x, times[0]), expected)
    theirs = (torch.from_numpy(np.array(array)) for array in (expected, with_text))
    require_close(guided(network, wanted, negative, 4.0, 0.7)(x, times[0]), rescale_noise_cfg(*theirs, 0.7))


@pytest.mark.parametrize(("conditioning", "scale", "images"), [({}, 7.5, 2), ("text", 1.0, 2), ("text", 7.5, 4)])
def test_what_cannot_be_guided_runs_a_single_batch(conditioning: Any, scale: float, images: int) -> None:
    if conditioning:
        conditioning = {"context": jnp.ones((2, 5, 6))}
    seen = []

    def network(x: jax.Array, t: jax.Array, given: Any) -> jax.Array:
        seen.append((len(x), len(t), *(len(leaf) for leaf in jax.tree.leaves(given))))
        return x

    x = jnp.asarray(normal(2, 8, 8, 4))
    require_close(guided(network, conditioning, conditioning, scale)(x, jnp.asarray(3)), x)
    assert [set(lengths) for lengths in seen] == [{images}]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alphas_match_diffusers(beta_schedule: str) -> None:
    scheduler = DDIMScheduler(beta_schedule=beta_schedule)
    ours = schedule_from_diffusers(scheduler.config).alphas_cumprod()
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=2e-5)


def test_starting_noise_depends_on_seed_and_number_alone() -> None:
    noise = np.asarray(starting_noise(3, jnp.arange(6, dtype=jnp.uint32), (8, 8, 4)))
    alone = np.asarray(starting_noise(3, jnp.array([4], jnp.uint32), (8, 8, 4)))
    np.testing.assert_array_equal(noise[4:5], alone)
    assert len({row.tobytes() for row in noise}) == 6
    assert not np.array_equal(noise, starting_noise(4, jnp.arange(6, dtype=jnp.uint32), (8, 8, 4)))
    np.testing.assert_array_equal(as_noise(image_keys(3, jnp.arange(6, dtype=jnp.uint32)), (8, 8, 4)), noise)
    np.testing.assert_array_equal(as_noise(noise, (8, 8, 4)), noise)
