"""The import law: modules import downwards only, and the light part of the program stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import aerialseg

PACKAGE = Path(aerialseg.__file__).parent
LAYERS = (
    {"errors"},
    {"counts", "config", "environment", "files", "progress", "system", "values"},
    {"geo"},
    {"models", "drawing"},
    {"sample", "training", "prediction", "evaluation"},
    {"workflows"},
    {"cli"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
VERBS = LAYERS[4]
HOMES = {
    "fcntl": {"system/posix"}, "resource": {"system/posix"}, "msvcrt": {"system/windows"},
    "psutil": {"files", "system/windows"},
    "typer": {"cli"}, "pydantic": {"config", "values"}, "albumentations": {"training/data"},
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(dotted: str) -> str | None:
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "aerialseg" and len(pieces) > 1 and pieces[1] in RANK else None


def faults(module: Path) -> list[str]:
    relative = module.relative_to(PACKAGE).with_suffix("")
    part = relative.parts[0]
    found = []
    for name in imported(ast.parse(module.read_text())):
        other = part_of(name)
        if other is not None and part in RANK:
            upward = RANK[other] > RANK[part]
            sideways = part in VERBS and other in VERBS and other != part
            if upward or sideways:
                found.append(f"{relative} imports {name}")
        homes = HOMES.get(name.split(".")[0])
        if homes is not None and not any(str(relative).startswith(home) for home in homes):
            found.append(f"{relative} imports {name}, which lives in {homes} only")
        if name.split(".")[0] == "osgeo" or (part == "geo" and name.split(".")[0] == "torch"):
            found.append(f"{relative} imports {name}")
    return found


def test_modules_import_downwards_only() -> None:
    assert [fault for module in MODULES for fault in faults(module)] == []


def test_the_law_is_broken_by_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "geo" / "x.py"
    module.parent.mkdir()
    module.write_text("from aerialseg.cli import main\nimport torch\nimport typer\n")
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert len(faults(module)) == 3


def test_every_top_level_part_has_its_place_in_the_law() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} <= set(RANK)
    assert all(lower.isdisjoint(upper) for lower, upper in pairwise(LAYERS))


def test_the_geo_modules_do_not_load_torch() -> None:
    modules = [module for module in MODULES if module.is_relative_to(PACKAGE / "geo")]
    names = [".".join(module.relative_to(PACKAGE.parent).with_suffix("").parts) for module in modules]
    loaded = loaded_by("import " + ", ".join(name.removesuffix(".__init__") for name in names))
    assert "rasterio" in loaded
    assert not loaded & {"torch", "albumentations"}


@pytest.mark.parametrize("name", ["prediction.run", "workflows.info", "evaluation.run", "prediction.preview", "sample"])
def test_what_runs_no_network_loads_no_torch(name: str) -> None:
    """Also a run of predict in which all is done, and a typo in one that is not."""
    assert not loaded_by(f"import aerialseg.{name}") & {"torch", "lightning", "timm", "matplotlib"}


@pytest.mark.parametrize("command", [(), ("tile",), ("train",), ("predict",)])
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    heavy = {"torch", "rasterio", "numpy", "geopandas", "matplotlib", "pydantic", "rich"}
    assert not loaded_by(f"from aerialseg.cli import main; main([*{command}, '--help'])") & heavy


def loaded_by(statement: str) -> set[str]:
    quietly = f"with contextlib.redirect_stdout(io.StringIO()):\n    {statement}\n"
    script = f"import contextlib, io, sys\n{quietly}print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())
