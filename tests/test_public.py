"""The public surface: what `import aerialseg` offers resolves, is typed and documented, and its examples run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_imports import loaded_by

import aerialseg
from aerialseg.sample import write_sample

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(aerialseg.__file__).parent
PAGE = PACKAGE.parent / "docs" / "python.md"
NAMES = sorted(set(aerialseg.__all__) - {"__version__"})


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of two drawn scenes in which the page's snippets ran, from tiles to predictions."""
    folder = tmp_path_factory.mktemp("walk")
    write_sample(folder / "scenes", 2, 256, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        exec(compile("\n".join(snippets), str(PAGE), "exec"), {"__name__": "walk"})
    return folder


def test_the_page_runs(walked: Path) -> None:
    for name in (
        "tiles/town/tileset.json",
        "runs/town/model.safetensors",
        "out/probability/austin6.tif",
        "bright/vienna1.tif",
    ):
        assert (walked / name).is_file()


@pytest.mark.parametrize("name", [*NAMES, "Model.predict_array"])
def test_every_name_has_an_example_that_runs(name: str, walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walked)
    found: Any = aerialseg
    for part in name.split("."):
        found = getattr(found, part)
    given = {"aerialseg": aerialseg, "Path": Path}
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", given, name, None, None)
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.DocTestRunner(optionflags=options).run(example, out=said.append).failed == 0, "".join(said)


def test_every_public_method_and_value_is_documented_and_typed() -> None:
    for name in NAMES:
        found = getattr(aerialseg, name)
        members = vars(found).values() if inspect.isclass(found) else [found]
        for function in filter(inspect.isfunction, members):
            if function.__name__.startswith("_") or "<" in function.__qualname__:
                continue
            assert function.__doc__, f"{function.__qualname__} has no docstring"
            named = [each for each in inspect.signature(function).parameters if each not in ("self", "cls")]
            assert {*named, "return"} <= function.__annotations__.keys(), f"{function.__qualname__} is not typed"


def test_importing_loads_nothing_heavy_and_the_names_are_listed() -> None:
    heavy = {"torch", "numpy", "rasterio", "pydantic", "typer", "aerialseg.errors"}
    assert not loaded_by("import aerialseg; dir(aerialseg); aerialseg.__version__") & heavy
    assert set(aerialseg.__all__) <= set(dir(aerialseg))
    light = loaded_by("from aerialseg import Scene, find_scenes, BandRule, ModelCard, TrainConfig")
    assert {"rasterio", "pydantic"} <= light
    assert "torch" not in light


def test_another_name_is_an_attribute_error_and_a_module_is_still_a_module() -> None:
    with pytest.raises(AttributeError, match="module 'aerialseg' has no attribute 'nonsense'"):
        aerialseg.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="nonsense"):
        exec("from aerialseg import nonsense")
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names.isdisjoint(NAMES), "a submodule would take the place of the name once it is imported"
    script = "from aerialseg import errors, geo, train; import aerialseg.training; assert callable(aerialseg.train)"
    assert "aerialseg.training.loop" in loaded_by(script)


def stub() -> Iterator[tuple[str, str]]:
    """Yield the names and modules that type checkers read."""
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.name, node.module or "") for alias in node.names)
        elif isinstance(node, ast.Assign):
            assert sorted(ast.literal_eval(node.value)) == sorted(aerialseg.__all__)


def test_type_checkers_see_the_same_names() -> None:
    assert (PACKAGE / "py.typed").is_file()
    homes = {name: f"aerialseg.{module}" for name, module in aerialseg._HOMES.items()}
    assert dict(stub()) == homes
    for name, module in homes.items():
        assert getattr(aerialseg, name).__module__ == module, f"{name} is defined elsewhere"
