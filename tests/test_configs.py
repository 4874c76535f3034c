"""Every run that the configs name can be had, and is what its name says."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.analysis.attribution_config import AttributionConfig
from bksdm_jax.base.errors import InputError
from bksdm_jax.data.prepare.config import PrepareConfig
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.evaluation.config import SCORING, ReferenceConfig, SampleAndScoreConfig, ScoreConfig
from bksdm_jax.experiments.config import ComparisonConfig, TradeoffConfig
from bksdm_jax.experiments.subjects_config import SubjectsConfig
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.perf.config import BenchConfig, CostConfig
from bksdm_jax.pipelines.generations import GENERATIONS, TEACHERS
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.config import PruneConfig
from bksdm_jax.pruning.presets import PRESETS, PUBLISHED, UNTRAINED, UPDATES
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.pruning.targets import RANDOM, read_target
from bksdm_jax.reports.config import ReportConfig
from bksdm_jax.shapes_teacher.config import TeacherConfig
from bksdm_jax.tasks.distill.config import DistillConfig, require_generation, require_settings
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.tasks.finetune.config import FinetuneConfig, require_finetune
from configs import bench as benchmarks
from configs import distill as runs
from configs import dreambooth, lora
from configs import reference as references
from configs import sweep as sweeps
from launch.command import to_dataclass
from launch.defaults import defaults
from launch.runs import SweepConfig, read_run

SETTINGS = (
    *(BenchConfig, ComparisonConfig, CostConfig, PrepareConfig, PruneConfig, SampleAndScoreConfig, ScoreConfig),
    *(ReferenceConfig, ReportConfig, SweepConfig, TeacherConfig, DistillConfig, TradeoffConfig),
    *(AttributionConfig, FinetuneConfig, SubjectsConfig),
)
NAMED = ("teacher=DIR", "data=DIR")


def run(variants: str) -> DistillConfig:
    return read_run(variants, NAMED)


@pytest.mark.parametrize("name", runs.VARIANTS)
def test_every_variant_is_a_run(name: str) -> None:
    require_settings(run(name))


@pytest.mark.parametrize("module", [dreambooth, lora])
def test_every_variant_of_a_fine_tuning_is_a_run(module: Any) -> None:
    for model in module.MODELS:
        for name in module.VARIANTS.keys() - set(module.MODELS):
            config = module.get_config(f"{model},{name}")
            config.model = config.data = "DIR"
            config.prior.prompt = "a dog"
            require_finetune(to_dataclass(FinetuneConfig, config))


def test_dreambooth_is_the_papers() -> None:
    config = dreambooth.get_config("v1,lora")
    assert (config.steps, config.batch_size, config.resolution, config.random_crop) == (800, 1, 512, True)
    assert (config.prior.weight, config.prior.images, config.optimizer.learning_rate) == (1.0, 200, 1e-4)
    own = config.adapter
    assert (own.rank, own.alpha, own.modules) == (16, 27.0, ("to_q", "to_v"))
    assert (own.text_rank or own.rank, own.text_alpha, own.text_modules) == (16, 17.0, ("q_proj", "v_proj"))
    assert dreambooth.get_config("v1").optimizer.learning_rate == 1e-6
    assert config.text_encoder


@pytest.mark.parametrize("module", [runs, dreambooth, lora])
def test_the_manual_names_every_variant(module: Any) -> None:
    for name in module.VARIANTS:
        assert name in module.__doc__, name


@pytest.mark.parametrize("variants", PUBLISHED)
def test_published_scores_are_of_runs(variants: str) -> None:
    config = run(variants)
    named = re.search(r"batch_(\d+)", variants)
    assert config.batch_size == (int(named[1]) if named else {"v1": 256, "v2_base": 128}[config.generation])
    assert config.steps == UPDATES
    assert config.student in variants


def test_untrained_scores_are_of_presets() -> None:
    for name in UNTRAINED:
        generation, student = name.split(",")
        assert generation in GENERATIONS
        assert student in PRESETS


def test_the_readme_has_the_published_scores() -> None:
    """Rows of its tables: variants in the first cell; `...,` stands for the generation that follows the scores."""
    found = 0
    for line in (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").splitlines():
        scores = re.search(r"(\d+\.\d+) / (\d+\.\d+) / (\.\d+)(?: \((\w+)\))?", line)
        if scores and line.startswith("| `"):
            variants = line.split("`")[1].replace("...", scores[4] or "")
            assert tuple(map(float, scores.groups()[:3])) == PUBLISHED[variants], line
            found += 1
    assert found >= 6


@pytest.mark.parametrize("generation", runs.GENERATIONS)
@pytest.mark.parametrize("name", sweeps.RUNS)
def test_every_sweep_has_runs_for_every_generation(generation: str, name: str) -> None:
    config = sweeps.get_config(f"{generation},{name}")
    scores = "a folder" if name == "criteria" else ""
    found = [*SweepConfig(tuple(config.runs), (*config.settings, *NAMED), scores).read().values()]
    assert len(found) == len(sweeps.RUNS[name])
    assert len({dataclasses.astuple(run) for run in found}) == len(found)
    teacher = GENERATIONS.get(generation)
    unet = unet_from_diffusers(TEACHERS[teacher[0]]) if teacher else find_model("shapes_teacher").architectures.denoiser
    for one in found:
        require_settings(one)
        assert one.batch_size % one.accumulation == 0
        target = read_target(one.student)
        if target is None or target.criterion == RANDOM:
            assert plan_removal(unet, removed_from(unet, one.student, "")).removed
        assert one.generation == (generation if teacher else "")


def test_runs_are_what_they_are_called() -> None:
    assert (run("v1,batch_64").batch_size, run("v1,batch_64").accumulation) == (64, 1)
    assert (run("v2_base,batch_64").batch_size, run("v2_base,batch_64").accumulation) == (64, 2)
    assert run("batch_64,shapes").batch_size == 8
    assert run("lr_2.5e-4,v1").optimizer.learning_rate == 2.5e-4
    assert run("lr_2.5e-4,shapes").optimizer.learning_rate == pytest.approx(2.5e-3)
    assert run("v1,pairs_213k").examples == 212_776
    assert run("v1,no_kd").loss.distils is False
    assert run("v1,no_feature").loss.output == 1
    assert run("runlocal,v2").resolution == 64


@pytest.mark.parametrize(
    ("variants", "settings", "facts"),
    [
        ("v1,batch_64,batch_128", (), ("batch_64", "batch_128")),
        ("v1,lr_1e-6", (), ("lr_1e-6", "'lr_1e-5'")),
        ("v1", ("stepz=3",), ("settings", "stepz=3", "config.steps")),
        ("v1", ("steps=many",), ("steps=many", "whole number")),
        ("v1", ("loss.tusk=1",), ("loss.tusk=1", "loss.task")),
        ("v1", ("loss.task.x=1",), ("loss.task.x=1",)),
        ("v1", ("loss=1",), ("loss=1",)),
        ("v1", ("flip=perhaps",), ("flip=perhaps", "yes, no")),
        ("v1", ("steps",), ("'steps'", "KEY=VALUE")),
        ("v1", ("=3",), ("'=3'", "KEY=VALUE")),
        ("v1", ("sheets.prompts=a b",), ("sheets.prompts=a b", "list")),
        ("v1", ("teacher=",), ("v1", "teacher=DIR")),
    ],
)
def test_mistakes_are_one_line(variants: str, settings: tuple[str, ...], facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as error:
        read_run(variants, (*NAMED, *settings))
    assert "\n" not in str(error.value)
    assert all(fact in str(error.value) for fact in facts), error.value


@pytest.mark.parametrize(
    ("variants", "facts"),
    [("update,smal,bk_base", ("'smal'", "small")), ("v1,v2", ("v1", "v2")), ("data,update", ("data", "update"))],
)
def test_no_such_benchmark(variants: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 what it names is looked at
        benchmarks.get_config(variants)
    assert all(fact in str(error.value) for fact in facts), error.value


def test_references_are_those_of_the_protocols() -> None:
    assert set(references.VARIANTS) == set(SCORING)
    for name, wanted in SCORING.items():
        config = to_dataclass(ReferenceConfig, references.get_config(name), may_be_empty=("images",))
        assert (config.protocol, config.count, config.size) == (name, wanted.images, wanted.size)
        assert config.of_prompts == (wanted.reference == wanted.images)
        assert name in references.__doc__


def test_a_benchmark_is_what_it_is_called() -> None:
    config = benchmarks.get_config("bk_base,small,update")
    assert (config.what, config.student, config.widths) == ("update", "bk_base", (32, 64, 128, 128))
    config = benchmarks.get_config("finetune,lora")
    assert (config.what, config.rank, benchmarks.get_config("finetune").rank) == ("finetune", 16, 0)


def test_settings_are_typed() -> None:
    config = read_run("v1", (*NAMED, "loss.feature_scales=('up_blocks.1=2',)", "flip=false", "loss.task=2", "steps=7"))
    assert config.loss.feature_scales == ("up_blocks.1=2",)
    assert (config.flip, config.loss.task, config.steps) == (False, 2.0, 7)


@dataclasses.dataclass(frozen=True)
class _Inner:
    rate: float
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class _Parent:
    inner: _Inner
    shared: str = "x"


@dataclasses.dataclass(frozen=True)
class _Child(_Parent):
    count: int = 3
    other: _Inner = dataclasses.field(default_factory=lambda: _Inner(0.5))
    of_its_own: _Inner = _Inner(2.0, ())


def test_defaults_are_those_of_the_class() -> None:
    assert defaults(_Child).to_dict() == {
        "inner": {"rate": 0.0, "names": ("a",)},
        "shared": "x",
        "count": 3,
        "other": {"rate": 0.5, "names": ("a",)},
        "of_its_own": {"rate": 2.0, "names": ()},
    }
    config = defaults(_Child)
    config.inner.rate = 1
    assert to_dataclass(_Child, config) == _Child(_Inner(1.0))


@pytest.mark.parametrize("cls", SETTINGS)
def test_every_setting_is_explained(cls: type) -> None:
    """In the docstring of its class, to which the config files refer."""
    manual = "".join(base.__doc__ or "" for base in cls.__mro__[:-1])
    for field in dataclasses.fields(cls):
        assert re.search(rf"^ {{8}}(?:\w+, )*{field.name}(?:, \w+)*: ", manual, re.MULTILINE), field.name
        if dataclasses.is_dataclass(wanted := typing.get_type_hints(cls)[field.name]):
            test_every_setting_is_explained(wanted)


@pytest.mark.parametrize(
    ("variants", "named"),
    [("shapes,rates,batches", "batches and rates"), ("v1,v2,rates", "v1 and v2"), ("v3,rates", "'v3'")],
)
def test_no_such_sweep(variants: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sweeps.get_config(variants)


@pytest.mark.parametrize(
    ("source", "scales", "facts"),
    [
        ("stages", ("up_blocks.9=1",), ("feature_scales", "'up_blocks.9'", "'up_blocks.")),
        ("stages", ("up_blocks.1",), ("feature_scales", "'up_blocks.1'", "NAME=WEIGHT")),
        ("stages", ("up_blocks.1=-1",), ("feature_scales", "'up_blocks.1=-1'", "NAME=WEIGHT")),
        ("stages", ("up_blocks.1=nan",), ("feature_scales", "'up_blocks.1=nan'", "NAME=WEIGHT")),
        ("stages", ("=1",), ("feature_scales", "''")),
        ("attention", (), ("loss.feature_source", "'attention'", "self_attention")),
    ],
)
def test_weights_of_features_are_checked(source: str, scales: tuple[str, ...], facts: tuple[str, ...]) -> None:
    plan = plan_removal(unet_from_diffusers(TEACHERS["v1"]), removed_blocks("bk_small"))
    with pytest.raises(InputError) as error:
        weighted_pairs(plan, source, scales)
    assert all(fact in str(error.value) for fact in facts), error.value


def test_weights_of_features_stand_for_stages_too() -> None:
    plan = plan_removal(unet_from_diffusers(TEACHERS["v1"]), removed_blocks("bk_tiny"))
    found = {
        pair.student: weight for pair, weight in weighted_pairs(plan, "stages", ("down_blocks.2=3", "up_blocks.0=0"))
    }
    assert found == {
        "down_blocks.0": 1,
        "down_blocks.1": 1,
        "down_blocks.2.attentions.0.proj_out": 3,
        "up_blocks.0": 0,
        "up_blocks.1": 1,
        "up_blocks.2": 1,
    }


def test_a_ready_config_stays_what_it_was() -> None:
    """`launch.train` reads the same config as `launch.sweep`."""
    config = runs.get_config("v1,bk_small")
    config.teacher = config.data = "DIR"
    assert to_dataclass(DistillConfig, config) == run("v1,bk_small")


@pytest.mark.parametrize(
    ("unet", "predicts", "fits"),
    [
        ("v1", "epsilon", {"v1"}),
        ("v1", "v_prediction", {"v1"}),
        ("v2", "epsilon", {"v2_base"}),
        ("v2", "v_prediction", {"v2"}),
    ],
)
def test_a_teacher_of_another_generation_is_refused(unet: str, predicts: str, fits: set[str]) -> None:
    teacher = dataclasses.replace(stable_diffusion(unet), schedule=ScheduleConfig(prediction_type=predicts))
    for name in runs.GENERATIONS[:3]:
        config = run(name)
        if name in fits:
            require_generation(config, teacher)
            continue
        with pytest.raises(InputError) as error:
            require_generation(config, teacher)
        assert all(fact in str(error.value) for fact in ("teacher: DIR", predicts, *fits, name)), error.value
    require_generation(dataclasses.replace(config, generation=""), teacher)
    require_generation(config, find_model("shapes_teacher").architectures)  # is none of them
