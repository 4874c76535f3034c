"""Tests run offline, on eight fake CPU devices, with strict dtype promotion and quick compilation."""

import importlib.util
import os
import signal
import socket
from pathlib import Path

ROOT = Path(__file__).parent.parent
QUICK_XLA = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_XLA}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

if importlib.util.find_spec("torchvision"):  # `make oracles`; the original libraries import it
    from bksdm_jax.interop.torchvision_operators import declare

    declare()
from tests import single_files, tiny  # noqa: E402

pytest_plugins = ["tests.thirds"]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")
torch.set_num_threads(1)  # two workers share the cores, and threads that wait for each other are slow


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        assert host in ("", "localhost", "127.0.0.1", "::1"), f"a test wanted to connect to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def flax_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SD v1's layout at small widths, written by Diffusers' Flax classes."""
    return tiny.write_flax_pipeline(tmp_path_factory.mktemp("pipelines") / "flax")


@pytest.fixture(scope="session")
def torch_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same layout, written by PyTorch Diffusers."""
    return tiny.write_torch_pipeline(tmp_path_factory.mktemp("pipelines") / "torch")


@pytest.fixture(scope="session")
def micro_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages: the smallest teacher from which blocks can be taken."""
    folder = tmp_path_factory.mktemp("pipelines") / "micro"
    return tiny.write_flax_pipeline(folder, unet=tiny.MICRO, vae=tiny.MICRO_VAE)


@pytest.fixture(scope="session")
def pico_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stage, for tests whose subject isn't the network."""
    folder = tmp_path_factory.mktemp("pipelines") / "pico"
    return tiny.write_flax_pipeline(folder, unet=tiny.PICO, vae=tiny.MICRO_VAE)


@pytest.fixture(scope="session")
def micro_torch_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same two stages, written by PyTorch Diffusers."""
    folder = tmp_path_factory.mktemp("pipelines") / "micro_torch"
    return tiny.write_torch_pipeline(folder, tiny.MICRO, vae=tiny.MICRO_VAE)


@pytest.fixture(scope="session")
def sd_teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Generation -> a teacher in its proportions, written by PyTorch Diffusers."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {name: single_files.write_teacher(folder / name, name) for name in single_files.UNETS}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs that scikit-image ships, with captions."""
    return tiny.write_photographs(tmp_path_factory.mktemp("data") / "photographs")
