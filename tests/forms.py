"""Images with captions in every form that is read: each picture's colour names its caption."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

COUNT = 40


def colour(index: int) -> tuple[int, int, int]:
    return 6 * index, 255 - 6 * index, 90


def image(index: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour(index)).save(buffer, file_format)
    return buffer.getvalue()


def text(index: int) -> str:
    return f"picture {index}"


def seen(picture: Image.Image) -> int:
    """Which picture it is, by its colour; JPEG changes that a little."""
    return round(float(np.asarray(picture)[..., 0].mean()) / 6)


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def table(folder: Path, ending: str, delimiter: str) -> Path:
    rows = [f"file_name{delimiter}text", *(f"{i:02d}.png{delimiter}{text(i)}" for i in range(COUNT))]
    for index in range(COUNT):
        write(folder / f"{index:02d}.png", image(index))
    write(folder / f"metadata{ending}", "\n".join(rows))
    return folder


def jsonl(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"a/{index:02d}.png", image(index))
    rows = [json.dumps({"file_name": f"a/{i:02d}.png", "text": [text(i)]}) for i in range(COUNT)]
    write(folder / "metadata.jsonl", "\n".join(rows))
    return folder


def beside(folder: Path, ending: str = ".txt", image_ending: str = ".png") -> Path:
    for index in range(COUNT):
        place = folder / ("one" if index % 2 else "two/three")
        write(place / f"img.{index:02d}{image_ending}", image(index, "JPEG" if image_ending == ".jfif" else "PNG"))
        write(place / f"img.{index:02d}{ending}", text(index))
    return folder


def avif(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"{index:02d}.avif", image(index, "AVIF"))
        write(folder / f"{index:02d}.txt", text(index))
    return folder


def kohya(folder: Path) -> Path:
    for index in range(COUNT):
        place = folder / ("1_sks dog" if index < 30 else "3_cat")
        write(place / f"{index:02d}.png", image(index))
        write(place / f"{index:02d}.caption", text(index))
    return folder


def img2dataset_files(folder: Path) -> Path:
    for index in range(COUNT):
        place = folder / f"{index // 20:05d}"
        write(place / f"{index:09d}.jpg", image(index, "JPEG"))
        write(place / f"{index:09d}.txt", text(index))
        write(place / f"{index:09d}.json", json.dumps({"caption": text(index), "status": "success"}))
    pyarrow.parquet.write_table(pa.table({"url": ["x"], "caption": ["y"]}), folder / "00000.parquet")
    write(folder / "00000_stats.json", "{}")
    return folder


def coco(folder: Path) -> Path:
    for index in range(COUNT):
        write(folder / f"val2014/{index:012d}.jpg", image(index, "JPEG"))
    images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(COUNT)]
    annotations = [{"id": i, "image_id": i, "caption": text(i)} for i in range(COUNT)]
    path = folder / "annotations/captions_val2014.json"
    write(path, json.dumps({"images": images, "annotations": annotations}))
    return path


def coco_folder(folder: Path) -> Path:
    coco(folder)
    return folder


def imagefolder(folder: Path) -> Path:
    for split, numbers in (("train", range(30)), ("validation", range(30, COUNT))):
        rows = ["file_name,text", *(f"{i:02d}.png,{text(i)}" for i in numbers)]
        for index in numbers:
            write(folder / f"{split}/{index:02d}.png", image(index))
        write(folder / f"{split}/metadata.csv", "\n".join(rows))
    return folder


def one_table_of_splits(folder: Path) -> Path:
    names = [f"{'train' if i < 30 else 'val'}/{i:02d}.png" for i in range(COUNT)]
    for index, name in enumerate(names):
        write(folder / name, image(index))
    write(folder / "metadata.csv", "\n".join(["file_name,text", *(f"{n},{text(i)}" for i, n in enumerate(names))]))
    return folder


def tar(path: Path, numbers: range, compress: bool = False, apart: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [(f"img.{i:03d}.jpg", image(i, "JPEG")) for i in numbers]
    texts = [(f"img.{i:03d}.txt", text(i).encode()) for i in numbers]
    if apart:
        members += texts
    else:
        members = [member for pair in zip(members, texts, strict=True) for member in pair]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue()) if compress else buffer.getvalue())
    return path


def tars(folder: Path) -> Path:
    tar(folder / "a/0.tar", range(20))
    tar(folder / "b/0.tar", range(20, COUNT), apart=True)
    return folder


def tars_gz(folder: Path) -> Path:
    tar(folder / "0.tar.gz", range(20), compress=True)
    tar(folder / "1.tar", range(20, COUNT), compress=True)  # gzip, whatever its name says
    return folder


def parquet(folder: Path, whole: bool = True) -> Path:
    folder = folder / "data"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(30)), ("validation", range(30, COUNT))):
        images: list[Any] = [{"bytes": image(i), "path": f"{i}.png"} if whole else image(i) for i in numbers]
        rows = pa.table({"image": images, "text": [text(i) for i in numbers]})
        pyarrow.parquet.write_table(rows, folder / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return folder.parent


def parquet_file(folder: Path) -> Path:
    folder.mkdir()
    rows = pa.table({"jpg": [image(i) for i in range(COUNT)], "caption": [[text(i)] for i in range(COUNT)]})
    pyarrow.parquet.write_table(rows, folder / "00000.parquet")
    return folder / "00000.parquet"


FORMS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "csv": (lambda folder: table(folder, ".csv", ","), {}),
    "semicolons": (lambda folder: table(folder, ".csv", ";"), {}),
    "tabs": (lambda folder: table(folder, ".tsv", "\t"), {}),
    "the table itself": (lambda folder: table(folder, ".csv", ",") / "metadata.csv", {}),
    "jsonl": (jsonl, {}),
    "txt": (beside, {}),
    "caption": (lambda folder: beside(folder, ".caption"), {}),
    "jfif": (lambda folder: beside(folder, ".txt", ".jfif"), {}),
    "avif": (avif, {}),
    "kohya": (kohya, {"repeats": False}),
    "img2dataset files": (img2dataset_files, {}),
    "coco": (coco, {}),
    "coco, its folder": (coco_folder, {}),
    "imagefolder": (imagefolder, {}),
    "one table of splits": (one_table_of_splits, {}),
    "tars in sub-folders": (tars, {}),
    "one tar": (lambda folder: tar(folder / "one.tar", range(COUNT)), {}),
    "one tar.gz": (lambda folder: tar(folder / "one.tgz", range(COUNT), compress=True), {}),
    "tars by gzip": (tars_gz, {}),
    "parquet of the hub": (parquet, {}),
    "parquet of bytes": (lambda folder: parquet(folder, whole=False), {}),
    "one parquet": (parquet_file, {"image_column": "jpg", "text_column": "caption"}),
}
WITH_SPLITS = ("imagefolder", "one table of splits", "parquet of the hub", "parquet of bytes")


def read(examples: Any) -> list[int]:
    """The numbers of the examples' pictures, when each has its own caption."""
    found = []
    for example in examples:
        found.append(seen(example.image()))
        assert list(example.texts) == [text(found[-1])], example.name
    return found
