"""The page of an analysis of blocks in headless Chromium."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bksdm_jax.base.files import write_json
from bksdm_jax.base.images import save_png
from bksdm_jax.reports.blocks_page import COLUMNS, WHOLE, kind_of, write_blocks_page
from tests.pages import SCHEMES, WIDTHS, chromium, names_outside, opened

HOSTILE = "</title><script>throw 'run'</script> \"quoted' $x$ {{ 7 * 7 }}"
BLOCKS = ("down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "mid_block.resnets.0", "up_blocks.0.resnets.0")
REMOVALS: dict[str, dict[str, Any]] = {
    WHOLE: {"blocks": []},
    **{block: {"blocks": [block]} for block in BLOCKS},  # as older files have them, without `skips`
    "down_blocks.0.resnets.0+attentions.0": {"blocks": list(BLOCKS[:2]), "skips": []},
    "skip of up_blocks.0.resnets.0": {"blocks": [], "skips": ["up_blocks.0.resnets.0"]},
}


def results(sampled: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "teacher": HOSTILE,
        "blocks": {
            block: {"number": i, "parameters": 1000 + i, "macs": 2e6, "interpolated": i == 3}
            for i, block in enumerate(BLOCKS)
        },
        "scores": {
            "magnitude": dict(zip(BLOCKS, (1.0, 2.0, 3.0, 4.0), strict=True)),
            "taylor": dict(zip(BLOCKS, (1e-8, 1e-3, 1e-5, 1e-6), strict=True)),
        },
        "agreement": {"magnitude, taylor": {"value": None, "low": None, "high": None}},
    }
    if sampled:
        for number, (name, one) in enumerate(REMOVALS.items()):
            value = 0.3 - 0.01 * number
            scores = {"clip_score": {"value": value, "low": value - 0.02, "high": value + 0.02}}
            scores["fid_pytorch_fid"] = {"value": 20.0 + number, "low": None, "high": None}
            found.setdefault("removals", {})[name] = one | {"scores": scores}
        found["scores"]["clip"] = dict(zip(BLOCKS, (0.01, -0.02, 0.0, 0.03), strict=True))
    return found


@pytest.fixture(scope="module", params=[False, True])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blocks")
    texts = [f"{HOSTILE} {i}" for i in range(COLUMNS)]
    write_json(
        folder / "config.json", {"teacher": HOSTILE, "texts": texts, "sensitivity": {"steps": 12, "prompts": ""}}
    )
    if request.param:
        for name in list(REMOVALS)[:-1]:  # the last has lost its images
            (folder / "images" / name).mkdir(parents=True)
            for number in range(COLUMNS):
                save_png(folder / "images" / name / f"{number:06d}.png", np.full((8, 8, 3), 30 * number, np.uint8))
    return write_blocks_page(results(request.param), folder)


def test_the_page_is_whole(page_file: Path) -> None:
    assert not names_outside(page_file)
    sampled = (page_file.parent / "images").is_dir()
    with chromium() as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                with opened(browser, page_file, width, scheme) as page:
                    assert page.title() == f"Blocks of {' '.join(HOSTILE.split())}"
                    assert page.locator("#blocks tbody tr").count() == len(BLOCKS)
                    assert page.locator("#removals tbody tr").count() == (len(REMOVALS) if sampled else 0)
                    assert page.locator("#images tbody tr").count() == (len(REMOVALS) - 1 if sampled else 0)
                    assert page.locator("figure").count() == (3 + 2 * 3 if sampled else 2)
        if sampled:
            with opened(browser, page_file) as page:
                page.locator("#images button").nth(1).click()
                assert page.locator("dialog b").inner_text() == f"without {WHOLE}"
                page.keyboard.press("ArrowDown")
                assert page.locator("dialog b").inner_text() == f"without {BLOCKS[0]}"
                assert page.locator("dialog span").inner_text() == " ".join(f"{HOSTILE} 1".split())


def test_the_ranks_begin_with_what_goes_first(page_file: Path) -> None:
    text = page_file.read_text()
    assert "1e-08 (1)" in text
    assert "0.001 (4)" in text
    assert f"{BLOCKS[3]}*" in text
    assert f"{BLOCKS[0]}*" not in text
    assert "prompts" not in text.partition("<h2>Settings</h2>")[2]
    assert "sensitivity.steps" in text


def test_what_a_removal_leaves_out() -> None:
    kinds = [kind_of(removal) for name, removal in REMOVALS.items() if name != WHOLE]
    assert kinds == ["blocks"] * len(BLOCKS) + ["groups", "skips"]
