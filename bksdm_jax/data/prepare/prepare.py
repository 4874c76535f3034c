"""Converts images with captions to a TFDS dataset in worker processes; an interrupted call can be continued."""

import concurrent.futures
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Container, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
from absl import logging

from bksdm_jax.base.distributed import is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import make_folder, read_json, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import MOST_READ, to_path
from bksdm_jax.base.progress import QUIET, Progress, waiting
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.forms.open import open_source
from bksdm_jax.data.forms.pairs import SPLITS, Reject, Source, counted
from bksdm_jax.data.forms.reasons import commonest
from bksdm_jax.data.prepare.config import PrepareConfig, require_settings
from bksdm_jax.data.prepare.latents import prepare_latents
from bksdm_jax.data.prepare.shards import TRAIN, VALIDATION, pair_features, write_shard
from bksdm_jax.data.prepare.summary import summary, write_contact_sheet
from bksdm_jax.data.prepare.tfds_folder import PARTS, clear, write_set
from bksdm_jax.data.sources import INFO
from bksdm_jax.data.tables import write_table

REJECTS, SUMMARY, SHEET = "rejects.csv", "summary.json", "contact_sheet.png"
"""Files written beside a dataset."""
_ENOUGH = 1000  # pairs from which on too many rejects stop the work at once
_MAY_CHANGE = ("workers", "most_rejects")


@one_run(is_first)
def prepare(config: PrepareConfig, workdir: Path) -> Path | None:
    """Makes a dataset in `workdir`, or continues making it; `tfds.builder_from_directory` opens the result.

    Its splits are `train` and `validation`; `rejects.csv`, `summary.json` and `contact_sheet.png` are written beside
    it.

    Returns:
        the folder; None if the work was interrupted (the same call continues it).

    Raises:
        InputError: a setting or the source can't be used, the disk can't be written, or too many pairs are rejected.
    """
    require_settings(config)
    if config.latents.pipeline:
        return prepare_latents(config.source, config.latents, config.resolution, config.chunk, workdir)
    if jax.process_count() > 1:
        raise InputError(
            f"latents.pipeline: empty with {jax.process_count()} processes; images are prepared by one, with workers"
        )
    with waiting(f"listing {config.source}", QUIET):
        source = open_source(config.source, config, config.kind, config.split, config.chunk)
    record = {key: value for key, value in dataclasses.asdict(config).items() if key != "latents"}
    record |= {"source": str(to_path(config.source)), "source_facts": source.facts}
    require_same(workdir, record, _MAY_CHANGE)
    if (workdir / INFO).exists():
        clear(workdir)  # an interrupted call may have left it
        return workdir
    claim(workdir, record)
    for note in source.notes:
        logging.warning("%s: %s", config.source, note)
    parts = make_folder(workdir / PARTS)
    if not _run(config, source, parts):
        return None
    records = list(_made(parts).values())
    _tell_rejects(parts)
    found = summary(records)
    found["notes"] = [*source.notes, *_odd_splits(config, source, found["examples"])]
    accepted = sum(found["examples"].values())
    _require_few_rejects(config, parts, accepted, found["rejects"])
    if not accepted:
        raise InputError(f"{config.source}: no usable pair of image and caption; see {workdir / REJECTS}")
    if not (workdir / SHEET).exists():
        write_contact_sheet(workdir / SHEET, parts, records)
    write_json(workdir / SUMMARY, found)
    write_set(workdir, "pairs", "Images with captions.", pair_features(), records)
    return workdir


def _odd_splits(config: PrepareConfig, source: Source, counts: Mapping[str, int]) -> Iterator[str]:
    """What is hardly meant of the splits, a line each."""
    wanted = not source.splits and config.validation > 0
    if wanted and not counts[VALIDATION]:
        few = counted(counts[TRAIN], "example")
        yield f"validation: {config.validation:g} of {few} is none; raise it, or set it to 0"
    if not counts[TRAIN]:
        yield "there are no examples for training"


def _made(parts: Path) -> dict[int, dict[str, Any]]:
    """The records of all complete chunks by index, in order."""
    paths = sorted(parts.glob("[0-9]*.json"), key=lambda path: int(path.stem))
    return {int(path.stem): read_json(path, MOST_READ) for path in paths}


def _run(config: PrepareConfig, source: Source, parts: Path) -> bool:
    """Has the workers write the missing chunks; False if interrupted."""
    former = _made(parts)
    known = [_counts(record) for record in former.values()]
    accepted, bad = sum(count for count, _ in known), sum(count for _, count in known)
    done = accepted + bad if source.unit == "pairs" else len(former)
    with Interrupts() as interrupts, Progress(source.unit, source.total, done) as progress:
        try:
            for record in _records(config, source, parts, former):
                counts = _counts(record)
                accepted, bad = accepted + counts[0], bad + counts[1]
                progress.advance(sum(counts) if source.unit == "pairs" else 1, f"{bad} rejects")
                if accepted + bad >= _ENOUGH:
                    _require_few_rejects(config, parts, accepted, bad)
                if interrupts.wanted:
                    return False
        except BrokenProcessPool as error:
            if interrupts.wanted:  # the workers got the signal too
                return False
            raise InputError("a worker was killed, perhaps out of memory; the same command continues") from error
    return True


def _counts(record: dict[str, Any]) -> tuple[int, int]:
    """Accepted and rejected pairs of a chunk."""
    return sum(record["splits"][split][0] for split in SPLITS), len(record["rejects"])


def _records(config: PrepareConfig, source: Source, parts: Path, former: Container[int]) -> Iterator[dict[str, Any]]:
    """The record of every chunk that isn't in `former`, as they are completed."""
    missing = ((index, chunk) for index, chunk in enumerate(source.chunks()) if index not in former)
    workers = config.workers or os.cpu_count() or 1
    if workers == 1:
        for index, chunk in missing:
            yield write_shard(parts, index, chunk, config, bool(source.splits))
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_start_worker)
    running: set[concurrent.futures.Future[dict[str, Any]]] = set()
    try:
        for index, chunk in missing:
            running.add(pool.submit(write_shard, parts, index, chunk, config, bool(source.splits)))
            if len(running) >= 2 * workers:  # never queues a whole table
                done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
                yield from (future.result() for future in done)
        yield from (future.result() for future in concurrent.futures.as_completed(running))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, which waits for the running chunks; a worker exits if its parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _require_few_rejects(config: PrepareConfig, parts: Path, accepted: int, bad: int) -> None:
    if bad > config.most_rejects * (accepted + bad):
        told = _tell_rejects(parts)
        raise InputError(
            f"{config.source}: {bad} of {counted(accepted + bad, 'pair')} can't be used "
            f"({commonest(_rejects(parts))}; list: {told}); "
            f"to continue without them, raise most_rejects above {config.most_rejects:g}"
        )


def _tell_rejects(parts: Path) -> Path:
    """Writes the list of rejects so far; returns its path."""
    path = parts.parent / REJECTS
    write_table(path, ("name", "reason"), ((reject.name, reject.reason) for reject in _rejects(parts)))
    return path


def _rejects(parts: Path) -> Iterator[Reject]:
    return (Reject(*row) for record in _made(parts).values() for row in record["rejects"])
