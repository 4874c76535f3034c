"""Scores against independent formulas; one pass over batches, from files or a sampler, in bounded memory."""

import functools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.images import save_png
from bksdm_jax.data.tables import write_table
from bksdm_jax.metrics import score as scoring
from bksdm_jax.metrics.attributes import attribute_scores, unreadable_share
from bksdm_jax.metrics.bootstrap import RESAMPLES, Score, bootstrap
from bksdm_jax.metrics.evaluate import Metric, evaluate, frechet_score, mean_score, reference_statistics
from bksdm_jax.metrics.extractor import Extractor, exact
from bksdm_jax.metrics.features import Batch, FeatureFile, Need
from bksdm_jax.metrics.frechet import fit_normal, frechet_distance
from bksdm_jax.metrics.score import ScoreConfig, score, score_batches, score_folder, shapes_reference
from bksdm_jax.metrics.sums import FeatureSums
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.scenes import parse_caption
from bksdm_jax.shapes.world import example


def sums_of(features: np.ndarray, parts: int = 1) -> FeatureSums:
    sums = FeatureSums()
    for part in np.array_split(features, parts):
        sums.add(part)
    return sums


def stand_in() -> Extractor:
    """Mean colours of 8x8 images, and the mean of these."""

    def program(params: float, images: np.ndarray, text: None) -> dict[str, np.ndarray]:
        colours = (np.asarray(images) / np.float32(255)).mean(axis=(1, 2)) * params
        return {"colours": colours, "mean": colours.mean(axis=-1)}

    return Extractor(functools.partial(exact, size=8), np.float32(2), program)


COLOURS = Need("stand_in", "colours")
STAND_INS = {"stand_in": stand_in}
STAND_IN_METRICS = {
    "kept": Metric(frechet_score, Need("stand_in", "colours", kept=True), COLOURS),
    "summed": Metric(lambda ours, real: Score(frechet_distance(ours, fit_normal(real)), None, None), COLOURS, COLOURS),
    "mean": Metric(mean_score, Need("stand_in", "mean", kept=True)),
}


def random_batches(count: int, size: int, seed: int = 0, pixels: int = 8) -> Iterator[Batch]:
    images = np.random.default_rng(seed).integers(0, 256, (count, pixels, pixels, 3), np.uint8)
    for start in range(0, count, size):
        yield images[start : start + size], None


