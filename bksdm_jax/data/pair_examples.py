"""Images with captions in any form but TFDS, as examples in random order."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from absl import logging
from PIL import Image

from bksdm_jax.base.errors import InputError, in_one_line, in_short
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.base.progress import QUIET, Progress, waiting
from bksdm_jax.data.decode import background_colour, open_image, require_shape, to_rgb
from bksdm_jax.data.forms.open import open_source
from bksdm_jax.data.forms.pairs import Pair, Reject, Source, Stored, counted
from bksdm_jax.data.forms.reasons import commonest
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.unpacked import unpacked

_THREADS, _AT_ONCE = 16, 1024
SKIP = "skip_unusable"
"""The setting of `launch.train` that leaves out pairs that can't be used."""


@dataclasses.dataclass(frozen=True)
class PairExample:
    """An image and its captions."""

    name: str
    texts: tuple[str, ...]
    stored: Stored
    options: SourceOptions

    def image(self) -> Image.Image:
        """Upright RGB; raises `InputError`, with the file, if it isn't a usable image."""
        colour = background_colour("config", self.options.background)
        try:
            file = open_image(self.stored.read())
            require_shape(file, self.options.least_side)
            return to_rgb(file, background=colour)
        except InputError:
            raise
        except ValueError as error:
            advice = f"mend or replace it, or leave out such images with --config.{SKIP}=yes"
            raise InputError(f"{self.stored}: not a usable image ({error}); {advice}") from error

    def problem(self) -> str:
        """Why the image can't be used, as far as its header says; empty: it seems usable."""
        try:
            with self.stored.open() as file:
                require_shape(open_image(file), self.options.least_side)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            return in_short(error)
        return ""


class PairExamples(Sequence[PairExample]):
    """The examples of a split, or of a form without splits.

    Attributes:
        splits: all splits; empty: there are none.
        listing: a hash of the names, sizes and times of the source's files.
    """

    def __init__(
        self,
        where: AnyPath,
        pairs: Sequence[Pair],
        options: SourceOptions,
        splits: tuple[str, ...] = (),
        split: str = "",
        listing: str = "",
    ) -> None:
        """`pairs` are those of all `splits`, in the source's order; `where` they come from is for errors."""
        self._where, self._all, self._options, self.splits, self.listing = where, pairs, options, splits, listing
        self._pairs = [pair for pair in pairs if not split or pair.split == split]
        self._positions = [index for index, pair in enumerate(self._pairs) for _ in range(pair.times)]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> PairExample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._where} has {len(self)} examples; there is no example {index}")
        return self._example(self._pairs[self._positions[index]])

    def of_split(self, split: str) -> "PairExamples":
        """Those of a split; raises `InputError` if there is no such split."""
        if not self.splits and split == "train":
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none but train"
            raise InputError(f"split: {split!r}, but {self._where} has splits {known}")
        return PairExamples(self._where, self._all, self._options, self.splits, split, self.listing)

    def facts(self) -> dict[str, int | str]:
        """The number of pairs of all splits, and a hash of their names, captions, splits and repeats."""
        whole = hashlib.sha256()
        for pair in self._all:
            whole.update(repr((pair.name, pair.texts, pair.split, pair.times)).encode("utf-8", "surrogatepass"))
        return {"pairs": len(self._all), "sha256": whole.hexdigest()}

    def unusable(self) -> list[Reject]:
        """Opens every image of all splits, without decoding it; raises `InputError` if a bucket doesn't answer."""
        found = []
        with (
            concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
            Progress("reading image headers", len(self._all)) as progress,
        ):
            examples = map(self._example, self._all)
            while some := list(itertools.islice(examples, _AT_ONCE)):
                for example, problem in zip(some, pool.map(PairExample.problem, some), strict=True):
                    if problem:
                        found.append(Reject(example.name, problem))
                progress.advance(len(some))
        return found

    def _example(self, pair: Pair) -> PairExample:
        return PairExample(pair.name, pair.texts, pair.image, self._options)


def read_pairs(where: AnyPath, options: SourceOptions, skip: bool = False) -> PairExamples:
    """All pairs of a source, without their images.

    Raises `InputError` if there is none, or (unless `skip`) one has no usable caption or is named wrongly.
    """
    with waiting(f"listing {where}", QUIET):
        source = open_source(str(where), options)
    for note in source.notes:
        logging.warning("%s: %s", where, note)
    with waiting(f"reading the captions of {where}", QUIET):
        found = list(unpacked(source, where, options))
    pairs = [one for one in found if isinstance(one, Pair)]
    rejects = [one for one in found if isinstance(one, Reject)]
    if rejects and not (skip and pairs):
        raise unusable_error(where, rejects, len(found))
    for reject in itertools.islice(rejects, 10):
        logging.warning("left out: %s: %s", in_one_line(reject.name), in_one_line(reject.reason))
    if rejects:
        logging.warning("%s: %d of %d pairs are left out", where, len(rejects), len(found))
    return PairExamples(where, pairs, options, _splits(source, pairs), listing=str(source.facts["sha256"]))


def unusable_error(where: AnyPath, rejects: Sequence[Reject], count: int) -> InputError:
    """The error for pairs that can't be used, among `count`."""
    return InputError(
        f"{where}: {len(rejects)} of {counted(count, 'pair')} can't be used ({commonest(rejects)}); "
        f"mend them, or leave them out with --config.{SKIP}=yes"
    )


def _splits(source: Source, pairs: Sequence[Pair]) -> tuple[str, ...]:
    given = {pair.split for pair in pairs}
    return tuple(split for split in source.splits if split in given)
