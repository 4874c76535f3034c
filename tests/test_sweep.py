"""A sweep makes its runs one after the other, goes on where it stopped, and keeps what belongs to it."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.experiments import sweep as module
from bksdm_jax.experiments.sweep import PLOT, read_sweep, sweep
from bksdm_jax.experiments.sweep_scores import score_points
from bksdm_jax.reports.curves import read_points
from bksdm_jax.reports.published import IMAGES
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from bksdm_jax.training.scoring import ScoringConfig
from launch.runs import read_run

CONSTANT = dataclasses.replace(read_run("shapes", ()).optimizer, cosine_steps=0)  # so that runs can be prolonged
RUNS = {
    name: dataclasses.replace(read_run(f"shapes,{name}", ()), optimizer=CONSTANT)
    for name in ("bk_base", "bk_small", "bk_tiny")
}

SCORE, SCORING = "fid_pytorch_fid", ScoringConfig(reference="a folder")


class Trainer:
    """Stands in for `distill`: writes what a run leaves, and fails or is interrupted where it is told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.fails: set[str] = set()
        self.interrupted: set[str] = set()

    def __call__(self, config: DistillConfig, workdir: Path) -> Path | None:
        self.made.append(workdir.name)
        if workdir.name in self.fails:
            raise InputError("the loss is not finite")
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", dataclasses.asdict(config))
        done = config.steps // 2 if workdir.name in self.interrupted else config.steps
        rows = "".join(f"{step},{1 / step},0.5,7\n" for step in range(1, done + 1))
        (workdir / "metrics.csv").write_text(f"step,loss_task,loss_output,loss_feature\n{rows}")
        if config.evaluators:
            ended = f"{done},{10 + config.optimizer.learning_rate},,\n"
            (workdir / "scores.csv").write_text(f"step,{SCORE},{SCORE}/low,{SCORE}/high\n1,20,19,21\n{ended}")
        if done < config.steps:
            return None
        (workdir / "model").mkdir(exist_ok=True)
        return workdir / "model"


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(module, "distill", trainer)
    monkeypatch.setattr(module, "open_inputs", require_settings)
    monkeypatch.setattr(module, "_plot", lambda histories, path: path.write_text(",".join(histories)))
    return trainer


def statuses(workdir: Path) -> dict[str, str]:
    return {row["run"]: row["status"] for row in read_sweep(workdir / "sweep.csv")}


def test_every_run_is_made_once(trainer: Trainer, tmp_path: Path) -> None:
    table = sweep(RUNS, tmp_path / "runs")
    assert trainer.made == list(RUNS)
    rows = read_sweep(table)
    steps = str(RUNS["bk_base"].steps)
    assert [(row["run"], row["status"], row["updates"]) for row in rows] == [(name, "done", steps) for name in RUNS]
    assert rows[0]["loss_task"] == str(1 / int(steps))
    assert (tmp_path / "runs" / PLOT).read_text() == ",".join(RUNS)
    assert sweep(RUNS, tmp_path / "runs") == table
    assert trainer.made == list(RUNS)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    rows = [{"step": str(step), "loss_task": str(1 / step)} for step in range(1, 4)]
    module._plot({"bk_base": rows, "bk_small": rows}, tmp_path / PLOT)
    with Image.open(tmp_path / PLOT) as plot:
        assert plot.size[0] > 500


def test_an_interrupted_sweep_goes_on(trainer: Trainer, tmp_path: Path) -> None:
    trainer.interrupted = {"bk_small"}
    assert sweep(RUNS, tmp_path / "runs") is None
    assert trainer.made == ["bk_base", "bk_small"]
    trainer.interrupted = set()
    assert sweep(RUNS, tmp_path / "runs")
    assert trainer.made == ["bk_base", "bk_small", "bk_small", "bk_tiny"]


def test_a_failed_run_is_told_and_the_others_are_made(trainer: Trainer, tmp_path: Path) -> None:
    trainer.fails = {"bk_base"}
    sweep(RUNS, tmp_path / "runs")
    told = {"bk_base": "the loss is not finite", "bk_small": "done", "bk_tiny": "done"}
    assert statuses(tmp_path / "runs") == told


def test_runs_may_be_added_and_prolonged(trainer: Trainer, tmp_path: Path) -> None:
    first = {"bk_base": RUNS["bk_base"]}
    sweep(first, tmp_path / "runs")
    sweep(RUNS, tmp_path / "runs")
    assert trainer.made == list(RUNS)
    longer = dataclasses.replace(RUNS["bk_base"], steps=RUNS["bk_base"].steps + 1)
    sweep({"bk_base": longer}, tmp_path / "runs")
    assert trainer.made == [*RUNS, "bk_base"]
    assert statuses(tmp_path / "runs") == dict.fromkeys(RUNS, "done")  # also those that weren't asked for
    sweep(RUNS | {"bk_base": longer}, tmp_path / "runs")
    assert trainer.made == [*RUNS, "bk_base"]


def test_a_student_that_is_wanted_in_another_form_is_written_again(trainer: Trainer, tmp_path: Path) -> None:
    sweep(RUNS, tmp_path / "runs")
    sweep(RUNS | {"bk_tiny": dataclasses.replace(RUNS["bk_tiny"], save_weights="raw")}, tmp_path / "runs")
    assert trainer.made == [*RUNS, "bk_tiny"]


