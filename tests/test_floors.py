"""Imports point strictly down the floors, siblings stay apart, and all but `interop` does without PyTorch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (  # from the ground up; packages of one row are siblings
    ("base",),
    ("diffusion",),
    ("models",),
    ("shapes",),
    ("formats",),
    ("pipelines",),
    ("cost",),
    ("pruning",),
    ("data",),
    ("data.prepare",),
    ("reports",),
    ("sampling", "metrics"),
    ("api", "evaluation"),
    ("training",),
    ("tasks",),
    ("analysis",),
    ("shapes_teacher",),
    ("perf",),
    ("experiments", "interop"),
)
LEVELS = {package: level for level, row in enumerate(FLOORS) for package in row}
MODULES = sorted((ROOT / "bksdm_jax").rglob("*.py"))


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def package_of(parts: tuple[str, ...]) -> str:
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LEVELS else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    own = package_of(path.relative_to(ROOT / "bksdm_jax").with_suffix("").parts)
    for name in imported(path):
        package, *rest = name.split(".")
        assert package not in ("launch", "configs", "tests"), name
        assert own == "interop" or package not in ("torch", "diffusers"), name
        if package == "bksdm_jax" and own != "__init__":
            other = package_of(tuple(rest))
            assert other in LEVELS, f"{other} has no floor"
            assert other == own or LEVELS[other] < LEVELS[own], f"{own} imports {name}"
            assert not (own == "models" and other == "diffusion"), "networks and noise schedules don't know each other"


@pytest.mark.parametrize("path", sorted((ROOT / "bksdm_jax" / "models").glob("*.py")), ids=lambda path: path.name)
def test_networks_know_no_files(path: Path) -> None:
    assert not {"json", "pathlib"} & {name.split(".")[0] for name in imported(path)}


def test_training_knows_no_task() -> None:
    for path in (ROOT / "bksdm_jax" / "training").glob("*.py"):
        assert not any(name.startswith("bksdm_jax.pruning") for name in imported(path)), path


def test_reports_do_without_jax() -> None:
    for path in (ROOT / "bksdm_jax" / "reports").glob("*.py"):
        assert not any(name.split(".")[0] in ("jax", "flax") for name in imported(path)), path


def test_configuration_stops_at_the_door() -> None:
    for path in MODULES:
        assert not any(name.startswith("ml_collections") for name in imported(path)), path
