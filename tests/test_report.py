"""The report page in headless Chromium: whole, self-contained, readable on a phone and on a desktop."""

import numpy as np
import pytest

from bksdm_jax.base.files import write_json
from bksdm_jax.base.images import save_png
from bksdm_jax.metrics.bootstrap import Score
from bksdm_jax.reports.page import write_page
from tests.pages import SCHEMES, WIDTHS, chromium, names_outside, opened

LABELS = ("teacher", "student, not trained", "student, trained without KD", "student, trained with KD")
HOSTILE = "<script>throw 'run'</script> a small red circle"


def score(value: float) -> dict:
    return vars(Score(value, value - 0.01, value + 0.01))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    (workdir / "prompts.csv").write_text(
        "file_name,text\n" + "".join(f'heldout/{i},"{HOSTILE} {i}"\n' for i in range(10))
    )
    groups = ("all", "shape", "colour", "size", "place", "background", "count", "one object", "two objects")
    for index, label in enumerate(LABELS):
        name = f"row_{index}"
        for number in range(10):
            (workdir / "samples" / name / "images").mkdir(parents=True, exist_ok=True)
            picture = rng.integers(0, 256, (64, 64, 3), np.uint8)
            save_png(workdir / "samples" / name / "images" / f"{number:06d}.png", picture)
        if index >= 2:
            (workdir / "models" / name).mkdir(parents=True)
            features = ",feature/mid_block,feature/up_blocks.0" if index == 3 else ""
            lines = [f"step,loss,loss_task{features}"]
            lines += [f"{step},{1 / step},{0.5 / step}{',0.1,0.2' if features else ''}" for step in range(1, 20)]
            (workdir / "models" / name / "metrics.csv").write_text("\n".join(lines) + "\n")
        facts = {"chance": 0.31, "facts": 70}
        accuracy = score(0.1 * index + 0.5) | facts
        scores = {
            "attribute_accuracy": accuracy | {"unreadable": 0.1, "groups": dict.fromkeys(groups, accuracy)},
            "clip_score_shapes": score(0.25),
            "fd_clip_shapes": score(12.5),
        }
        row = {"name": name, "label": label, "trained": index >= 2, "scores": scores}
        row |= {"unet_parameters": 5_000_000, "unet_macs": 97_000_000, "seconds_per_image": 0.2 if index else None}
        rows.append(row)
    keys = ("student", "steps", "batch_size", "learning_rate", "warmup_steps", "images", "sampling_steps")
    config = dict.fromkeys((*keys, "guidance_scale", "seed", "dataset"), 1)
    report = {
        "title": "A comparison",
        "explanation": "One & the same start.",
        "reference_images": 1000,
        "config": config,
        "rows": rows,
    }
    write_json(workdir / "report.json", report)
    for row in rows:
        timing = {"batch_size": 64, "seconds_per_image": 0.2}
        write_json(workdir / "samples" / row["name"] / "timing.json", timing)
    return write_page(workdir)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_page_loads_whole(page_file, browser, width: int, scheme: str) -> None:
    with opened(browser, page_file, width, scheme) as page:
        assert page.locator("#results tbody th").all_inner_texts() == list(LABELS)
        assert page.locator("#results tbody tr").nth(3).locator("td").all_inner_texts() == [
            "5.00 M",
            "97.00 M",
            "0.200",
            "0.800\n[0.790, 0.810]",
            "0.250\n[0.240, 0.260]",
            "12.500\n[12.490, 12.510]",
        ]
        assert page.locator("#facts tbody tr").count() == len(LABELS) + 1
        assert page.locator("#images tbody img").count() == 8 * len(LABELS)
        assert page.locator("#images thead th").nth(1).inner_text() == f"{HOSTILE} 0"
        assert page.locator("figure img").count() == 2


def test_page_names_nothing_outside(page_file) -> None:
    assert not names_outside(page_file)