def test_sums_of_parts_are_those_of_the_whole() -> None:
    features = np.random.default_rng().normal(1e4, 1.0, size=(2500, 5))  # raw second moments would cancel
    whole, chosen = sums_of(features, parts=7), np.random.default_rng().integers(2500, size=2000)
    np.testing.assert_allclose(whole.mean, features.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(whole.covariance(), np.cov(features, rowvar=False), atol=1e-9)
    left, right = sums_of(features[:100]), sums_of(features[100:])
    left.merge(FeatureSums())
    left.merge(right)
    assert left.count == 2500
    np.testing.assert_allclose(left.covariance(), whole.covariance(), atol=1e-9)
    drawn = FeatureSums()
    drawn.add(features, chosen)
    np.testing.assert_allclose(drawn.covariance(), np.cov(features[chosen], rowvar=False), atol=1e-9)


def test_features_come_back_from_their_file(tmp_path: Path) -> None:
    features = np.random.default_rng().normal(size=(10, 3)).astype(np.float32)
    file = FeatureFile(tmp_path / "features")
    for start in (0, 4, 8):
        file.add(features[start : start + 4])
    read = file.read()
    assert isinstance(read, np.memmap)
    np.testing.assert_array_equal(read, features)


def test_one_pass_serves_all_metrics_whatever_the_batches() -> None:
    reference = reference_statistics(random_batches(50, 16, seed=1), 16, STAND_IN_METRICS, STAND_INS)
    assert reference.images == 50
    count, scores = evaluate(random_batches(40, 16), reference, 16, STAND_IN_METRICS, STAND_INS)
    colours, real = (
        np.concatenate([stand_in()(*batch)["colours"] for batch in random_batches(count, count, seed)])
        for count, seed in ((40, 0), (50, 1))
    )
    assert count == len(colours)
    assert scores["summed"].value == pytest.approx(frechet_distance(sums_of(colours), fit_normal(sums_of(real))))
    assert scores["kept"].value == pytest.approx(scores["summed"].value)
    assert scores["kept"].low < scores["kept"].value < scores["kept"].high
    assert scores["mean"].value == pytest.approx(colours.mean())
    _, others = evaluate(random_batches(40, 7), reference, 3, STAND_IN_METRICS, STAND_INS)
    for name, entry in scores.items():
        assert vars(others[name]) == pytest.approx(vars(entry))


def test_what_cannot_be_scored_is_told() -> None:
    reference = reference_statistics(random_batches(4, 4), 4, STAND_IN_METRICS, STAND_INS)
    with pytest.raises(InputError, match=r"\b1\b"):
        evaluate(random_batches(1, 1), reference, 4, STAND_IN_METRICS, STAND_INS)
    with pytest.raises(InputError, match=r"9 x 9 .*8 x 8"):
        evaluate(random_batches(4, 4, pixels=9), reference, 4, STAND_IN_METRICS, STAND_INS)


def test_memory_does_not_grow_with_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the level after the first batch; features of 20,000 images are 3.8 MB, the images 245 MB."""
    monkeypatch.setattr("bksdm_jax.metrics.bootstrap.RESAMPLES", 2)
    rows = {"colours": lambda images: images[:, ::16, ::16].reshape(len(images), 48) / np.float32(255)}
    rows["mean"] = lambda images: (images.astype(np.float32) / 255).mean(axis=(1, 2, 3))
    prepare = functools.partial(exact, size=64)
    extractor = Extractor(prepare, None, lambda _, images, __: {name: rows[name](np.asarray(images)) for name in rows})
    pictures = np.random.default_rng(0).integers(0, 256, (160, 64, 64, 3), np.uint8)

    def sampler(count: int) -> Iterator[Batch]:
        for start in range(0, count, len(pictures)):
            if start == len(pictures):
                tracemalloc.start()
            yield np.roll(pictures[: count - start], start, axis=1), None

    def peak(count: int) -> int:
        extractors = {"stand_in": lambda: extractor}
        reference = reference_statistics([(pictures, None)], 160, STAND_IN_METRICS, extractors)
        evaluate(sampler(count), reference, 160, STAND_IN_METRICS, extractors)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(20_000) == pytest.approx(peak(2_000), rel=0.1)


def test_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    rng = np.random.default_rng()
    ours, theirs = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.3, 2.0, size=(250, 12))
    cov1, cov2 = np.cov(ours, rowvar=False), np.cov(theirs, rowvar=False)
    root = scipy.linalg.sqrtm(cov1 @ cov2).real
    wanted = np.sum((ours.mean(0) - theirs.mean(0)) ** 2) + np.trace(cov1 + cov2 - 2 * root)
    assert frechet_distance(sums_of(ours), fit_normal(sums_of(theirs))) == pytest.approx(wanted, rel=1e-8)
    assert frechet_distance(sums_of(ours), fit_normal(sums_of(ours))) == pytest.approx(0, abs=1e-8)


def test_interval_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    score = bootstrap(lambda chosen: float(values[chosen].mean()), len(values))
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert score.value == pytest.approx(values.mean())
    assert score.high - score.value == pytest.approx(error, rel=0.15)
    assert score.value - score.low == pytest.approx(error, rel=0.15)


def test_interval_surrounds_a_biased_statistic() -> None:
    values = np.random.default_rng(2).normal(size=(60, 8))
    normal = fit_normal(sums_of(values))
    score = frechet_score(values, sums_of(values))
    assert score.low < score.value < score.high
    beside = bootstrap(lambda chosen: frechet_distance(sums_of(values[chosen]), normal), len(values))
    assert beside.low > beside.value  # what centring is for
    assert score.high - score.low == pytest.approx(beside.high - beside.low)


def test_resamples_are_those_of_published_scores() -> None:
    """The numbers of NumPy's generator with seed 0, drawn image by image."""
    values, rng = np.random.default_rng(3).normal(size=37), np.random.default_rng(0)
    drawn = [values[rng.integers(37, size=37)].mean() for _ in range(RESAMPLES)]
    score = bootstrap(lambda chosen: float(values[chosen].mean()), 37)
    assert [score.low, score.high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_an_undefined_value_has_no_interval() -> None:
    score = bootstrap(lambda chosen: float("nan"), 5)
    assert (score.low, score.high) == (None, None)


def test_attribute_accuracy_of_right_wrong_and_empty_pictures() -> None:
    pairs = [example("heldout", index) for index in range(60)]
    captions, pictures = [parse_caption(text) for _, text in pairs], [read_scene(picture) for picture, _ in pairs]
    right = attribute_scores(captions, pictures)
    assert right["all"].accuracy.value >= 0.99
    others = attribute_scores(captions, pictures[7:] + pictures[:7])  # each with another's picture: chance
    assert others["all"].accuracy.value == pytest.approx(right["all"].chance, abs=0.1)
    assert right["background"].chance == pytest.approx(1 / 3, abs=0.1)
    nothing = read_scene(np.full((64, 64, 3), 242, np.uint8))
    empty = attribute_scores(captions, [nothing] * 60)
    assert empty["shape"].accuracy.value == empty["count"].accuracy.value == 0
    assert right["one object"].facts + right["two objects"].facts == right["all"].facts
    assert unreadable_share(pictures) <= 0.05
    assert unreadable_share([nothing]) == 1


def write_folder(folder: Path, count: int) -> list[tuple[np.ndarray, str]]:
    pairs = [example("heldout", index) for index in range(count)]
    folder.mkdir()
    for number, (picture, _) in enumerate(pairs):
        save_png(folder / f"{number}.png", picture)
    table = [(f"{number}.png", text) for number, (_, text) in enumerate(pairs)]
    write_table(folder / "metadata.csv", ("file_name", "text"), table)
    return pairs


def test_files_and_a_sampler_score_the_same(tmp_path: Path) -> None:
    pairs = write_folder(tmp_path / "images", 6)
    reference = shapes_reference(reference_count=8, batch_size=4)
    batches = [
        (np.stack([picture for picture, _ in part]), [text for _, text in part]) for part in (pairs[:4], pairs[4:])
    ]
    scores = score_batches(iter(batches), reference, batch_size=4)
    assert scores == score_folder(str(tmp_path / "images"), reference, tmp_path / "scores", batch_size=4)
    assert list(scores)[:2] == ["images", "reference_images"]
    assert (scores["images"], scores["reference_images"]) == (6, 8)


@pytest.mark.parametrize("mistake", ["caption", "one image", "pixels", "no image"])
def test_a_bad_folder_is_told_before_anything_slow(mistake: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "shapes_reference", lambda *_: pytest.fail("the reference was made first"))
    folder = tmp_path / "images"
    pairs = write_folder(folder, 1 if mistake == "one image" else 3)
    if mistake == "caption":
        write_table(folder / "metadata.csv", ("file_name", "text"), [("0.png", pairs[0][1]), ("1.png", "a cat")])
    elif mistake == "pixels":
        save_png(folder / "2.png", np.zeros((64, 32, 3), np.uint8))
    elif mistake == "no image":
        (folder / "2.png").write_text("text")
    named = {"caption": "row 2.*a cat", "one image": r"images: 1\b", "pixels": "2.png.*32 x 64", "no image": "2.png"}
    with pytest.raises(InputError, match=named[mistake]):
        score(ScoreConfig(str(folder)), tmp_path / "scores")
    assert not (tmp_path / "scores").exists()
