"""What is being written when Ctrl-C comes is whole."""

import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.base.signals import Interrupted
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.state import OptimizerConfig, create_state, make_optimizer


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises as on a terminal; a shell's background jobs begin with it ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = create_state({"kernel": jnp.arange(6.0)}, make_optimizer(OptimizerConfig()))
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    close = checkpoints._checkpointer.close

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)
        close()

    monkeypatch.setattr(checkpoints._checkpointer, "close", interrupted)
    with pytest.raises(Interrupted), checkpoints:
        checkpoints.save(state, {})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with Checkpoints(tmp_path / "checkpoints", keep=1) as others:
        found = others.restore(jax.eval_shape(lambda: state))
    np.testing.assert_array_equal(found.params["kernel"], state.params["kernel"])
