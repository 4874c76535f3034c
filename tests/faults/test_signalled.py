"""SIGTERM at random moments, also while validating and drawing sample grids."""

import signal
from collections.abc import Callable

from bksdm_jax.base.exits import RESTART
from tests.faults.moments import Moments
from tests.faults.training import LONG, Training
from tests.faults.trials import choices, trials

EVERY = 20
EVALUATED = {"validation__every": 8, "sheets__steps": 2, "sheets__every": 12}
KINDS = ("starting", "compiling", "training", "validation at step", "samples at step", "saving")


def test_terms(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    count, random = trials("signals"), choices("signals")
    training = begin("signalled", checkpoint_every=EVERY, **EVALUATED)
    moments, kinds, statuses, lost = Moments(training, random), [], [], []
    for number in range(count):
        kind = KINDS[number % len(KINDS)] if number < len(KINDS) else random.choice(KINDS)
        victim = training.start(LONG)
        moments.wait(kind, victim)
        victim.process.send_signal(signal.SIGTERM)
        status = victim.end(300)
        kinds.append(kind)
        statuses.append(status)
        saved = training.newest()
        deaf = not victim.said()  # the interpreter itself was starting
        expected = RESTART if saved and not deaf else 128 + signal.SIGTERM
        assert status == expected, (kinds, statuses, victim.said()[-3000:])
        assert deaf or "interrupted" in victim.last_line(), kinds
        lost.append(training.rows() - saved)
        assert lost[-1] <= 1, (kinds, lost)
    steps = (max(training.rows(), training.newest()) // EVERY + 1) * EVERY
    training.finish(steps)
    undisturbed = begin("undisturbed", **EVALUATED).finish(steps)
    training.require_same(undisturbed, steps)
    grids = [
        {path.name: path.read_bytes() for path in (one.workdir / "samples").iterdir()}
        for one in (training, undisturbed)
    ]
    assert grids[0] == grids[1]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    figure(
        f"SIGTERM: {count} signals, {count} ends as promised ({counted}; {statuses.count(RESTART)} with status "
        f"{RESTART}), at most {max(lost)} step(s) lost; after {steps} steps all as undisturbed, grids too"
    )
