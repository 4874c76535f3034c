"""NaN among the data of random steps."""

from collections.abc import Callable

from tests.faults.training import Training
from tests.faults.trials import choices, trials


def test_nans(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    """A skipped update leaves all but `step` and `skipped` as it was, bit for bit, and the run goes on."""
    count, random = trials("nans"), choices("nans")
    training, step, poison = begin("poisoned", keep_checkpoints=0), 0, []
    for number in range(count):
        step += random.randint(2, 9)
        poison.append(step)
        training.finish(step, poison=tuple(poison), checkpoint_every=step - 1)
        before, after = training.bits(step - 1), training.bits(step)
        changed = {name for name in before if before[name] != after[name]}
        assert changed == {"['step']", "['skipped']"}, poison
        assert int(training.state(step)["skipped"]) == number + 1
    steps = step + 5
    training.finish(steps, poison=tuple(poison))
    rows = training.table("metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    assert [int(row["step"]) for row in rows if not row["loss"]] == poison
    undisturbed = begin("undisturbed").finish(steps, poison=tuple(poison))
    training.require_same(undisturbed, steps, ("metrics.csv",))  # each part's end was validated
    figure(f"NaN: {count} steps of {steps} skipped, {count} states as before; the end as in one go")
