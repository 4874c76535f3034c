"""`--help` of every program explains every setting, without importing anything slow."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import config_dict

from bksdm_jax.base.choices import DTYPES
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.evaluation.config import SCORING, SampleAndScoreConfig
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.models.attend import IMPLEMENTATIONS
from bksdm_jax.models.choices import ATTENTION, NORMS, REMAT
from bksdm_jax.perf.config import BENCHES, BenchConfig
from bksdm_jax.pipelines.config import FORMATS
from bksdm_jax.pipelines.generations import GENERATIONS
from bksdm_jax.sampling.config import DECODING
from bksdm_jax.sampling.protocols import PROTOCOLS
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.features import SOURCES
from bksdm_jax.training.config import CONV_LAYOUTS, WEIGHTS
from configs import attribute, bench, cost, demo, distill, reference, score, subjects, sweep, tradeoff
from launch.manual import explanations, help_text, settings, typed
from launch.names import setting_names
from launch.parsing import override
from launch.values import to_dataclass
from tests.binaries import VERBS, run
from tests.binaries import settings as flags
from tests.command_lines import ROOT, SLOW, Left, run_all
from tests.test_configs import SETTINGS

CONFIGS = {verb: "distill" if verb in ("train", "plan") else verb for verb in VERBS}
LINES = [
    *((verb, ["--help"]) for verb in VERBS),
    ("train", ["-h"]),
    ("train", ["--helpshort"]),
    ("train", ["--config=configs/distill.py:shapes,bk_tiny", "--help"]),
    ("train", ["--help", "--config=configs/distil.py"]),
]


@pytest.fixture(scope="module")
def left() -> list[Left]:
    """What each of `LINES` leaves."""
    return run_all(LINES)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_the_manual(left: list[Left], verb: str) -> None:
    said = left[VERBS.index(verb)]
    assert (said.status, said.errors.strip(), said.imported) == (0, "", [])
    lines = said.output.splitlines()
    assert max(map(len, lines)) <= 100
    examples = [line for line in lines if f"python -m launch.{verb} --config=configs/{CONFIGS[verb]}.py" in line]
    assert len(examples) >= 2
    assert not re.search(r"\b(see|as in) `[A-Z]\w+(Config|Options|Source|Weights)`", said.output)
    assert "tfds" not in said.output.split("Flags:")[1]


def keys(said: str) -> dict[str, str]:
    """Setting -> the value that the manual gives."""
    return dict(re.findall(r"^  ([\w.]+)=(\S*)", said.partition("\nSettings, ")[2], re.MULTILINE))


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_every_setting_of_the_config(left: list[Left], verb: str) -> None:
    said, module = left[VERBS.index(verb)].output, __import__(f"configs.{CONFIGS[verb]}").__dict__[CONFIGS[verb]]
    assert set(keys(said)) == set(_flat(module.get_config()))


def _flat(config: config_dict.ConfigDict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in config.items():
        nested = isinstance(value, config_dict.ConfigDict)
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def test_help_by_other_names_and_of_variants(left: list[Left]) -> None:
    short, other, variants, misspelt = left[len(VERBS) :]
    manual = left[VERBS.index("train")].output
    assert short.output == other.output == manual
    assert (keys(manual)["teacher"], keys(manual)["resolution"]) == ("...", "512")
    assert (keys(variants.output)["teacher"], keys(variants.output)["resolution"]) == ("shapes_teacher", "64")
    assert keys(variants.output)["flip"] == "false"
    assert misspelt.status == 1
    assert "configs/distill.py" in misspelt.errors


@pytest.mark.parametrize("module", [attribute, bench, cost, demo, distill, reference, score, subjects, tradeoff, sweep])
def test_help_has_every_variant(left: list[Left], module: object) -> None:
    name = module.__name__.rpartition(".")[2]
    said = left[VERBS.index("train" if name == "distill" else name)].output
    section = said[said.index("\nVariants") : said.index("\nSettings, ")]
    for variant in [*distill.GENERATIONS, *sweep.RUNS] if name == "sweep" else module.VARIANTS:
        assert re.search(rf"(?<![\w.]){re.escape(variant)}(?![\w-])", section), variant


@pytest.mark.parametrize(
    ("cls", "key", "names"),
    [
        (DistillConfig, "attention", ATTENTION),
        (DistillConfig, "remat", REMAT),
        (DistillConfig, "norms", NORMS),
        (DistillConfig, "conv_layout", CONV_LAYOUTS),
        (DistillConfig, "dtype", DTYPES),
        (DistillConfig, "format", FORMATS),
        (DistillConfig, "generation", GENERATIONS),
        (DistillConfig, "save_weights", WEIGHTS),
        (DistillConfig, "loss.feature_source", SOURCES),
        (SampleAndScoreConfig, "sampler", (*SAMPLERS, SCHEDULER)),
        (SampleAndScoreConfig, "decode", DECODING),
        (SampleAndScoreConfig, "protocol", PROTOCOLS),
        (SampleAndScoreConfig, "score.metrics", METRICS),
        (BenchConfig, "what", BENCHES),
    ],
)
def test_explanations_have_every_choice(cls: type, key: str, names: tuple[str, ...]) -> None:
    text = {name: text for name, _, text in settings(cls, {})}[key]
    assert set(names) <= set(re.findall(r"\w+", text)), text


def test_names_are_those_of_the_implementations() -> None:
    assert tuple(IMPLEMENTATIONS) == ATTENTION
    assert set(SCORING) == set(PROTOCOLS)


@dataclasses.dataclass(frozen=True)
class _Inner:
    """One part. More of it.

    Attributes:
        rate: per second, which is
            explained in two lines.
    """

    rate: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parent:
    """What is inherited.

    Attributes:
        shared, other: of both.
        name: of the parent.
    """

    shared: int = 1
    other: bool = True
    name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Child(_Parent):
    """What has its own.

    Attributes:
        shared: as in `_Parent`, see `Parent`.
        name: of the child.
        needed: without a default.
        inner: see `_Inner`.

    Not an attribute: this.
    """

    needed: tuple[str, ...]
    inner: _Inner = _Inner()


def test_explanations_are_inherited_unless_there_is_a_better_one() -> None:
    assert explanations(_Child)["shared"] == "of both."
    assert explanations(_Child)["other"] == "of both."
    assert explanations(_Child)["name"] == "of the child."
    assert explanations(_Inner) == {"rate": "per second, which is explained in two lines."}
    assert [row for row in settings(_Child, {"shared": 3}) if row[0] != "other"] == [
        ("needed", "", "without a default."),
        ("shared", "3", "of both."),
        ("name", '""', "of the child."),
        ("inner.", "", "One part."),
        ("inner.rate", "0.5", "per second, which is explained in two lines."),
    ]
    assert list(dict(setting_names(_Child))) == ["shared", "other", "name", "needed", "inner", "inner.rate"]


@pytest.mark.parametrize("cls", SETTINGS)
def test_every_setting_has_an_explanation(cls: type) -> None:
    for key, _, text in settings(cls, {}):
        assert len(text) > 5, key


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (("a", 1), "\"('a',1)\""), ("", '""'), ("a b", "a b"), (2.5, "2.5"), ((), '"()"')],
)
def test_values_are_shown_as_typed(value: object, text: str) -> None:
    assert typed(value) == text


def test_text_fits_the_terminal() -> None:
    command = f"  python -m launch.x --config=configs/x.py {'--config.long_key=VALUE ' * 6}--workdir=DIR"
    text = help_text(
        f"Title.\n\n{command}\n\nA list\n  one  {'word ' * 40}\n", _Child, config_dict.ConfigDict(), "x", "", {}
    )
    assert max(map(len, text.splitlines())) <= 100
    joined = re.sub(r" \\\n\s+", " ", text)
    assert command.strip() in joined


@pytest.mark.parametrize("text", ["no", "No", "FALSE", "0", "yes", "TRUE", "1", "true"])
def test_switches_take_yes_and_no(text: str) -> None:
    config = config_dict.ConfigDict({"published": text.lower() in ("no", "false", "0")})
    override(config, f"published={text}")
    assert config.published is (text.lower() in ("yes", "true", "1"))


def test_parsed_settings_are_those_of_the_class() -> None:
    config = to_dataclass(MetricsConfig, config_dict.ConfigDict({"metrics": ("cmmd",), "kid_subset_size": 5}))
    assert config == MetricsConfig(metrics=("cmmd",), kid_subset_size=5)


def test_a_run_says_which_file_it_took(tmp_path: Path) -> None:
    ended = run("prune", flags("prune.py", tmp_path / "out", teacher="/no/such/teacher"))
    assert str(ROOT / "configs" / "prune.py") in ended.errors
    assert "/no/such/teacher" in ended.errors


def test_configs_and_programs_import_nothing_slow() -> None:
    modules = [
        f"{path.parent.name}.{path.stem}" for folder in ("configs", "launch") for path in (ROOT / folder).glob("*.py")
    ]
    script = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nprint({SLOW} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
