"""The page of scores in headless Chromium, its tables, and what is refused."""

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.data.tables import write_table
from bksdm_jax.pruning.presets import CHOSEN, PUBLISHED, UNTRAINED
from bksdm_jax.reports import pictures
from bksdm_jax.reports.score_page import ReportConfig, report
from tests.binaries import fail, settings, succeed
from tests.pages import SCHEMES, WIDTHS, chromium, names_outside, opened

HOSTILE = "</span><script>throw 'run'</script> \"quoted' $x$ {{ 7 * 7 }}"
LABELS = ("teacher", f"student {HOSTILE}", "elsewhere")
IMAGES = 5


def entry(value: float, **more: object) -> dict:
    return {"value": value, "low": value * 0.99, "high": value * 1.01, "interval": "bootstrap"} | more


def write_images(folder: Path, side: int, form: str, seed: int) -> None:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = [f"images/{number:06d}.{form}" for number in range(IMAGES)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / name)
    rows = [(name, f"{HOSTILE} {number}") for number, name in enumerate(names)]
    write_table(folder / "metadata.csv", ("file_name", "text"), rows)


def scores(folder: Path | str, guidance: float = 7.5, departures: tuple[str, ...] = ()) -> dict:
    groups = {name: entry(0.5) for name in ("all", "shape")}
    return {
        "images": 30_000,
        "folder": str(folder),
        "protocol": {"name": "bk_sdm", "departures": list(departures)},
        "scores": {
            "fid_pytorch_fid": entry(13.123456789),
            "clip_score": {"value": 0.25, "low": None, "high": None},
            "attribute_accuracy": entry(0.75, groups=groups),
        },
        "reference": {"name": "COCO", "sha256": "ab" * 32},
        "extractors": {"inception": {"sha256": "cd" * 32}},
        "model": {
            "name": "a model",
            "unet_parameters": 579_384_964,
            "unet_macs": 223_755_632_640,
            "seconds_per_image": 1.25,
            "settings": {"guidance_scale": guidance, "seed": 1},
        },
        "versions": {"jax": "1"},
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three scored models: large JPEG files, small PNG files, and one without images and most other things."""
    base = tmp_path_factory.mktemp("scored")
    write_images(base / "teacher", 256, "jpg", 0)
    write_images(base / "student", 64, "png", 1)
    made = [base / name for name in ("a", "b", "c")]
    for folder in made:
        folder.mkdir()
    write_json(made[0] / "scores.json", scores(base / "teacher/images"))
    write_json(made[1] / "scores.json", scores(base / "student", 3.0, (f"steps: 10 {HOSTILE}",)))
    write_json(made[2] / "scores.json", {"scores": {"fid_clean": {"value": 20.5}}})
    return made


def config(folders: list[Path], **more: object) -> ReportConfig:
    return ReportConfig(tuple(map(str, folders)), **more)


@pytest.fixture(scope="module")
def page_file(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("report")
    lines = ["curve,x_name,x,metric,value,low,high,published", f'"{HOSTILE.replace(chr(34), "")}",updates,1,x,2,1,3,']
    lines += [f"mine,learning_rate,{rate},fid_pytorch_fid,16,15,17,false" for rate in (1e-5, 2e-4)]
    (workdir.parent / "points.csv").write_text("\n".join(lines) + "\n")
    return report(config(folders, labels=LABELS, images=4, curves=(str(workdir.parent / "points.csv"),)), workdir)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_loads_whole(page_file: Path, browser, width: int, scheme: str) -> None:
    with opened(browser, page_file, width, scheme) as page:
        names = page.locator("#results tbody.measured th").all_inner_texts()
        badges = ("bk_sdm", "departs from bk_sdm", "no protocol")
        assert names == [f"{label}\n{badge}" for label, badge in zip(LABELS, badges, strict=True)]
        cells = page.locator("#results tbody.measured tr").first.locator("td").all_inner_texts()
        assert cells == [
            *("13.12\n[12.99, 13.25]", "–", "0.2500", "0.7500\n[0.7425, 0.7575]", "–"),
            *("30,000", "bk_sdm", "579.4 M", "223.8 G", "1.250"),
        ]
        assert f"steps: 10 {HOSTILE}" in page.locator("#results .protocol li").all_inner_texts()
        assert page.locator("#images tbody img").count() == 2 * 4
        assert page.locator("#images thead th").nth(1).inner_text() == f"{HOSTILE} 0"
        assert page.locator("figure img").count() == 3 * 2 + 2  # costs of three metrics; two curves
        assert page.locator("table.groups tbody tr").count() == 2
        facts = dict(
            zip(page.locator("#facts tbody th").all_inner_texts(), page.locator("#facts tbody tr").all(), strict=True)
        )
        assert "ab" * 32 in facts["reference.sha256"].inner_text()
        assert facts["settings.guidance_scale"].get_attribute("class") == "differs"


def test_published_rows_are_told_apart(page_file: Path, browser) -> None:
    with opened(browser, page_file) as page:
        published, measured = (page.locator(f"#results tbody.{kind}") for kind in ("published", "measured"))
        assert "published (arXiv 2305.15798)" in published.locator("th[colspan]").inner_text()
        colours = [
            part.locator("tr td").first.evaluate("cell => getComputedStyle(cell).backgroundColor")
            for part in (published, measured)
        ]
        assert colours[0] != colours[1]
        row = published.locator("tr", has_text="SD v1.4: Small")
        assert row.locator("td").all_inner_texts()[:3] == ["16.98", "31.68", "0.2677"]
        shown = published.locator("th[scope=row]").count() + page.locator("#ablations tbody tr").count()
        assert shown == len(PUBLISHED) + len(UNTRAINED) + len(CHOSEN)


def test_images_enlarge(page_file: Path, browser) -> None:
    with opened(browser, page_file) as page:
        dialog, label = page.locator("dialog"), page.locator("dialog b")
        buttons = page.locator("#images button")
        buttons.nth(1).click()
        assert dialog.is_visible()
        assert (label.inner_text(), page.locator("dialog span").inner_text()) == ("teacher", f"{HOSTILE} 1")
        image = page.locator("dialog img")
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 256
        page.keyboard.press("ArrowDown")
        assert label.inner_text() == LABELS[1]
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
        page.keyboard.press("ArrowRight")
        assert page.locator("dialog span").inner_text() == f"{HOSTILE} 2"
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        buttons.nth(0).focus()
        page.keyboard.press("Enter")
        assert dialog.is_visible()
        page.get_by_label("close").click()
        assert not dialog.is_visible()


def test_page_names_nothing_outside(page_file: Path) -> None:
    assert not names_outside(page_file)


def test_files_are_the_downloads_and_the_tables(page_file: Path, browser) -> None:
    with opened(browser, page_file) as page:
        links = page.locator(".files a")
        found = {link.get_attribute("download"): link.get_attribute("href") for link in links.all()}
        headings = page.locator("#results thead th").all_inner_texts()
        cells = [row.locator("td").all_inner_texts() for row in page.locator("#results tbody.measured tr").all()]
    assert found.keys() == {path.name for path in page_file.parent.glob("*.csv")}
    for name, uri in found.items():
        assert base64.b64decode(uri.split(",")[1]) == (page_file.parent / name).read_bytes()
    rows = list(csv.DictReader(io.StringIO((page_file.parent / "scores.csv").read_text())))
    assert [row["model"] for row in rows] == list(LABELS)
    assert rows[0]["fid_pytorch_fid"] == "13.123456789"
    for row, line in zip(rows, cells, strict=True):
        for heading, cell in list(zip(headings[1:], line, strict=True))[:5]:
            metric = heading.split("\n")[0]
            shown = cell.split("\n")[0]
            assert (row[metric] == "") == (shown == "–")
            if row[metric]:
                assert float(shown) == pytest.approx(float(row[metric]), abs=0.005), metric


def test_page_without_published_rows(folders: list[Path], tmp_path: Path) -> None:
    text = report(config(folders[:2], labels=("a", "b"), published=False, images=0), tmp_path).read_text()
    assert "arXiv" not in text
    assert "inception_score" not in text
    assert "<dialog" not in text
    assert not (tmp_path / "published.csv").exists()


def test_curves_over_a_setting(folders: list[Path], tmp_path: Path) -> None:
    report(config(folders[:2], labels=("a", "b"), over="guidance_scale", images=0, published=False), tmp_path)
    rows = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert {(row["curve"], float(row["x"])) for row in rows} == {("a model", 3.0), ("a model", 7.5)}
    page = (tmp_path / "report.html").read_text()
    assert "Curves" in page
    assert "Cost and quality" not in page  # one model has one cost


def test_the_binary_prints_the_path_or_one_line(folders: list[Path], tmp_path: Path) -> None:
    flags = settings("report.py", tmp_path / "out", images=0, published=False)
    printed = succeed("report", [*flags, f"--config.scores=('{folders[2]}',)"])
    assert printed.splitlines()[-1] == str(tmp_path / "out/report.html")
    assert str(tmp_path) in fail("report", [*flags, f"--config.scores=('{tmp_path}',)"])
    assert "scores" in fail("report", flags)


def test_a_report_is_made_again(folders: list[Path], tmp_path: Path) -> None:
    report(config(folders[:2], images=0, published=False), tmp_path)
    report(config(folders[2:], images=0), tmp_path)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other/config.json", {"steps": 1, "model": "x", "seed": 1})
    with pytest.raises(InputError, match=str(tmp_path / "other")):
        report(config(folders[:1]), tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "a"),
        ("[]", "scores.json"),
        ('{"images": 3, "clip_score_shapes": {"value": 1}}', "scores is None"),
        ('{"scores": {"fid_clean": {"value": "x"}}}', "scores.fid_clean"),
        ('{"scores": {"fid_clean": {"value": NaN}}}', "scores.fid_clean"),
        (f'{{"scores": {{"fid_clean": {{"value": 1{"0" * 400}}}}}}}', "scores.fid_clean"),
    ],
)
def test_what_is_no_file_of_scores_is_refused(tmp_path: Path, content: str | None, named: str) -> None:
    (tmp_path / "a").mkdir()
    if content:
        (tmp_path / "a/scores.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "a"))) as error:
        report(config([tmp_path / "a"]), tmp_path / "out")
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"labels": ("one",)}, "labels"),
        ({"labels": ("x", "x", "y")}, "'x'"),
        ({"labels": (1, 2, 3)}, "labels"),
        ({"images": 65}, "images"),
        ({"over": "guidance"}, "guidance"),
        ({"curves": ("points.txt",)}, "points.txt"),
        ({"scores": ()}, "scores"),
    ],
)
def test_settings_that_cannot_be_used(folders: list[Path], tmp_path: Path, change: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        report(ReportConfig(**{"scores": tuple(map(str, folders))} | change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_twice_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(folders[0])):
        report(config([folders[0], folders[0] / "../a"]), tmp_path)


def test_images_keep_to_the_budget(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    base = folders[0].parent
    found = {name: pictures.find_pictures(base / name) for name in ("teacher", "student")}
    whole = pictures.picture_grid(found, 3)
    sizes = [sum(len(row[i].small) for row in whole.rows.values()) for i in range(3)]
    monkeypatch.setattr(pictures, "BUDGET", sizes[0] + sizes[1] + 1)
    less = pictures.picture_grid(found, 3)
    assert less.names == whole.names[:2]
    assert not any(picture.large for row in less.rows.values() for picture in row)
    assert len(less.notes) == 2


def test_other_captions_are_left_out(folders: list[Path], tmp_path: Path) -> None:
    write_images(tmp_path, 8, "png", 0)
    table = (tmp_path / "metadata.csv").read_text().replace(' 2"', ' another prompt"')
    (tmp_path / "metadata.csv").write_text(table)
    teacher = pictures.find_pictures(folders[0].parent / "teacher")
    grid = pictures.picture_grid({"a": teacher, "b": pictures.find_pictures(tmp_path)}, 9)
    assert grid.names == ["000000", "000001", "000003", "000004"]
    assert len(grid.notes) == 1
