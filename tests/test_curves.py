"""Curves of the page of scores: points from files, the paper's points, and how they are drawn."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.reports.curves import Point, figures_of, read_points
from bksdm_jax.reports.figures import PlottedCurve, curve_plot
from bksdm_jax.reports.published import published_points
from bksdm_jax.reports.score_curves import points_over_updates
from bksdm_jax.reports.score_tables import better

HOSTILE = "</span><script>throw 'run'</script> \"quoted' $x$ {{ 7 * 7 }}"


def test_points_are_read(tmp_path: Path) -> None:
    points = [Point("a", "pairs", 1e4, "clip_score", 0.2, 0.1, 0.3, True), Point("b", "pairs", 2e4, "clip_score", 0.3)]
    (tmp_path / "p.json").write_text(json.dumps([vars(point) for point in points]))
    assert read_points(tmp_path / "p.json") == points
    (tmp_path / "p.json").write_text(json.dumps([vars(points[0]), vars(points[1]) | {"x": "many"}]))
    with pytest.raises(InputError, match="row 2: x"):
        read_points(tmp_path / "p.json")


def test_tradeoff_pairs_points_of_one_guidance() -> None:
    values = {"clip_score": (0.25, 0.27, 0.28), "fid_clean": (14.0, 13.0)}
    points = [Point("a", "guidance_scale", 2.0 + i, name, y) for name, ys in values.items() for i, y in enumerate(ys)]
    curve = figures_of(points)[-1].curves[0]
    assert (curve.x, curve.y, curve.names) == ([0.25, 0.27], [14.0, 13.0], ["2", "3"])


def test_published_learning_rates_are_table_13() -> None:
    found = {p.x: p.value for p in published_points() if (p.x_name, p.metric) == ("learning_rate", "fid_pytorch_fid")}
    assert found == {1e-5: 15.24, 2.5e-5: 15.69, 5e-5: 16.61, 1e-4: 17.43, 2.5e-4: 18.93}


@pytest.mark.parametrize("published", [True, False])
def test_published_points_are_hollow(published: bool) -> None:
    drawn = curve_plot([PlottedCurve("a", [1, 2], [1, 2], published=published)], "x", "y", "dark")
    filled = [style for style in re.findall(r'style="([^"]*)"', drawn) if re.search(r"(^|; )fill: #1f77b4", style)]
    assert bool(filled) != published
    assert ("(published)" in drawn) == published
    assert ("stroke-dasharray" in drawn) == published


def test_labels_of_curves_are_text() -> None:
    drawn = curve_plot([PlottedCurve(f"_{HOSTILE}\x07", [1, 2], [1, 2], [0.5, None], [2, None])], "x", "y", "dark")
    texts = [element.text or "" for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert any(f"_{HOSTILE}"[:58] in text for text in texts)


@pytest.mark.parametrize("text", ["step,fid\n1,x\n", "fid\n1\n", "step,fid\nx,1\n"])
def test_damaged_tables_of_scores_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(InputError, match=r"scores\.csv"):
        points_over_updates(tmp_path / "scores.csv", "run")


def test_every_score_says_which_way_is_better() -> None:
    names = {name: metric.better for name, metric in METRICS.items() if not name.startswith("manifolds_")}
    likeness = ("precision", "recall", "density", "coverage")
    names |= {f"{name}_{network}": "higher" for name in likeness for network in ("inception", "dinov2")}
    assert {name: better(name) for name in names} == names
