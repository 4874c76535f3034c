"""From COCO's files to what scores compare with: prompts, squashed images and statistics."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256, read_json
from bksdm_jax.base.locks import locked
from bksdm_jax.data.coco import choose_prompts, read_coco, read_prompt_list
from bksdm_jax.data.tables import read_prompts, texts_sha256
from bksdm_jax.evaluation import squash
from bksdm_jax.evaluation.make_reference import ReferenceConfig, make_reference, reference_lines
from bksdm_jax.evaluation.protocols import SCORING
from bksdm_jax.evaluation.reference import gather_reference
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.metrics.extractors import EXTRACTORS
from bksdm_jax.metrics.statistics_file import read_statistics
from bksdm_jax.metrics.table import reference_needs
from bksdm_jax.sampling.protocols import PROTOCOLS

SIZE = 24
IDS = (42, 7, 136, 9, 581)
TEXTS = {
    42: ["A cup of coffee.", "Coffee on a\nsaucer ", 'A spoon, a "cup" and coffee'],
    7: ["A cat"],
    136: ["A man with a camera", "  A grey photograph"],
    9: ["An astronaut", "A woman smiles", "A flag", "An orange suit"],
    581: ["A rocket, before its start"],
}


def name_of(image: int) -> str:
    return f"COCO_val2014_{image:012d}.jpg"


def captions_of(texts: dict[int, list[str]]) -> dict[str, Any]:
    """In COCO's form, in an order that isn't that of the ids."""
    annotations = [
        {"id": 100 * number + image, "image_id": image, "caption": text}
        for image in texts
        for number, text in enumerate(texts[image])
    ]
    return {
        "info": {"year": 2014},
        "images": [{"id": image, "file_name": name_of(image), "height": 3, "license": 1} for image in texts],
        "annotations": annotations[::-1],
    }


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of other shapes than squares and other pixels than RGB, with captions."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2014").mkdir()
    pictures = {
        42: Image.fromarray(skimage.data.coffee()).resize((90, 60)),
        7: Image.fromarray(skimage.data.chelsea()).resize((61, 92)).convert("CMYK"),
        136: Image.fromarray(skimage.data.camera()).resize((64, 48)),
        9: Image.fromarray(skimage.data.astronaut()).resize((20, 17)),
        581: Image.fromarray(skimage.data.rocket()).resize((80, 20)),
    }
    for image, picture in pictures.items():
        picture.save(folder / "val2014" / name_of(image))
    (folder / "captions.json").write_text(json.dumps(captions_of(TEXTS)), encoding="utf-8")
    return folder


def settings(coco: Path, **values: Any) -> ReferenceConfig:
    given = {"images": str(coco / "val2014"), "captions": str(coco / "captions.json"), "count": 3, "size": SIZE}
    return ReferenceConfig(**given | values)


def rows_of(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file_name", "text"]
    return [tuple(row) for row in rows]


def test_the_protocols_are_the_same_in_both_tables() -> None:
    assert PROTOCOLS.keys() == SCORING.keys()
    for name, protocol in PROTOCOLS.items():
        assert SCORING[name].size == (protocol.resized or protocol.settings["resolution"]), name
    mlperf = PROTOCOLS["mlperf_sd"].settings
    assert [mlperf[key] for key in ("sampler", "steps", "guidance_scale", "resolution")] == ["ddim", 50, 8.0, 512]
    assert mlperf["format"] == "png"  # its images are scored without a file


def chosen(count: int, seed: int) -> list[tuple[str, str]]:
    """What `RULE` says, by loops."""
    draws = np.random.default_rng(seed)
    ids = sorted(TEXTS)
    u = [draws.random() for _ in ids]
    v = [draws.random() for _ in ids]
    ranked = sorted(range(len(ids)), key=lambda i: u[i])[:count]
    found = []
    for i in ranked:
        texts = TEXTS[ids[i]]
        found.append((name_of(ids[i]), texts[int(v[i] * len(texts))].replace("\n", " ").strip()))
    return found


def test_prompts_are_chosen_as_told(coco: Path, tmp_path: Path) -> None:
    for seed in (0, 3):
        found = make_reference(settings(coco, seed=seed), tmp_path / str(seed))
        assert rows_of(tmp_path / str(seed) / "prompts.csv") == chosen(3, seed)
        assert "default_rng(seed)" in found["prompts"]["rule"]
        assert (found["prompts"]["seed"], found["prompts"]["of"]) == (seed, 5)
        assert found["prompts"]["sha256"] == file_sha256(tmp_path / str(seed) / "prompts.csv")
        assert found == read_json(tmp_path / str(seed) / "reference.json")
    assert chosen(3, 0) != chosen(3, 3)
    captions = read_coco(coco / "captions.json")
    assert choose_prompts(captions, 2, 3) == choose_prompts(captions, 5, 3)[:2]
    assert {(one.source, one.text) for seed in range(40) for one in choose_prompts(captions, 5, seed)} == {
        (name_of(image), " ".join(text.split())) for image in TEXTS for text in TEXTS[image]
    }
    sampled = read_prompts(tmp_path / "0" / "prompts.csv")  # as `launch.sample` reads it
    assert [(one.source, one.text) for one in sampled] == chosen(3, 0)


def test_more_prompts_than_images(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^count: 6 .*captions\.json.* 5$"):
        make_reference(settings(coco, count=6), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pixels_are_those_of_pillow(coco: Path, tmp_path: Path) -> None:
    found = make_reference(settings(coco), tmp_path / "out")
    made = sorted((tmp_path / "out" / "images").iterdir())
    assert [path.name for path in made] == [name_of(image) for image in sorted(IDS)]
    for path in made:
        squashed = (
            Image.open(coco / "val2014" / path.name).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        )
        squashed.save(tmp_path / "own.jpg")
        assert (tmp_path / "own.jpg").read_bytes() == path.read_bytes(), path.name
        assert Image.open(path).mode == "RGB"
    assert (found["images"]["count"], found["images"]["size"], found["statistics"]) == (5, SIZE, None)


def test_only_the_images_of_the_prompts(coco: Path, tmp_path: Path) -> None:
    config = settings(coco, of_prompts=True, protocol="mlperf_sd")
    found = make_reference(config, tmp_path / "out")
    names = {name for name, _ in chosen(3, 0)}
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == names
    assert len(found["protocol"]["departures"]) == 4
    printed = reference_lines(found, tmp_path / "out", config)
    assert all(step in printed for step in ("3 real images, not 30,000", "3 prompts, not 30,000", "seed 0, not"))
    assert f"--config.reference={tmp_path / 'out' / 'images'}" in printed.splitlines()[-1]


def test_images_and_captions_that_differ_are_told(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(captions_of(TEXTS | {8: ["A lost picture"], 10: ["B"]})))
    config = settings(coco, captions=str(tmp_path / "captions.json"))
    found = make_reference(config, tmp_path / "out")
    assert (found["images"]["missing"], found["images"]["not_in_captions"]) == (2, 0)
    assert "2 of that file are missing" in reference_lines(found, tmp_path / "out", config)
    with pytest.raises(InputError, match=rf"^images: 2 image.*{name_of(8)}"):
        make_reference(dataclasses.replace(config, of_prompts=True, count=7), tmp_path / "other")


LISTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "list.txt": ("A cat, asleep\n\nA dog\n", [("", "A cat, asleep"), ("", "A dog")]),
    "list.csv": (
        'file_name,text\nx.jpg," A cat, asleep"\ny.jpg,A dog\n',
        [("x.jpg", " A cat, asleep"), ("y.jpg", "A dog")],
    ),
    "list.tsv": (
        'image_id\tid\tcaption\n42\t5\tA cat, asleep\n9\t6\t"A ""big"" dog"\n9\t8\tAn 8" disk\n',
        [(name_of(42), "A cat, asleep"), (name_of(9), 'A "big" dog'), (name_of(9), 'An 8" disk')],
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_given_list_is_used_as_it_is(name: str, coco: Path, tmp_path: Path) -> None:
    text, wanted = LISTS[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = make_reference(settings(coco, prompts=str(tmp_path / name)), tmp_path / "out")
    assert rows_of(tmp_path / "out" / "prompts.csv") == wanted
    assert found["prompts"]["list_sha256"] == file_sha256(tmp_path / name)
    assert found["prompts"]["count"] == len(wanted)
    assert "rule" not in found["prompts"]


def test_a_list_needs_no_captions(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("id\timage_id\tcaption\n5\t42\tA cat\n")
    config = settings(coco, prompts=str(tmp_path / "list.tsv"), captions="")
    make_reference(config, tmp_path / "out")
    assert rows_of(tmp_path / "out" / "prompts.csv") == [("", "A cat")]
    with pytest.raises(InputError, match=r"^of_prompts.*captions"):
        make_reference(dataclasses.replace(config, of_prompts=True), tmp_path / "other")
    with pytest.raises(InputError, match=r"^captions: empty"):
        make_reference(dataclasses.replace(config, prompts=""), tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("id\timage_id\n1\t42\n", ("'caption'",)),
        ("image_id\tcaption\n42\tA cat\n77\tA dog\n", ("row 2", "77")),
        ("image_id\tcaption\n-42\tA cat\n", ("row 1", "-42")),
        ("image_id\tcaption\n42\t \n", ("row 1", "caption")),
    ],
)
def test_lists_that_cant_be_used(text: str, facts: tuple[str, ...], coco: Path, tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(text)
    with pytest.raises(InputError) as error:
        read_prompt_list(tmp_path / "list.tsv", read_coco(coco / "captions.json"))
    assert all(fact in str(error.value) for fact in ("list.tsv", *facts)), error.value
    assert "\n" not in str(error.value)


def test_blank_captions_of_a_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file_name,text\na.jpg,a cat\nb.jpg, \n")
    with pytest.raises(InputError, match=r"list\.csv: row 2"):
        read_prompt_list(tmp_path / "list.csv", None)


def _set(where: str, number: int, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda found: found[where][number].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda found: found.pop("images"), ("images", "missing")),
        (lambda found: found.pop("annotations"), ("annotations", "missing")),
        (lambda found: found.update(images={"id": 1}), ("images", "list")),
        (lambda found: found["annotations"].append([1]), ("annotations[11]", "object")),
        (lambda found: found["annotations"].clear(), ("no captions",)),
        (lambda found: found["images"].clear(), ("annotations[0]", "image_id 581")),
        (lambda found: found["images"][1].pop("file_name"), ("images[1]", "file_name", "missing")),
        (lambda found: found["annotations"][2].pop("image_id"), ("annotations[2]", "image_id", "missing")),
        (_set("images", 0, "id", "42"), ("images[0]", "id", "'42'")),
        (_set("images", 0, "id", True), ("images[0]", "id", "True")),
        (_set("images", 0, "id", 7), ("images[1]", "7", "twice")),
        (_set("images", 0, "file_name", name_of(7)), (name_of(7), "several")),
        (_set("images", 0, "file_name", "../x.jpg"), ("images[0]", "../x.jpg")),
        (_set("images", 0, "file_name", "C:\\x.jpg"), ("images[0]", "x.jpg")),
        (_set("images", 0, "file_name", ""), ("images[0]", "file_name")),
        (_set("annotations", 3, "image_id", 43), ("annotations[3]", "image_id 43")),
        (_set("annotations", 3, "caption", 43), ("annotations[3]", "caption", "43", "text")),
        (_set("annotations", 3, "caption", ["a"]), ("annotations[3]", "caption", "text")),
        (_set("annotations", 3, "caption", "\ud800"), ("annotations[3]", "caption")),
        (_set("annotations", 3, "caption", "a\0b"), ("annotations[3]", "caption")),
        (_set("annotations", 3, "id", 581), ("581", "twice")),
    ],
)
def test_captions_that_cant_be_used(
    change: Callable[[dict[str, Any]], object], facts: tuple[str, ...], tmp_path: Path
) -> None:
    found = captions_of(TEXTS)
    change(found)
    (tmp_path / "c.json").write_text(json.dumps(found))
    with pytest.raises(InputError) as error:
        read_coco(tmp_path / "c.json")
    assert all(fact in str(error.value) for fact in ("c.json", *facts)), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "COCO", "[" * 10**5])
def test_captions_that_arent_json(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c\.json"):
        read_coco(tmp_path / "c.json")


def test_captions_beyond_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(InputError, match=r"c\.json.*134217729"):
        read_coco(tmp_path / "c.json")


def test_blank_captions_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(captions_of({1: [" \n", "A cat"], 2: [" "]})))
    found = read_coco(tmp_path / "c.json")
    assert found.captions == {1: ("A cat",)}
    assert list(found.names) == [1, 2]


def test_an_interrupted_run_continues(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    wanted = make_reference(settings(coco), whole)
    read = []

    def stops(data: bytes) -> Image.Image:
        read.append(data)
        if len(read) == 3:
            raise KeyboardInterrupt
        return open_image(data)

    open_image = squash.open_image
    monkeypatch.setattr(squash, "open_image", stops)
    with pytest.raises(KeyboardInterrupt):
        make_reference(settings(coco), out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert 0 < len(kept) < 5
    assert not (out / "reference.json").exists()
    read[:] = [b""] * 3
    found = make_reference(settings(coco), out)
    assert found == wanted
    assert len(read) - 3 == 5 - len(kept)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert {path.name for path in (out / "images").iterdir()} == {name_of(image) for image in IDS}
    for key, value in {"size": 25, "seed": 1, "count": 2}.items():
        with pytest.raises(InputError, match=rf"config\.json.* {key} "):
            make_reference(settings(coco, **{key: value}), out)
    (out / "images" / "more.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"more\.jpg"):
        make_reference(settings(coco), out)


def test_two_programs_do_not_share_a_workdir(coco: Path, tmp_path: Path) -> None:
    first = make_reference(settings(coco), tmp_path / "out")
    with locked(tmp_path / "out"), pytest.raises(InputError, match=r"out.*in use"):
        make_reference(settings(coco), tmp_path / "out")
    assert make_reference(settings(coco), tmp_path / "out") == first


def test_images_that_cant_be_read_are_counted(coco: Path, tmp_path: Path) -> None:
    source = tmp_path / "val2014"
    source.mkdir()
    for path in (coco / "val2014").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    data = (source / name_of(9)).read_bytes()
    (source / name_of(9)).write_bytes(data[: len(data) // 2])
    (source / name_of(7)).write_bytes(b"not an image")
    with pytest.raises(InputError, match=rf"2 unreadable.*{name_of(7)}, {name_of(9)}"):
        make_reference(settings(coco, images=str(source)), tmp_path / "out")
    assert len(list((tmp_path / "out" / "images").iterdir())) == 3
    (source / "COCO_val2014_000000000042.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"COCO_val2014_000000000042\.png"):
        make_reference(settings(coco, images=str(source)), tmp_path / "third")


class Colours:
    """Features that anyone can compute: means over quarters of the image."""

    def __init__(self) -> None:
        self.facts = {"weights": "w", "sha256": "ab", "resize": "pytorch_fid", "dtype": "float32", "width": 6}
        self.seen = 0

    def __call__(self, images: list[np.ndarray], captions: object, batch_size: int) -> dict[str, np.ndarray]:
        self.seen += len(images)
        return {"pool": np.stack([features(image) for image in images]).astype(np.float32)}


def features(image: np.ndarray) -> np.ndarray:
    half = SIZE // 2
    return np.concatenate([image[:half, :half].mean((0, 1)), image[half:, half:].mean((0, 1))])


def test_statistics_are_those_of_the_squashed_images(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = Colours()
    monkeypatch.setitem(EXTRACTORS, "inception_pytorch_fid", lambda own: extractor)
    clean = Colours()
    monkeypatch.setitem(EXTRACTORS, "inception_clean", lambda own: clean)
    out, cache = tmp_path / "out", tmp_path / "cache"
    plain = make_reference(settings(coco, cache=str(cache)), out)
    assert plain["statistics"] is None
    assert not cache.exists()
    config = settings(coco, cache=str(cache), inception="w.pth", metrics=("fid_clean",), scoring_batch_size=2)
    found = make_reference(config, out)  # weights may come later
    rows = np.stack([features(np.asarray(Image.open(path))) for path in sorted((out / "images").iterdir())])
    with np.load(out / "fid_pytorch_fid.npz") as file:
        np.testing.assert_allclose(file["mu"], np.mean(rows, axis=0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(rows, rowvar=False), rtol=1e-5)
    facts = {"extractor": "inception_pytorch_fid", "resize": "pytorch_fid", "images": 5, "weights_sha256": "ab"}
    facts |= {"images_sha256": found["images"]["sha256"], "pillow": Image.__version__, "size": SIZE}
    facts["prompts"] = {key: found["prompts"][key] for key in ("texts_sha256", "list_sha256", "seed")}
    assert read_statistics(out / "fid_pytorch_fid.npz", 6, facts).facts == facts | {"dtype": "float32"}
    assert found["images"] == plain["images"]
    assert found["extractors"].keys() == {"inception_pytorch_fid", "inception_clean"}
    make_reference(config, out)
    assert (extractor.seen, clean.seen) == (5, 5)  # the second time, all is in the cache
    load = {name: (lambda own=own: own) for name, own in (("inception_pytorch_fid", extractor),)}
    metrics = ("fid_pytorch_fid",)
    for reference in (out / "images", out / "fid_pytorch_fid.npz"):
        own = MetricsConfig(metrics=metrics, reference=str(reference), cache=str(cache))
        facts = gather_reference(own, reference_needs(metrics), load).facts
        texts = [text for _, text in rows_of(out / "prompts.csv")]
        assert facts["prompts"] == {"texts_sha256": texts_sha256(texts[::-1]), "list_sha256": "", "seed": 0}
        assert (facts["images"], facts["size"]) == (5, [SIZE, SIZE])
    (out / "images" / name_of(42)).unlink()
    own = MetricsConfig(metrics=metrics, reference=str(out / "images"), cache=str(cache))
    assert gather_reference(own, reference_needs(metrics), load).facts["prompts"] is None


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"metrics": ("clip_score",)}, ("metrics", "clip_score", "fid_pytorch_fid")),
        ({"metrics": ("fid",)}, ("metrics", "'fid'")),
        ({"metrics": ("fid_clean",)}, ("inception",)),
        ({"inception": "none.pth"}, ("inception", "none.pth")),
        ({"protocol": "coco"}, ("protocol", "'coco'", "bk_sdm")),
        ({"size": 0}, ("size", "0")),
        ({"count": 0}, ("count", "0")),
        ({"seed": -1}, ("seed", "-1")),
        ({"images": "nowhere"}, ("images", "nowhere")),
        ({"captions": "nowhere.json"}, ("nowhere.json",)),
    ],
)
def test_settings_that_cant_be_used(values: dict[str, Any], facts: tuple[str, ...], coco: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        make_reference(settings(coco, **values), tmp_path / "out")
    assert all(fact in str(error.value) for fact in facts), error.value
    assert not (tmp_path / "out").exists()
