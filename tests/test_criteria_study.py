"""A sweep with block scores says how far each criterion ranks students as training does."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.experiments import sweep as module
from bksdm_jax.experiments.criteria import FEWEST, write_criteria
from bksdm_jax.experiments.sweep_scores import settings_without
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import replaceable
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.pruning.targets import CRITERIA, read_target
from bksdm_jax.reports.criteria_page import correlation_text
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from configs.sweep import get_config
from launch.runs import SweepConfig
from tests.pages import SCHEMES, chromium, names_outside, opened

UNET = find_model("shapes_teacher").architectures.denoiser
TRUTH = {block: (7 * i % 11) + 1.0 for i, block in enumerate(replaceable(UNET))}
SCORES = {
    "magnitude": {block: -value for block, value in TRUTH.items()},
    "taylor": TRUTH,
    "clip": dict.fromkeys(TRUTH, 0.0),
}
RANDOM = [f"random{i}" for i in range(3)]


Study = tuple[Mapping[str, DistillConfig], Path]


def runs(scores: Path) -> dict[str, DistillConfig]:
    wanted = ("bk_", "taylor", "magnitude", *RANDOM)
    named = [run for run in get_config("shapes,criteria").runs if any(word in run for word in wanted)]
    return SweepConfig(tuple(named), ("log_every=50",), str(scores)).read()


def importance(config: DistillConfig) -> float:
    names = removed_from(UNET, config.student, config.block_scores)
    return importance_of(names)


def importance_of(names: Sequence[str]) -> float:
    gone = {name.removesuffix(":interpolate") for name in names}
    return sum(value for block, value in TRUTH.items() if block in gone or block.split(".")[0] in gone)


def leave(run: Path, removed: Sequence[str], accuracy: float) -> None:
    """What a run leaves, in part."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "config.json", {"removed": list(removed)})
    head = "step,loss,loss_output,loss_task,feature/mid_block"
    (run / "validation.csv").write_text(f"{head}\n0,9,1,{accuracy},3\n750,9,0.5,0.25,3\n")
    ends = "attribute_accuracy/low,attribute_accuracy/high"
    rows = f"0,0.2,0.1,0.3\n750,{accuracy},{accuracy - 0.02},{accuracy + 0.02}\n"
    (run / "scores.csv").write_text(f"step,attribute_accuracy,{ends}\n{rows}")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "blocks").mkdir()
    write_json(tmp_path / "blocks" / "blocks.json", {"scores": SCORES})
    made = runs(tmp_path / "blocks")
    for name, config in made.items():
        seed = 0.001 if config.seed else -0.001
        removed = removed_from(UNET, config.student, config.block_scores)
        leave(tmp_path / "runs" / name, removed, 0.95 - importance(config) / 1000 + (seed if "bk_small" in name else 0))
    return made, tmp_path / "runs"


def test_a_criterion_that_tells_the_truth_has_a_rank_correlation_of_one(study: Study) -> None:
    made, workdir = study
    write_criteria(made, set(made), workdir)
    found = json.loads((workdir / "criteria.json").read_text())
    rows = {row["name"]: row for row in found["runs"]}
    for name, config in made.items():
        assert rows[name]["criteria"]["taylor"] == pytest.approx(importance(config))
        assert rows[name]["criteria"]["magnitude"] == pytest.approx(-importance(config))
        assert rows[name]["after"]["loss_task"] == 0.25
    assert [name for name in rows if not rows[name]["compared"]] == ["shapes_scored_bk_base"]
    accuracies = {name: one["attribute_accuracy"] for name, one in found["correlations"].items()}
    assert accuracies["taylor"]["value"] == pytest.approx(1)
    assert accuracies["magnitude"]["value"] == pytest.approx(-1)
    assert accuracies["taylor"]["low"] == pytest.approx(1)
    assert accuracies["clip"] == {"value": None, "low": None, "high": None}  # the same for all students
    assert accuracies["loss_task before"]["value"] == pytest.approx(-1)  # made as large as the accuracy
    assert accuracies["attribute_accuracy before"]["value"] is None
    assert {one["loss_task"]["value"] for one in found["correlations"].values()} == {None}


@pytest.mark.slow
def test_trainings_of_one_student_count_once(study: Study) -> None:
    made, workdir = study
    leave(workdir / "shapes_scored_bk_small_seed_1", (), -100.0)  # on the average of both, the worst by far
    write_criteria(made, set(made), workdir)
    whole = json.loads((workdir / "criteria.json").read_text())
    write_criteria(made, set(made) - {"shapes_scored_bk_small"}, workdir)
    other = json.loads((workdir / "criteria.json").read_text())
    assert len(whole["runs"]) == len(other["runs"]) + 1
    assert whole["correlations"]["taylor"] == other["correlations"]["taylor"]


@pytest.mark.slow
def test_the_page_is_whole(study: Study) -> None:
    made, workdir = study
    path = write_criteria(made, set(made), workdir)
    assert path == workdir / "criteria.html"
    assert not names_outside(path)
    assert (workdir / "criteria.svg").read_text().count("rank correlation") >= 3
    with chromium() as browser:
        for scheme in SCHEMES:
            with opened(browser, path, 400, scheme) as page:
                assert page.locator("#runs tbody tr").count() == len(made)
                assert page.locator("#correlations tbody tr").count() == 6
                assert "6 different students" in page.locator(".note").first.inner_text()


