"""What a pipeline costs: against the paper's figures, PyTorch's parameters, and formulas of its own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import Cost, decoder_cost, image_cost, layer_costs, text_encoder_cost
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.clip_json import clip_text_from_transformers, clip_text_to_transformers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.models.attention import Attention
from bksdm_jax.perf import deep_cache_bench
from bksdm_jax.perf.bench import BenchConfig, bench, bench_update
from bksdm_jax.perf.cost_report import CostConfig, cost_report
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import TEXT_ENCODERS, stable_diffusion
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal
from tests import tiny


def test_text_encoder_and_decoder_cost_what_was_published() -> None:
    models = stable_diffusion("v1")
    text, decoder = text_encoder_cost(models.configs["text_encoder"]), decoder_cost(models.configs["vae"], 64)
    assert (text.parameters, text.macs) == (123_060_480, 6_545_882_112)
    assert (decoder.parameters, decoder.macs) == (49_490_179, 1_240_079_532_032)


def test_an_image_costs_what_table_2_says() -> None:
    """25 steps: 9,716 GMACs for SD v1.4, a sum of rounded parts; 9,715.4 exactly."""
    whole = image_cost(stable_diffusion("v1"), 64, 25)["image"]
    assert round(whole.macs / 1e9, 1) == 9715.4


@pytest.mark.parametrize("generation", TEXT_ENCODERS)
def test_parameters_are_pytorchs(generation: str) -> None:
    models = stable_diffusion(generation)
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(**clip_text_to_transformers(TEXT_ENCODERS[generation])))
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    costs = text_encoder_cost(models.configs["text_encoder"]), decoder_cost(models.configs["vae"], 64)
    assert [cost.parameters for cost in costs] == [sum(p.numel() for p in m.parameters()) for m in (text, vae.decoder)]


def test_products_inside_attention_are_counted_in_full_only() -> None:
    x, context = jax.ShapeDtypeStruct((2, 6, 32), jnp.float32), jax.ShapeDtypeStruct((2, 5, 24), jnp.float32)
    alone = sum(layer_costs(Attention(4), x).values(), Cost())
    linear = 2 * 6 * 32 * 32 * 4
    assert (alone.macs, alone.full_macs) == (linear, linear + 2 * 2 * 6 * 6 * 32)
    crossed = sum(layer_costs(Attention(4), x, context).values(), Cost())
    linear = 2 * (2 * 6 * 32 * 32 + 2 * 5 * 24 * 32)
    assert (crossed.macs, crossed.full_macs) == (linear, linear + 2 * 2 * 6 * 5 * 32)


def test_the_full_count_of_a_student_is_smaller() -> None:
    models = stable_diffusion("v1")
    student = plan_removal(models.denoiser, PRESETS["bk_tiny"].removed).student
    whole, left = (image_cost(m, 64, 1) for m in (models, models.with_denoiser(student)))
    assert left["U-Net"].macs == PRESETS["bk_tiny"].macs["v1"]
    assert left["U-Net"].macs < left["U-Net"].full_macs < whole["U-Net"].full_macs
    assert left["VAE decoder"] == whole["VAE decoder"] != Cost()


def test_the_report_lists_every_model(micro_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"text encoder": 0.001, "decoder": 0.002, "U-Net of teacher": 0.01, "U-Net of mid_block": 0.005}

    def timed(what: str, program: Callable[..., Any], *inputs: Any, repeats: int) -> float:
        """What `time_program` is given runs; how long it takes is known here."""
        assert jax.eval_shape(program, *inputs).shape[0] == 1
        return seconds[what]

    monkeypatch.setattr("bksdm_jax.perf.cost_report.time_program", timed)
    report = cost_report(CostConfig(pipeline=str(micro_teacher), students="mid_block", latency=True))
    params = find_model(micro_teacher).read().params
    for said in ("VAE decoder", "16x16 pixels", *(f"{trees.count(params[key]):,}" for key in ("unet", "text_encoder"))):
        assert said in report, said
    rows = [line.split() for line in report.splitlines()]
    assert ["teacher", "10.0", "100.0%", "253.0", "100.0%"] in rows  # 1 + 25 * 10 + 2 ms
    assert ["mid_block", "5.0", "50.0%", "128.0", "50.6%"] in rows


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (CostConfig(), ["generation: ", "pipeline"]),
        (CostConfig(generation="v3"), ["generation: ", "'v3'", "v1"]),
        (CostConfig(generation="v1", students="bk_smal"), ["'bk_smal'", "'bk_small'"]),
        (CostConfig(generation="v1", students="bk_tiny", resolution=520), ["resolution: ", "520", "64"]),
    ],
)
def test_bad_settings_are_refused(config: CostConfig, facts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        cost_report(config)
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.slow
def test_bench_prints_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = {
        "unet": unet_from_diffusers(tiny.MICRO),
        "vae": vae_from_diffusers(tiny.MICRO_VAE),
        "text_encoder": clip_text_from_transformers(tiny.text_encoder().config.to_dict()),
    }
    small = Architectures(configs, ScheduleConfig())
    monkeypatch.setattr("bksdm_jax.perf.bench.stable_diffusion", lambda generation: small)
    table = bench(BenchConfig(student="mid_block", batch_size=2, resolution=16, steps=2, repeats=1, cut=1)).lines
    assert table[0].startswith("mid_block of SD v1, batch 2, float32, 16x16 pixels, on cpu")
    assert [line.split("  ")[0] for line in table[2:]] == ["U-Net call", "shallow call, cut 1", "image, 2 steps"]
    assert all(line.endswith("-") for line in table[2:])  # no peak is known


@pytest.mark.slow
def test_bench_prints_what_deep_cache_saves(micro_torch_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_cache_bench, "_INTERVALS", (0, 2))
    config = BenchConfig(model=str(micro_torch_teacher), steps=2, repeats=1, guidance_scale=1.0)
    _, _, exact, cached = deep_cache_bench.bench_deep_cache(config).splitlines()
    assert exact.split()[:2] == ["all", "-"]
    assert [float(cell) for cell in exact.split()[-2:]] == [0, 0]
    assert cached.startswith("1 in 2")
    assert float(cached.split()[-2]) > 0
    with pytest.raises(InputError, match="cut"):
        deep_cache_bench.bench_deep_cache(dataclasses.replace(config, cut=99))


@pytest.mark.slow
def test_bench_times_an_update() -> None:
    config = BenchConfig("update", student="bk_base", widths=(32, 64, 128, 128), batch_size=2, resolution=64, repeats=2)
    table = bench_update(config).lines
    assert table[0].startswith("bk_base of SD v1, widths 32-64-128-128, batch 2, float32, 64x64 pixels, on cpu")
    assert len(table) == 3
    assert table[2].startswith("update")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"widths": (32, 64)}, r"widths.*\(32, 64\)"),
        ({"widths": (32, 64, 128, "128")}, "widths.*'128'"),
        ({"widths": (32, 64, 128, 100)}, "widths.*100"),
        ({"remat": "ful"}, "remat.*'ful'.*'full'"),
        ({"attention": "flsh"}, "attention.*'flsh'.*'flash'"),
        ({"batch_size": 0}, "batch_size.*0"),
    ],
)
def test_what_cannot_be_timed(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_update(BenchConfig("update", **settings))


@pytest.mark.parametrize(("student", "cut"), [("sd", 12), ("bk_tiny", 5), ("sd", -2)])
def test_cuts_that_a_network_does_not_have_are_not_timed(student: str, cut: int) -> None:
    with pytest.raises(InputError, match=f"cut is {cut}"):
        bench(BenchConfig(student=student, cut=cut))
