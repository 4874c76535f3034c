"""Images with captions in any form but TFDS, as examples in random order."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

from absl import logging
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.decode import background_colour, open_image, require_shape, to_rgb
from bksdm_jax.data.forms.open import open_source
from bksdm_jax.data.forms.pairs import Pair, Reject, Source, Stored
from bksdm_jax.data.forms.reasons import commonest
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.unpacked import unpacked

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
            raise self._unusable(error) from error

    def check(self) -> None:
        """Reads the image's header only; raises `InputError` as `image`."""
        try:
            with self.stored.open() as file:
                require_shape(open_image(file), self.options.least_side)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> InputError:
        advice = f"mend or replace it, or leave out such images with --config.{SKIP}=yes"
        return InputError(f"{self.stored}: not a usable image ({error}); {advice}")


class PairExamples(Sequence[PairExample]):
    """The examples of a split, or of a form without splits."""

    def __init__(self, where: AnyPath, pairs: Sequence[Pair], options: SourceOptions, splits: tuple[str, ...]) -> None:
        """`pairs` are those of all `splits`, in the source's order; `where` they come from is for errors."""
        self._where, self._pairs, self._options, self.splits = where, pairs, options, splits
        self._positions = [index for index, pair in enumerate(pairs) for _ in range(pair.times)]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> PairExample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._where} has {len(self)} examples; there is no example {index}")
        pair = self._pairs[self._positions[index]]
        return PairExample(pair.name, pair.texts, pair.image, self._options)

    def of_split(self, split: str) -> "PairExamples":
        """Those of a split; raises `InputError` if there is no such split."""
        if not self.splits and split == "train":
            return self
        if split not in self.splits:
            known = ", ".join(self.splits) or "none but train"
            raise InputError(f"split: {split!r}, but {self._where} has splits {known}")
        chosen = [pair for pair in self._pairs if pair.split == split]
        return PairExamples(self._where, chosen, self._options, self.splits)

    def each_once(self) -> list[PairExample]:
        """One example for each image."""
        return [PairExample(pair.name, pair.texts, pair.image, self._options) for pair in self._pairs]

    def facts(self) -> dict[str, int | str]:
        """The number of pairs, and a hash of their names, captions, splits and repeats."""
        whole = hashlib.sha256()
        for pair in self._pairs:
            whole.update(repr((pair.name, pair.texts, pair.split, pair.times)).encode("utf-8", "surrogatepass"))
        return {"pairs": len(self._pairs), "sha256": whole.hexdigest()}


def read_pairs(where: AnyPath, options: SourceOptions, skip: bool = False) -> PairExamples:
    """All pairs of a source, without their images.

    Raises `InputError` if there is none, or (unless `skip`) one has no usable caption or is named wrongly.
    """
    source = open_source(str(where), options)
    for note in source.notes:
        logging.warning("%s: %s", where, note)
    found = list(unpacked(source, where, options))
    pairs = [one for one in found if isinstance(one, Pair)]
    rejects = [one for one in found if isinstance(one, Reject)]
    if rejects and not (skip and pairs):
        raise InputError(
            f"{where}: {len(rejects)} of {len(found)} pairs can't be used ({commonest(rejects)}); "
            f"mend them, or leave them out with --config.{SKIP}=yes"
        )
    for reject in itertools.islice(rejects, 10):
        logging.warning("left out: %s: %s", reject.name, reject.reason)
    if rejects:
        logging.warning("%s: %d of %d pairs are left out", where, len(rejects), len(found))
    return PairExamples(where, pairs, options, _splits(source, pairs))


def _splits(source: Source, pairs: Sequence[Pair]) -> tuple[str, ...]:
    given = {pair.split for pair in pairs}
    return tuple(split for split in source.splits if split in given)