def test_a_few_students_or_runs_without_scores_have_no_page(study: Study) -> None:
    made, workdir = study
    few = {name for name in made if "random" not in name}
    assert len(few) >= FEWEST
    assert write_criteria(made, few, workdir) is None  # Base differs in size, and two runs are one student
    plain = {name: dataclasses.replace(config, block_scores="") for name, config in made.items()}
    assert write_criteria(plain, set(plain), workdir) is None
    assert not (workdir / "criteria.json").exists()


def test_nothing_is_compared_without_results(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    made, workdir = study
    for name in made:
        (workdir / name / "scores.csv").unlink()
        (workdir / name / "validation.csv").write_text("step,loss_task\n0,1\n300,1\n")  # not the last update
    assert write_criteria(made, set(made), workdir) is None
    assert any("held-out images or evaluators" in line for line in caplog.messages)


def test_a_run_without_scores_is_shown_but_hides_nothing(study: Study) -> None:
    made, workdir = study
    (workdir / "shapes_scored_bk_base" / "scores.csv").unlink()
    path = write_criteria(made, set(made), workdir)
    found = json.loads((workdir / "criteria.json").read_text())
    assert found["results"] == ["attribute_accuracy", "loss_task", "loss_output"]
    assert path.read_text().count("<td>–</td>") > 0


def test_only_students_that_were_trained_alike_are_compared(study: Study) -> None:
    made, workdir = study
    other = dataclasses.replace(made["shapes_scored_bk_small"], batch_size=16)
    write_criteria(made | {"shapes_scored_bk_small": other}, set(made), workdir)
    found = json.loads((workdir / "criteria.json").read_text())
    assert {row["name"] for row in found["runs"] if not row["compared"]} == {
        "shapes_scored_bk_base",
        "shapes_scored_bk_small",
    }


@pytest.mark.slow
def test_scores_that_change_later_do_not_change_what_was_trained(study: Study) -> None:
    made, workdir = study
    write_criteria(made, set(made), workdir)
    before = {row["name"]: row for row in json.loads((workdir / "criteria.json").read_text())["runs"]}
    turned = SCORES | {"taylor": {block: -value for block, value in TRUTH.items()}}
    write_json(workdir.parent / "blocks" / "blocks.json", {"scores": turned})
    write_criteria(made, set(made), workdir)
    for row in json.loads((workdir / "criteria.json").read_text())["runs"]:
        assert row["removed"] == before[row["name"]]["removed"]
        assert row["criteria"]["taylor"] == pytest.approx(-before[row["name"]]["criteria"]["taylor"])


@pytest.mark.slow
def test_the_shapes_study_has_twelve_students_of_one_size() -> None:
    runs = SweepConfig(tuple(get_config("shapes,criteria").runs), (), "a folder").read()
    assert len({settings_without(run, "student", "seed", "block_scores") for run in runs.values()}) == 1
    assert all(run.evaluate_first and run.evaluators and run.steps == 750 for run in runs.values())
    targets = [read_target(run.student) for run in runs.values()]
    by_chance = [removed_from(UNET, one.text, "") for one in targets if one and one.criterion == "random"]
    assert len(set(by_chance)) == 6
    assert {one.criterion for one in targets if one} == {*CRITERIA, "random"}  # with Small at least twelve
    small = PRESETS["bk_small"].removed
    sizes = [trees.count(parameter_shapes(plan_removal(UNET, removed).student)) for removed in (small, *by_chance)]
    assert all(abs(size - sizes[0]) <= 0.1 * sizes[0] for size in sizes)


def test_names_of_folders() -> None:
    blocks = ",".join(f"down_blocks.{i}.resnets.{j}:interpolate" for i in range(4) for j in range(2))
    runs = SweepConfig((f"shapes student={blocks}", f"shapes student={blocks},mid_block", "shapes seed=3"), ("seed=2",))
    found = runs.read()
    assert [one.seed for one in found.values()] == [2, 2, 3]
    assert all(len(name) < 120 for name in found)
    with pytest.raises(InputError, match=r"runs: .*bk_small.*same folder, shapes_bk_small"):
        SweepConfig(("shapes,bk_small", "shapes,bk_small")).read()


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"scores": [1]}, ("blocks.json", "no scores")),
        ({"scores": {}}, ("blocks.json", "no scores")),
        ({"scores": {"taylor": {"mid_block": 1.0}}}, ("blocks.json", "another U-Net")),
        ({"scores": {"clip": TRUTH | {"mid_block.resnets.0": "high"}}}, ("blocks.json", "mid_block.resnets.0")),
    ],
)
def test_scores_that_cannot_be_used_are_refused_before_the_first_run(
    content: dict[str, object], facts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "open_inputs", require_settings)
    write_json(tmp_path / "blocks.json", content)
    with pytest.raises(InputError) as error:
        module.sweep(runs(tmp_path), tmp_path / "runs")
    assert all(fact in str(error.value) for fact in facts), error.value
    assert not (tmp_path / "runs" / "config.json").exists()


def test_correlations_as_text() -> None:
    assert correlation_text({"value": 0.714, "low": 0.2, "high": 0.93}) == "rank correlation 0.71 [0.20, 0.93]"
    assert correlation_text({"value": None, "low": None, "high": None}) == "rank correlation undefined"
