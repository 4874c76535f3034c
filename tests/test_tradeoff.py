"""Curves over guidance and steps: what is made, what is kept, and what is refused."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.evaluation.config import ScoreConfig
from bksdm_jax.experiments import tradeoff as module
from bksdm_jax.experiments.tradeoff import TradeoffConfig, tradeoff
from bksdm_jax.reports.curves import read_points
from bksdm_jax.sampling.config import SampleConfig
from configs.tradeoff import get_config
from launch.command import to_dataclass


class Fakes:
    """Stand-ins for sampling and scoring, which write what the real ones write."""

    def __init__(self) -> None:
        self.sampled: list[tuple[str, float, int]] = []
        self.scored: list[str] = []
        self.fails_at = 0
        self.reference, self.weights = "a", "a"

    def sample(self, config: SampleConfig, folder: Path) -> int:
        if self.fails_at and len(self.sampled) == self.fails_at:
            raise InputError("full")
        self.sampled.append((Path(config.model).name, config.guidance_scale, config.steps))
        (folder / "images").mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"model_sha256": {"unet": self.weights}})
        return 2

    def score(self, config: ScoreConfig, folder: Path) -> None:
        self.scored.append(config.images)
        model, guidance, steps = self.sampled[-1]
        scores = {"clip_score": guidance / 100, "fid_clean": 10 + steps / 100 + (model == "micro_b")}
        entries = {name: {"value": value, "low": None, "high": None} for name, value in scores.items()}
        folder.mkdir(parents=True)
        found = {"scores": entries, "images": 2, "model": {"name": model}, "metrics": list(config.metrics)}
        found["reference"] = {"sha256": self.reference}
        write_json(folder / "scores.json", found)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    fakes = Fakes()
    for name in ("sample", "score"):
        monkeypatch.setattr(module, name, getattr(fakes, name))
    return fakes


@pytest.fixture
def models(micro_teacher: Path, tmp_path: Path) -> tuple[str, str]:
    paths = [tmp_path / name for name in ("micro_a", "micro_b")]
    for path in paths:
        path.symlink_to(micro_teacher)
    return tuple(map(str, paths))


@pytest.fixture
def config(models: tuple[str, str], tmp_path: Path) -> TradeoffConfig:
    (tmp_path / "prompts.txt").write_text("a red cat\na blue cup\n")
    return TradeoffConfig(
        models=models,
        prompts=str(tmp_path / "prompts.txt"),
        metrics=("clip_score", "fid_clean"),
        reference=str(tmp_path),
        over_guidance=(2.0, 7.5),
        over_steps=(10, 25),
    )


def test_every_setting_is_made_once(fakes: Fakes, config: TradeoffConfig, tmp_path: Path) -> None:
    page = tradeoff(config, tmp_path / "out")
    settings = [(2.0, 25), (7.5, 25), (7.5, 10)]  # 25 steps at guidance 7.5 are on both curves
    assert fakes.sampled == [(name, *one) for name in ("micro_a", "micro_b") for one in settings]
    assert fakes.scored[0] == str(tmp_path / "out/micro_a/guidance_2_steps_25")
    points = read_points(tmp_path / "out/curves.csv")
    chosen = [(p.curve, p.x_name, p.x, p.value) for p in points if p.metric == "fid_clean" and p.curve == "micro_b"]
    assert chosen == [
        ("micro_b", "guidance_scale", 2.0, 11.25),
        ("micro_b", "guidance_scale", 7.5, 11.25),
        ("micro_b", "steps", 25.0, 11.25),
        ("micro_b", "steps", 10.0, 11.1),
    ]
    text = page.read_text()
    titles = [f"{score} over {x}" for score in ("clip_score", "fid_clean") for x in ("guidance_scale", "steps")]
    assert all(title in text for title in [*titles, "fid_clean over clip_score", "micro_b, guidance 7.5, 10 steps"])
    with (tmp_path / "out/scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6


def test_close_settings_have_folders_of_their_own(fakes: Fakes, config: TradeoffConfig, tmp_path: Path) -> None:
    tradeoff(dataclasses.replace(config, over_guidance=(7.1234561, 7.1234564), over_steps=()), tmp_path / "out")
    assert len(fakes.sampled) == 4


def test_an_interrupted_run_goes_on_and_takes_more(fakes: Fakes, config: TradeoffConfig, tmp_path: Path) -> None:
    fakes.fails_at = 2
    with pytest.raises(InputError, match="full"):
        tradeoff(config, tmp_path / "out")
    fakes.fails_at = 0
    tradeoff(dataclasses.replace(config, models=config.models[:1]), tmp_path / "out")
    assert len(fakes.sampled) == 3
    tradeoff(dataclasses.replace(config, over_guidance=(2.0, 7.5, 9.0)), tmp_path / "out")
    assert len(fakes.sampled) == len(set(fakes.sampled)) == 2 * 4


def test_a_page_with_too_many_rows_keeps_all_points(fakes: Fakes, config: TradeoffConfig, tmp_path: Path) -> None:
    tradeoff(dataclasses.replace(config, over_guidance=tuple(1.5 + i for i in range(9))), tmp_path / "out")
    with (tmp_path / "out/scores.csv").open(newline="") as file:
        shown = [row["model"] for row in csv.DictReader(file)]
    assert shown == ["micro_a, guidance 7.5, 25 steps", "micro_b, guidance 7.5, 25 steps"]
    assert len({p.x for p in read_points(tmp_path / "out/curves.csv") if p.x_name == "guidance_scale"}) == 9


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"models": ()}, "models"),
        ({"models": ("/no/such",)}, "/no/such"),
        ({"labels": ("one",)}, "labels"),
        ({"labels": ("x", "x")}, "'x'"),
        ({"labels": ("x", "..")}, r"'\.\.'"),
        ({"metrics": ("clip_scor",)}, "'clip_scor'"),
        ({"metrics": ("dino",)}, "dino.*subjects"),
        ({"reference": ""}, "reference.*fid_clean"),
        ({"over_guidance": (), "over_steps": ()}, "over_guidance"),
        ({"over_guidance": (-1.0,)}, "over_guidance"),
        ({"over_steps": (2.5,)}, "over_steps"),
        ({"over_steps": (2000,)}, "steps"),
        ({"prompts": "/no/such.txt"}, "/no/such.txt"),
        ({"sampler": "magic"}, "'magic'"),
        ({"columns": 65}, "columns"),
        ({"metrics": ("kid_clean",)}, "prompts.*kid_clean.*1000"),
    ],
)
def test_what_cannot_be_used_is_told_first(
    fakes: Fakes, config: TradeoffConfig, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named) as error:
        tradeoff(dataclasses.replace(config, **change), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not fakes.sampled
    assert not (tmp_path / "out").exists()


def test_another_model_or_other_prompts_need_another_folder(
    fakes: Fakes, config: TradeoffConfig, tmp_path: Path, micro_torch_teacher: Path
) -> None:
    labelled = dataclasses.replace(config, labels=("a", "b"))
    tradeoff(labelled, tmp_path / "out")
    with pytest.raises(InputError, match=r"config\.json: .*model\.b"):
        tradeoff(dataclasses.replace(labelled, models=(config.models[0], str(micro_torch_teacher))), tmp_path / "out")
    (tmp_path / "prompts.txt").write_text("a red cat\na green cup\n")
    with pytest.raises(InputError, match=r"config\.json: .*texts\.1"):
        tradeoff(labelled, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "named"), [("reference", r"reference\.sha256"), ("weights", "micro_a.*model_sha256")]
)
def test_points_by_other_files_do_not_make_a_curve(
    changed: str, named: str, fakes: Fakes, config: TradeoffConfig, tmp_path: Path
) -> None:
    tradeoff(config, tmp_path / "out")
    setattr(fakes, changed, "b")
    with pytest.raises(InputError, match=rf"guidance_9_steps_25.*{named}"):
        tradeoff(dataclasses.replace(config, over_guidance=(2.0, 7.5, 9.0)), tmp_path / "out")


def test_variants() -> None:
    given = {"prompts": "p.txt", "models": ("DIR",)}
    found = {}
    for name in ("", "guidance", "steps", "shapes,guidance,steps"):
        settings = get_config(name)
        settings.update(given)
        found[name] = to_dataclass(TradeoffConfig, settings)
    assert found[""] == found["guidance"]
    assert (found["guidance"].over_guidance, found["guidance"].over_steps) == ((2, 3, 4, 5, 6, 7.5, 9), ())
    assert (found["steps"].over_guidance, found["steps"].over_steps) == ((), (10, 15, 20, 25, 50))
    assert len(found["shapes,guidance,steps"].over_guidance) == 7
    with pytest.raises(ValueError, match="'scales'"):
        get_config("scales")
