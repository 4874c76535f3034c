"""Plans of fine-tunings: what is trained decides memory and work, and class images double the latter."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import pytest

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.perf import finetuning as finetuning_of
from bksdm_jax.perf.compiled_step import argument_bytes, planned_step
from bksdm_jax.perf.finetuning import finetuning, open_finetuning
from bksdm_jax.perf.plan import largest_lines, plan_run, work_lines
from bksdm_jax.perf.planned import PlannedRun
from bksdm_jax.perf.work import Work, count_work
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.tasks.finetune.config import (
    AdapterConfig,
    FinetuneConfig,
    FinetunePlanConfig,
    PriorConfig,
    require_finetune,
    require_finetune_plan,
)
from bksdm_jax.tasks.finetune.trained import Trained, what_is_trained
from bksdm_jax.training.config import OptimizerConfig
from bksdm_jax.training.sharding import make_mesh
from configs import dreambooth, lora
from launch.values import to_dataclass
from tests import micro, tiny
from tests.binaries import settings, succeed
from tests.test_planning import SIXTEEN, compiled

FULL = FinetuneConfig("", "", resolution=16, dtype="float32", steps=600, optimizer=OptimizerConfig(ema_decay=0.0))
LORA = dataclasses.replace(FULL, adapter=AdapterConfig(rank=2))
PAIRS = dataclasses.replace(FULL, batch_size=64, prior=PriorConfig(weight=1.0))
COUNTERS = 2 * 4  # bytes: the number of updates, for AdamW and for the learning rate


@functools.cache
def planned(config: FinetuneConfig) -> PlannedRun:
    return finetuning(config, what_is_trained(config, micro.networks()))


@functools.cache
def parts(config: FinetuneConfig) -> dict[str, int]:
    """Bytes that stay allocated, on one device."""
    return argument_bytes(planned(config), planned_step(planned(config), make_mesh(1, jax.devices()[:1])))


def count(run: PlannedRun) -> int:
    """How many numbers are trained."""
    return trees.count(run.objective(run.config).params)


def opened(module: Any, variants: str, **plan: Any) -> Any:
    config = module.get_config(variants)
    config.plan.update(plan)
    return open_finetuning(to_dataclass(FinetuneConfig, config, may_be_empty=("model", "data")))


def test_the_optimiser_of_a_lora_is_as_much_smaller_as_its_adapters() -> None:
    full, adapted, whole = parts(FULL), parts(LORA), micro.networks().parameter_shapes()
    trained = count(planned(FULL))
    assert trained == trees.count([whole["unet"], whole["text_encoder"]])
    assert 0 < 20 * count(planned(LORA)) < trained
    assert (full["trained weights"], adapted["adapters"]) == (4 * trained, 4 * count(planned(LORA)))
    moments = [sizes["optimiser"] - COUNTERS for sizes in (full, adapted)]
    assert moments[1] * trained == moments[0] * count(planned(LORA))
    assert moments[0] == 8 * trained
    assert full["frozen networks"] == 4 * trees.count(whole["vae"])
    assert adapted["frozen networks"] == 4 * trees.count(whole)


def test_a_moving_average_is_listed_if_one_is_kept() -> None:
    assert list(parts(LORA)) == ["frozen networks", "adapters", "optimiser", "two batches"]
    averaged = parts(dataclasses.replace(LORA, optimizer=OptimizerConfig(ema_decay=0.99)))
    assert averaged == parts(LORA) | {"moving average": parts(LORA)["adapters"]}


def test_less_is_trained_of_fewer_modules() -> None:
    of_unet = dataclasses.replace(FULL, text_encoder=False)
    some = dataclasses.replace(of_unet, only=("attn2.to_k", "attn2.to_v"))
    assert count(planned(some)) < count(planned(of_unet)) < count(planned(FULL))
    assert parts(some)["frozen networks"] > parts(of_unet)["frozen networks"] > parts(FULL)["frozen networks"]
    assert f"{count(planned(some)):,} weights of U-Net are trained" in planned(some).notes


@pytest.mark.parametrize(
    ("config", "forwards", "passes"),
    [
        (FULL, 3, "U-Net forward and backward"),
        (LORA, 2, "U-Net forward and backward without gradients of weights"),
        (dataclasses.replace(FULL, only=("to_q",)), 2, "U-Net forward and backward without gradients of weights"),
        (PAIRS, 6, "U-Net forward and backward"),
        (dataclasses.replace(PAIRS, remat="full"), 8, "U-Net twice forward and backward"),
    ],
)
def test_passes_are_those_that_are_needed(config: FinetuneConfig, forwards: int, passes: str) -> None:
    run = planned(config)
    assert run.forwards == ((micro.networks().denoiser, forwards),)
    assert run.passes == passes


def test_class_images_come_in_addition() -> None:
    alone = parts(dataclasses.replace(PAIRS, prior=PriorConfig()))
    signals = 2 * 4  # of two batches, for one device
    assert parts(PAIRS)["two batches"] - signals == 2 * (alone["two batches"] - signals)
    run = planned(PAIRS)
    assert any("batch_size counts instance images" in note for note in run.notes)
    lines = work_lines(run, Work(image=275e12, update=275e12, passes=275e12), compiled(4), SIXTEEN)
    assert lines[0].startswith("279.297 TFLOP per pair; U-Net forward and backward 275.000 ")
    assert "per pair of a micro-batch" in lines[1]
    line, *_ = largest_lines(run, compiled(4), SIXTEEN, compiled)
    assert line.startswith("each pair of a micro-batch takes another 2.00 GiB, so 10 per device fit")


def test_short_runs_are_told_in_minutes() -> None:
    run = planned(PAIRS).resized(dtype="bfloat16", plan=FinetunePlanConfig(price=0.001))
    *_, step, time, cost = work_lines(run, Work(275e12, 275e12, 275e12), compiled(4), SIXTEEN)
    assert step == "roofline: 5.000 s, compute-bound, 12.8 pairs/s"
    assert time == "600 updates: 50.00 minutes by the roofline, 125.00 if compute is at 40% of peak"
    assert cost == "cost at 0.001 per chip and hour: 0.01 and 0.03"


def test_variants_name_the_networks_if_no_model_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning_of, "what_is_trained", lambda config, networks: Trained(networks))
    monkeypatch.setattr(finetuning_of, "finetuning", lambda config, trained: trained.networks)  # spares seconds
    first, second = (stable_diffusion(name) for name in ("v1", "v2"))
    base = plan_removal(first.denoiser, removed_blocks("bk_base")).student
    assert opened(lora, "v1") == first
    assert opened(dreambooth, "v2,unet_only") == opened(lora, "v2_base") == second
    assert opened(lora, "rank_4", student="bk_base") == first.with_denoiser(base)
    assert len(opened(dreambooth, "shapes", student="bk_tiny").denoiser.down) == 3


def test_a_plan_needs_no_prompt() -> None:
    config = to_dataclass(FinetuneConfig, dreambooth.get_config("v1"), may_be_empty=("model", "data"))
    require_finetune_plan(config)
    with pytest.raises(InputError, match=r"prior\.prompt"):
        require_finetune(config)


def test_runs_that_cannot_be_planned_are_one_line(micro_teacher: Path) -> None:
    config = dataclasses.replace(LORA, model=str(micro_teacher), batch_size=8)
    for changes, named in (
        ({"fsdp": 3}, "fsdp: 3.* 8 devices"),
        ({"batch_size": 12}, "batch_size: 12.* 8"),
        ({"plan": FinetunePlanConfig(price=-1.0)}, "plan.price.*-1.0"),
        ({"model": "", "plan": FinetunePlanConfig("v3")}, "plan.generation.*'v3'"),
        ({"plan": FinetunePlanConfig(student="bk_smal")}, "student: 'bk_smal'.*'bk_small'"),
        ({"plan": FinetunePlanConfig(student="down_blocks.7")}, "student: .*'down_blocks.7'"),
        ({"adapter": AdapterConfig(rank=2, modules=("to_w",))}, "adapter.modules: .*'to_w'"),
        ({"resolution": 13}, "resolution: 13"),
    ):
        with pytest.raises(InputError, match=named):
            plan_run(dataclasses.replace(config, **changes))


def rows(printed: str) -> dict[str, float]:
    """The table of memory."""
    table = printed.partition("memory of one device")[2].partition("\n\n")[0]
    return {line[:22].strip(): float(line[22:]) for line in table.splitlines() if line.startswith("  ")}


def test_a_lora_is_planned_on_this_machine(pico_teacher: Path) -> None:
    small = {"model": pico_teacher, "plan__student": tiny.PICO_STUDENT, "resolution": 16, "batch_size": 4}
    printed = succeed("plan", settings("lora.py:shapes", **small))
    assert f"mid_block of {pico_teacher}, 16 px from cached latents, float32" in printed
    assert "numbers of adapters of U-Net and text encoder are trained" in printed
    assert "4 images per update: 1 micro-batch(es), 4 on each of 1 device(s)" in printed
    assert "memory of one device, MiB" in printed
    found = rows(printed)
    assert "moving average" not in found
    assert found["total"] == pytest.approx(sum(size for name, size in found.items() if name != "total"), abs=0.05)
    assert found["adapters"] < found["frozen networks"] / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "variants"), [(dreambooth, "unet_only,no_prior"), (dreambooth, ""), (lora, ""), (lora, "unet_only")]
)
def test_work_is_that_of_the_passes(module: Any, variants: str) -> None:
    """At full size; nothing is compiled."""
    run = opened(module, f"v1,{variants}".rstrip(","), student="bk_base")
    work = count_work(run)
    assert work.image / work.passes == pytest.approx(1.0, abs=0.1)  # adapters, text encoder, norms' own gradients
    assert 20 < work.update / count(run) < 40
