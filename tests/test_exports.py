"""What programs write is whole or not there: beside a second program, on a full disk, and after a kill."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.forms import tables
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.evaluation.score import SCORES, score
from bksdm_jax.metrics.store import FeatureStore
from bksdm_jax.pipelines import save as saving
from bksdm_jax.pruning import prune as pruning
from bksdm_jax.pruning.config import PruneConfig
from bksdm_jax.pruning.convert_lora import convert_lora
from bksdm_jax.pruning.lora_config import ConvertLoraConfig
from bksdm_jax.pruning.prune import prune
from bksdm_jax.sampling import run as sampling
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.run import sample
from tests import loras, tiny
from tests.conftest import ROOT
from tests.pairs_on_disk import config, encoded, folder_of, many, names
from tests.sampling_runs import quick, use_one_device
from tests.test_score import Calls, calls, folders  # noqa: F401
from tests.test_score import config as score_config

SECOND = """
import sys
from pathlib import Path
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.locks import one_run

@one_run()
def second(workdir):
    print("in")

try:
    second(Path(sys.argv[1]))
except InputError as error:
    print(error)
"""
TIMES = "timing.json"


def files(folder: Path) -> dict[str, bytes]:
    """All but times, by relative path."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != TIMES)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def second_program(workdir: Path) -> str:
    """What a second program says, if it has the time to."""
    command = [sys.executable, "-c", SECOND, str(workdir)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@contextlib.contextmanager
def disk_of(most: int) -> Iterator[None]:
    """No file gets more than so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    key, former = "jax_persistent_cache_min_compile_time_secs", jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update(key, 1e9)  # else the cache of programs would get halves of them
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update(key, former)


def test_a_second_preparation_is_refused_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = many(tmp_path / "source", 12)
    expected = files(prepare(config(source, chunk=4), tmp_path / "set"))
    shutil.rmtree(tmp_path / "set")
    read, said = tables.TableChunk.read, []

    def meanwhile(self: tables.TableChunk, scratch: Path) -> Any:
        said.append(second_program(tmp_path / "set"))
        return read(self, scratch)

    monkeypatch.setattr(tables.TableChunk, "read", meanwhile)
    prepare(config(source, chunk=4), tmp_path / "set")
    for line in said:
        assert line.startswith(f"{tmp_path / 'set'}: ")
        assert f"process {os.getpid()} " in line
    assert len(said) == 3
    assert files(tmp_path / "set") == expected


def sampling_settings(model: Path) -> SampleConfig:
    """One call; `metadata.csv` is the largest file."""
    return quick(model, prompt="a cat " * 500, images_per_prompt=8, batch_size=8)


@pytest.fixture(scope="module")
def undisturbed(micro_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        use_one_device(patch)
        sample(sampling_settings(micro_teacher), folder)
    return files(folder)


def test_a_second_sampling_is_refused_and_changes_nothing(
    micro_teacher: Path, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are still those of one program after the disk was full."""
    use_one_device(monkeypatch)
    settings, workdir = sampling_settings(micro_teacher), tmp_path / "out"
    make, said = sampling.Engine.make, []

    def meanwhile(*arguments: Any) -> Any:
        for made in make(*arguments):
            said.append(second_program(workdir))
            yield made

    monkeypatch.setattr(sampling.Engine, "make", meanwhile)
    with disk_of(12_000), pytest.raises(InputError, match=r"^[^\n]*out/metadata\.csv: [^\n]*File too large[^\n]*$"):
        sample(settings, workdir)
    assert files(workdir).items() < undisturbed.items()
    assert not leftovers(workdir)
    sample(settings, workdir)
    assert len(said) == 1
    assert f"process {os.getpid()} " in said[0]
    assert files(workdir) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_of_two_binaries_one_prepares(late: bool, tmp_path: Path) -> None:
    source = many(tmp_path / "source", 400)
    expected = prepare(config(source, chunk=4), tmp_path / "expected")
    command = [sys.executable, "-m", "launch.prepare", "--config=configs/prepare.py", f"--config.source={source}"]
    command += [f"--workdir={tmp_path / 'set'}", "--config.workers=1", "--config.chunk=4", "--config.validation=0.0"]
    how: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as first:
        while late and first.poll() is None and not list(tmp_path.glob("set/parts/*.json")):
            time.sleep(0.01)
        if late:
            first.send_signal(signal.SIGSTOP)
        with subprocess.Popen(command, **how) as second:
            if late:
                second.wait()
                first.send_signal(signal.SIGCONT)
            said = [first.communicate(), second.communicate()]
    codes = [first.returncode, second.returncode]
    assert sorted(codes) == [0, 1], said
    assert not late or codes[0] == 0
    error = said[codes.index(1)][1].splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'set'}: ")
    assert names(tmp_path / "set") == names(expected)
    assert not leftovers(tmp_path / "set")


