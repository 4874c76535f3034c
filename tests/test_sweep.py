"""A sweep makes its runs one after the other, goes on where it stopped, and keeps what belongs to it."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.experiments import sweep as module
from bksdm_jax.experiments.sweep import PLOT, read_sweep, sweep
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from launch.runs import read_run

CONSTANT = dataclasses.replace(read_run("shapes", ()).optimizer, cosine_steps=0)  # so that runs can be prolonged
RUNS = {
    name: dataclasses.replace(read_run(f"shapes,{name}", ()), optimizer=CONSTANT)
    for name in ("bk_base", "bk_small", "bk_tiny")
}


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
    with pytest.raises(InputError, match=r"config\.json: .*bk_small\.batch_size 32, not 8"):
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