def test_a_row_that_was_cut_off_is_left_out(trainer: Trainer, tmp_path: Path) -> None:
    sweep(RUNS, tmp_path / "runs")
    with (tmp_path / "runs/bk_base/metrics.csv").open("a") as file:
        file.write("751,0.")
    assert sweep(RUNS, tmp_path / "runs")
    assert trainer.made == list(RUNS)


def test_a_teacher_that_is_not_there_is_told_before_anything_is_made(tmp_path: Path) -> None:
    runs = {"bk_tiny": dataclasses.replace(RUNS["bk_tiny"], teacher="/no/such")}
    with pytest.raises(InputError, match=r"bk_tiny: .*/no/such"):
        sweep(runs, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_other_settings_are_refused_before_anything_is_made(trainer: Trainer, tmp_path: Path) -> None:
    sweep(RUNS, tmp_path / "runs")
    other = RUNS | {"bk_small": dataclasses.replace(RUNS["bk_small"], batch_size=8)}
    with pytest.raises(InputError, match=r"config\.json: .*bk_small\.batch_size is 32 .* 8"):
        sweep(other, tmp_path / "runs")
    assert trainer.made == list(RUNS)


def test_the_workdir_of_a_single_run_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"teacher": "shapes_teacher"}')
    with pytest.raises(InputError, match=r"config\.json: .*another program"):
        sweep(RUNS, tmp_path)
    assert not trainer.made


def test_a_bad_setting_names_its_run(trainer: Trainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^bk_tiny: .*steps is 0"):
        sweep(RUNS | {"bk_tiny": dataclasses.replace(RUNS["bk_tiny"], steps=0)}, tmp_path / "runs")
    with pytest.raises(InputError, match=r"^runs: "):
        sweep({}, tmp_path / "runs")
    assert not trainer.made
    assert not (tmp_path / "runs").exists()


def test_scores_are_in_the_table_and_drawn_over_what_differs(trainer: Trainer, tmp_path: Path) -> None:
    runs = {rate: read_run(f"shapes,bk_small,lr_{rate}", ()) for rate in ("1e-5", "1e-4", "2.5e-4")}
    runs = {name: dataclasses.replace(run, evaluators=(SCORE,), scoring=SCORING) for name, run in runs.items()}
    runs |= {"1e-4 on less": dataclasses.replace(runs["1e-4"], examples=250), "unscored": RUNS["bk_tiny"]}
    trainer.interrupted = {"2.5e-4"}
    assert sweep(runs, tmp_path / "runs") is None
    trainer.interrupted = set()
    sweep(runs, tmp_path / "runs")
    rows = read_sweep(tmp_path / "runs/sweep.csv")
    rates = [run.optimizer.learning_rate for run in runs.values()]
    assert [row[SCORE] for row in rows] == [*(str(10 + rate) for rate in rates[:4]), ""]
    assert rows[0][f"{SCORE}/low"] == ""
    points = read_points(tmp_path / "runs/curves.csv")
    updates = [(p.curve, p.x, p.low) for p in points if p.x_name == "updates"]
    assert updates[:2] == [("1e-5", 1, 19), ("1e-5", runs["1e-5"].steps, None)]
    assert len(updates) == 2 * 4
    ours = [(p.x, p.value) for p in points if p.x_name == "learning_rate" and not p.published]
    assert ours == [(rate, 10 + rate) for rate in rates[:3]]
    assert not any(p.published for p in points)  # of other numbers of images
    scoring = dataclasses.replace(SCORING, images=IMAGES)
    whole = {name: dataclasses.replace(run, scoring=scoring) for name, run in runs.items()}
    theirs = {p.x: p.value for p in score_points(whole, set(runs), tmp_path / "runs") if p.published}
    assert theirs == {1e-5: 15.24, 2.5e-5: 15.69, 5e-5: 16.61, 1e-4: 17.43, 2.5e-4: 18.93}  # Table 13
    drawn = (tmp_path / "runs/curves.svg").read_text()
    assert all(part in drawn for part in ("learning_rate", "updates", "shapes_teacher: bk_small"))
    sweep({"unscored": runs["unscored"]}, tmp_path / "runs")  # keeps the others' columns
    assert {row["run"]: row[SCORE] for row in read_sweep(tmp_path / "runs/sweep.csv")}["1e-5"] == str(10 + rates[0])


def test_runs_without_scores_draw_none(trainer: Trainer, tmp_path: Path) -> None:
    sweep(RUNS, tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("curves.*"))
    assert SCORE not in read_sweep(tmp_path / "runs/sweep.csv")[0]


def test_curves_are_of_runs_that_differ_in_nothing_else(tmp_path: Path) -> None:
    runs = {name: read_run(f"shapes,{name}", ()) for name in ("bk_small,batch_64", "bk_small,batch_128", "bk_tiny")}
    runs |= {name: read_run(f"shapes,bk_small,{name}", ()) for name in ("pairs_11k", "pairs_2.3m")}
    for name in runs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.csv").write_text("step,clip_score_shapes\n7,0.5\n")
    points = score_points(runs, set(runs) - {"bk_tiny"}, tmp_path)
    found = {(p.x_name, p.x) for p in points if p.x_name != "updates"}
    assert found == {("batch_size", 8.0), ("batch_size", 16.0), ("pairs", 250.0), ("pairs", 4000.0)}
