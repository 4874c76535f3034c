"""Imports point down the floors, and all but `interop` does without PyTorch and Diffusers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0,
    "dtypes": 0,
    "files": 0,
    "places": 0,
    "processes": 0,
    "images": 0,
    "memory": 0,
    "interrupts": 0,
    "progress": 0,
    "trees": 0,
    "workdir": 0,
    "models": 1,
    "diffusion": 1,
    "weights": 2,
    "pruning": 2,
    "data": 3,
    "preparation": 4,
    "pipelines": 3,
    "shapes": 3,
    "metrics": 3,
    "training": 4,
    "analysis": 4,
    "shapes_teacher": 4,
    "planning": 5,
    "reports": 5,
    "interop": 5,
    "experiments": 6,
}
MODULES = sorted((ROOT / "bksdm_jax").rglob("*.py"))


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(ROOT / "bksdm_jax").parts[0].removesuffix(".py")
    for name in imported(path):
        package, *rest = name.split(".")
        assert package not in ("launch", "configs", "tests"), name
        assert own == "interop" or package not in ("torch", "diffusers"), name
        if package == "bksdm_jax" and own != "__init__":
            assert rest[0] in FLOORS, f"{rest[0]} has no floor yet"
            assert FLOORS[rest[0]] <= FLOORS[own], f"{own} imports {name}"
            assert {own, rest[0]} != {"models", "diffusion"}, "networks and noise schedules don't know each other"


def test_reports_do_without_jax() -> None:
    for path in (ROOT / "bksdm_jax" / "reports").glob("*.py"):
        assert not any(name.split(".")[0] in ("jax", "flax") for name in imported(path)), path


def test_configuration_stops_at_the_door() -> None:
    for path in MODULES:
        assert not any(name.startswith("ml_collections") for name in imported(path)), path