def test_of_two_prunings_one_is_refused(micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PruneConfig(str(micro_teacher), tiny.MICRO_SMALL)
    prune(settings, tmp_path / "expected")
    write_folder, refused = saving.write_folder, []

    def meanwhile(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(saving, "write_folder", write_folder)
            with pytest.raises(InputError, match=str(tmp_path / "student")) as error:
                prune(settings, tmp_path / "student")
        refused.append(str(error.value))
        write_folder(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_folder", meanwhile)
        prune(settings, tmp_path / "student")
    assert len(refused) == 1
    assert "\n" not in refused[0]
    assert files(tmp_path / "student") == files(tmp_path / "expected")
    assert not leftovers(tmp_path)


def test_a_pruning_replaces_no_student_that_came_since_it_began(
    micro_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = pruning.pruned

    def meanwhile(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(pruning, "pruned", pruned)
            prune(PruneConfig(str(micro_teacher), tiny.MICRO_SMALL, seed=1), tmp_path / "student")
        before.update(files(tmp_path / "student"))
        return pruned(*arguments)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(pruning, "pruned", meanwhile)
    with pytest.raises(InputError, match=f"{tmp_path / 'student'}: "):
        prune(PruneConfig(str(micro_teacher), tiny.MICRO_STUDENT), tmp_path / "student")
    assert files(tmp_path / "student") == before != {}
    assert not leftovers(tmp_path)


def continues_once_there_is_space(call: Callable[[Path], object], folder: Path, limits: dict[int, str]) -> None:
    """At each limit in bytes, an error of one line names this file; then the call makes what it makes undisturbed."""
    call(folder / "undisturbed" / "out")
    expected = files(folder / "undisturbed")
    shutil.rmtree(folder / "undisturbed")
    for limit, name in limits.items():
        with disk_of(limit), pytest.raises(InputError) as error:
            call(folder / "undisturbed" / "out")
        message = str(error.value)
        assert message.startswith(f"{folder / 'undisturbed' / 'out'}{name}"), (limit, message)
        assert "\n" not in message
        assert "File too large" in message
        assert not leftovers(folder / "undisturbed"), limit
        there = files(folder / "undisturbed")
        for path, data in there.items():
            cut = path.endswith("rows.bin") and expected[path].startswith(data)  # appended to, and cut when it goes on
            assert cut or data == expected.get(path, data), (limit, path)
    call(folder / "undisturbed" / "out")
    assert files(folder / "undisturbed") == expected


def test_a_preparation_on_a_full_disk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), np.uint8)
    pictures = {f"{i:02d}.png": encoded(Image.fromarray(image)) for i, image in enumerate(noise)}
    source = folder_of(tmp_path / "source", [(name, name) for name in pictures], pictures)
    limits = {99: "/config.json", 30_000: "/parts/000000.train.array_record", 200_000: "/contact_sheet.png"}
    continues_once_there_is_space(lambda out: prepare(config(source, chunk=4), out), tmp_path, limits)


@pytest.mark.parametrize("form", ["safetensors", "flax"])
def test_a_pruning_on_a_full_disk(form: str, micro_teacher: Path, tmp_path: Path) -> None:
    settings = PruneConfig(str(micro_teacher), tiny.MICRO_SMALL, format=form)
    limits = dict.fromkeys((99, 2_000, 100_000), ": ")
    continues_once_there_is_space(lambda out: prune(settings, out), tmp_path, limits)


def test_a_conversion_on_a_full_disk(micro_teacher: Path, tmp_path: Path) -> None:
    prune(PruneConfig(str(micro_teacher), tiny.MICRO_SMALL), tmp_path / "student")
    module = {"down_blocks.0.attentions.0.proj_in": (torch.ones(4, 32, 1, 1), torch.ones(32, 4, 1, 1))}
    given = loras.write(tmp_path / "style.safetensors", loras.kohya({"unet": module}))
    settings = ConvertLoraConfig(lora=str(given), model=str(tmp_path / "student"))
    limits = dict.fromkeys((99, 900), "/style.safetensors: ")
    continues_once_there_is_space(lambda out: convert_lora(settings, out), tmp_path, limits)


def test_scores_on_a_full_disk(calls: Calls, folders: Path) -> None:  # noqa: F811
    settings = score_config(folders, ["kid_clean", "fid_clean", "clip_score"])
    limits = {99: "/config.json", 950: "/features/inception_clean/pool/rows.bin", 1_400: f"/{SCORES}"}
    continues_once_there_is_space(lambda out: score(settings, out), folders / "scored", limits)


def test_features_on_a_full_disk(tmp_path: Path) -> None:
    rows = np.arange(64, dtype=np.float32).reshape(16, 4)
    store = FeatureStore(tmp_path, True, {})
    store.add(rows[:4])
    store.commit()
    with disk_of(100), pytest.raises(InputError, match=r"rows\.bin"):
        store.add(rows[4:])
    again = FeatureStore(tmp_path, True, {})
    assert again.done == 4
    again.add(rows[4:])
    again.commit()
    np.testing.assert_array_equal(again.read(), rows)
