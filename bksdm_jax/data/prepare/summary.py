"""Statistics of a prepared dataset, and a contact sheet of its images."""

import heapq
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image, ImageDraw, ImageFont

from bksdm_jax.base.files import atomic_file
from bksdm_jax.data.decode import open_image, to_rgb
from bksdm_jax.data.forms.pairs import SPLITS
from bksdm_jax.data.forms.reasons import kind_of
from bksdm_jax.data.prepare.shards import SHOWN, pair_features, shard_path

_COLUMNS, _SIDE, _LINES, _LETTERS = 8, 144, 3, 24
_MOST_REASONS = 10


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals over chunks: examples and bytes by split, histograms of sizes and captions, reasons for rejects."""
    sides: Counter[int] = Counter()
    letters: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    for record in records:
        sides.update({int(least): count for least, count in record["short_side"].items()})
        letters.update({int(least): count for least, count in record["caption_letters"].items()})
        reasons.update(kind_of(reason) for _, reason in record["rejects"])
    counts = {split: sum(record["splits"][split][0] for record in records) for split in SPLITS}
    return {
        "examples": {split: count for split, count in counts.items() if count or split != "test"},
        "bytes": sum(record["splits"][split][1] for record in records for split in SPLITS),
        "captions": sum(record["captions"] for record in records),
        "short_side": {f"{least} to {2 * least - 1}": sides[least] for least in sorted(sides)},
        "caption_letters": {f"{least} to {2 * least - 1}": letters[least] for least in sorted(letters)},
        "rejects": reasons.total(),
        "reasons": dict(reasons.most_common(_MOST_REASONS)),
    }


def write_contact_sheet(path: Path, parts: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Draws up to `SHOWN` examples, chosen by a hash of their names, with the beginnings of their captions."""
    shown = ((order, index, *rest) for index, record in enumerate(records) for order, *rest in record["shown"])
    features, decoders = pair_features(), {"image": tfds.decode.SkipDecoding()}
    cells = []
    for _, index, split, position in heapq.nsmallest(SHOWN, shown):
        with ArrayRecordDataSource([str(shard_path(parts, index, split))]) as rows:
            row = features.deserialize_example_np(rows[position], decoders=decoders)
        cells.append((row["image"], row["text"][0].decode()))
    sheet = _drawn(cells)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG")


def _drawn(cells: Sequence[tuple[bytes, str]]) -> Image.Image:
    gap, line = 8, 13
    columns = min(_COLUMNS, len(cells))
    width, height = _SIDE + gap, _SIDE + _LINES * line + 2 * gap
    sheet = Image.new("RGB", (columns * width + gap, -(-len(cells) // columns) * height + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (data, text) in enumerate(cells):
        left, top = gap + index % columns * width, gap + index // columns * height
        picture = to_rgb(open_image(data))
        picture.thumbnail((_SIDE, _SIDE))
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2))
        for number, words in enumerate(textwrap.wrap(text[:1000], _LETTERS, max_lines=_LINES, placeholder=" ...")):
            draw.text((left, top + _SIDE + 2 + number * line), words, fill="black", font=font)
    return sheet
