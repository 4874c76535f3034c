"""Two runs in one workdir, at once and later: the second is refused, the first ends as if it had been alone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from bksdm_jax.base.exits import FAILED
from tests.binaries import settings, start
from tests.faults.training import Training, World
from tests.faults.trials import trials


def test_trainings(begin: Callable[..., Training], figure: Callable[[str], None]) -> None:
    undisturbed = begin("undisturbed", checkpoint_every=5).finish(60)
    count = trials("twice")
    for number in range(count):
        training = begin(f"{number}", checkpoint_every=5)
        both = [training.start(60) for _ in range(2)]
        statuses = [victim.end() for victim in both]
        assert sorted(statuses) == [0, FAILED], [victim.said()[-2000:] for victim in both]
        assert str(training.workdir) in both[statuses.index(FAILED)].last_line()
        training.require_same(undisturbed, 60)
    took = []
    for number in range(count):
        training = begin(f"later {number}", checkpoint_every=5)
        first = training.start(60)
        first.until(lambda training=training: training.rows() >= 2)
        since = time.monotonic()
        second = training.start(60)
        assert second.end() == FAILED
        took.append(time.monotonic() - since)
        assert "in use by" in second.last_line()
        assert first.end() == 0
        training.require_same(undisturbed, 60)
    figure(
        f"two trainings in one workdir: {count} of {count} at once and {count} of {count} later refused "
        f"(later within {max(took):.0f} s, start included), the first as undisturbed"
    )


def contents(folder: Path) -> dict[str, Any]:
    """The files that don't depend on the clock; of shards, whose bytes differ from process to process, the records."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json"]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if "array_record" not in path.name}
    if len(found) < len(files):
        for split, source in tfds.builder_from_directory(folder).as_data_source().items():
            found |= {f"{split} {index}": str(source[index]) for index in range(len(source))}
    return found


def test_preparations_and_images(world: World, tmp_path: Path, figure: Callable[[str], None]) -> None:
    images = world.data.parent / "images"
    commands = {
        "prepare": lambda workdir: settings("prepare.py", workdir, source=images, resolution=16),
        "sample": lambda workdir: settings(
            "sample.py", workdir, model=world.teacher, prompt="a cat", steps=4, images_per_prompt=16, batch_size=1
        ),
    }
    for verb, command in commands.items():
        alone = start(verb, command(tmp_path / verb))
        assert alone.wait(600) == 0
        for number in range(trials("twice")):
            workdir = tmp_path / f"{verb}_{number}"
            both = [start(verb, command(workdir)) for _ in range(2)]
            said = [process.communicate(timeout=600) for process in both]
            statuses = [process.returncode for process in both]
            if statuses != [0, 0]:  # the second may have come when the first had ended
                assert sorted(statuses) == [0, FAILED], said
                assert "in use by" in said[statuses.index(FAILED)][1].splitlines()[-1]
            assert contents(workdir) == contents(tmp_path / verb)
    figure("two preparations, two samplings in one workdir: the second refused or finding all done, files as alone")
