"""The shape of the package in numbers: how many pieces it is cut into, and how many of them one command meets.

    python benchmarks/shape.py [--names] [--json] [--limits] [--no-trace] [--root CHECKOUT]

From the source (by ast, nothing is imported), which takes seconds and is all that --no-trace measures:

lines             of every .py file of the package that git does not ignore
head              of a module: the lines above its first statement that is neither docstring nor import
classes           all, nested ones too; functions: every def, methods and nested ones too, lambdas not
body              of a function: its lines without signature and docstring; "over 60 lines" counts the whole def
over 6 parameters self, cls, * and ** not counted; "cli apart" leaves out what Typer reads options from
private once      a function of a module, named _so, whose name its module mentions once beside the def, called or not
circle            modules that import each other, by whatever way: annotations and imports inside functions count
twice             a class name, or a file name but __init__, that stands for two things; a command may share its verb's
test of its name  a test_<module>.py anywhere below tests/; __init__ and cli apart

Then what `tile`, `train` and `predict` meet of it, about a minute; traced.py says how that is counted.

With --limits it says what is over LIMITS and then ends with 1.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from record import ROOT, table
from traced import PACKAGE, Figures, Names, measure_commands

LIMITS: dict[str, float] = {
    "modules": 125,
    "lines": 26_000,
    "classes": 215,
    "functions": 1450,
    "functions over 60 lines, cli apart": 6,
    "functions over 80 lines, cli apart": 0,
    "private functions used once": 320,
    "import circles": 0,
    "class names used twice": 0,
    "predict: modules entered": 50,
    "predict: frames from main to the network": 8,
    "predict: model file read": 1,
    "train: modules entered": 45,
    "train: frames from main to the loss": 7,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    name: str
    """Dotted, a package's `__init__` by the name of the package."""
    path: Path
    """Below the checkout."""
    lines: int
    tree: ast.Module

    @property
    def is_command(self) -> bool:
        """Whether it belongs to the command line."""
        return self.path.parts[1] == "cli"

    def functions(self) -> Iterator[Function]:
        """Yield every def, methods and nested ones too."""
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))


def read_package(root: Path) -> list[Module]:
    """Return the modules of the package in the checkout `root`, files that git ignores apart."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", PACKAGE],
        capture_output=True, text=True, check=False,
    ).stdout.split("\0")  # fmt: skip
    paths = {root / name for name in listed if name.endswith(".py")} or set((root / PACKAGE).rglob("*.py"))
    modules = []
    for path in sorted(path for path in paths if path.is_file()):
        parts = path.relative_to(root).with_suffix("").parts
        text = path.read_text()
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, path.relative_to(root), len(text.splitlines()), ast.parse(text)))
    if not modules:
        sys.exit(f"error: {root}: no {PACKAGE}/ with Python files; give a checkout with --root")
    return modules


def head(module: Module) -> int:
    """Return the number of lines above the first statement of the module's own."""
    for node in module.tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not (docstring or typing or isinstance(node, ast.Import | ast.ImportFrom)):
            decorators: list[ast.expr] = getattr(node, "decorator_list", [])
            return min([node.lineno, *(each.lineno for each in decorators)]) - 1
    return module.lines


def whole(function: Function) -> int:
    """Return the lines from `def` to the end."""
    return (function.end_lineno or 0) - function.lineno + 1


def body(function: Function) -> int:
    """Return the lines below signature and docstring."""
    own = function.body[ast.get_docstring(function) is not None :]
    return (own[-1].end_lineno or 0) - own[0].lineno + 1 if own else 0


def parameters(function: Function) -> int:
    """Return how many a caller may give."""
    named = function.args
    return sum(item.arg not in ("self", "cls") for item in (*named.posonlyargs, *named.args, *named.kwonlyargs))


def import_graph(modules: list[Module]) -> dict[str, set[str]]:
    """Return what each module imports of the package, wherever the import stands."""
    names = {module.name for module in modules}
    graph: dict[str, set[str]] = {}
    for module in modules:
        found: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                found |= {path if path in names else node.module for path in inner.values()}
        graph[module.name] = (found & names) - {module.name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules each of which reaches all others of its group."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        todo, seen = list(graph[start]), set[str]()
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph[name]
        reached[start] = seen
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return sorted(list(group) for group in groups)


def used_once(module: Module) -> list[str]:
    """Return the module's private functions that it mentions once."""
    uses = Counter(node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name))
    return [name for name in private_functions(module) if uses[name] == 1]


def private_functions(module: Module) -> list[str]:
    """Return the names of the module's own private functions, methods apart."""
    named = [node.name for node in module.tree.body if isinstance(node, Function)]
    return [name for name in named if name.startswith("_") and not name.startswith("__")]


def twice(places: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names that stand in several places, each with these."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, place in places:
        found[name].append(place)
    return [f"{name}: {', '.join(where)}" for name, where in sorted(found.items()) if len(where) > 1]


def measure_source(root: Path) -> tuple[Figures, Names]:
    """Return the figures that the source gives, and what stands behind them by name."""
    modules = read_package(root)
    graph = import_graph(modules)
    importers = Counter(name for imported in graph.values() for name in imported)
    tests = {path.stem for path in (root / "tests").rglob("test_*.py")}
    functions = [(function, module) for module in modules for function in module.functions()]
    plain = [(function, module) for function, module in functions if not module.is_command]
    bodies = sorted(body(function) for function, _ in functions)
    classes = [(node.name, module.name) for module in modules for node in ast.walk(module.tree)
               if isinstance(node, ast.ClassDef)]  # fmt: skip
    testable = [module for module in modules if module.path.stem != "__init__" and not module.is_command]

    def long_ones(limit: int) -> list[str]:
        return [f"{m.name}.{f.name}: {whole(f)}" for f, m in plain if whole(f) > limit]

    by_length = sorted(plain, key=lambda pair: -whole(pair[0]))
    names: Names = {
        "modules over 450 lines": [f"{m.name}: {m.lines}" for m in modules if m.lines > 450],
        "modules over 500 lines": [f"{m.name}: {m.lines}" for m in modules if m.lines > 500],
        "longest functions, cli apart: lines, of its body": [
            f"{m.name}.{f.name}: {whole(f)}, {body(f)}" for f, m in by_length[:20]
        ],
        "functions over 60 lines, cli apart": long_ones(60),
        "functions over 80 lines, cli apart": long_ones(80),
        "functions over 6 parameters, cli apart": [
            f"{m.name}.{f.name}: {parameters(f)}" for f, m in plain if parameters(f) > 6
        ],
        "private functions used once": [f"{m.name}.{name}" for m in modules for name in used_once(m)],
        "import circles": [" <-> ".join(circle) for circle in circles(graph)],
        "class names used twice": twice(classes),
        "file names used twice": twice((m.path.stem, str(m.path)) for m in modules if m.path.stem != "__init__"),
        "modules without a test of their name": [m.name for m in testable if f"test_{m.path.stem}" not in tests],
        "modules with one importer": [m.name for m in modules if importers[m.name] == 1],
    }
    lines = sum(module.lines for module in modules)
    figures: Figures = {
        "modules": len(modules),
        "lines": lines,
        "median module, lines": median(module.lines for module in modules),
        "module heads, %": round(100 * sum(map(head, modules)) / max(lines, 1), 1),
        "classes": len(classes),
        "functions": len(functions),
        "median body of a function, lines": median(bodies or [0]),
        "95th percentile of bodies, lines": bodies[int(0.95 * len(bodies))] if bodies else 0,
        "longest body, lines": max(bodies, default=0),
        "private functions": sum(len(private_functions(module)) for module in modules),
        "modules that should have a test of their name": len(testable),
        **{name: len(found) for name, found in names.items() if not name.startswith("longest")},
    }
    return figures, names


def over_limits(figures: Figures, names: Names) -> list[str]:
    """Return a line for each figure above its limit, with the names behind it where they are few."""
    lines = []
    for name, limit in LIMITS.items():
        if figures.get(name, 0) > limit:
            behind = names.get(name, [])
            lines.append(f"over: {name}: {figures[name]:,g} > {limit:,g}")
            lines += [f"  {each}" for each in behind if len(behind) <= 20]
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--no-trace", action="store_true", help="measure the source only: seconds, nothing is run")
    parser.add_argument("--names", action="store_true", help="print the names behind the figures too")
    parser.add_argument("--json", action="store_true", help="print figures and names as JSON")
    parser.add_argument("--limits", action="store_true", help="end with 1 where a figure is over its limit")
    options = parser.parse_args()
    root = options.root.resolve()
    figures, names = measure_source(root)
    if not options.no_trace:
        traced, met = measure_commands(root)
        figures, names = figures | traced, names | met
    if options.json:
        print(json.dumps({"figures": figures, "limits": LIMITS, "names": names}, indent=2))
    else:
        rows = [{"measure": name, "now": f"{now:,.6g}", "limit": f"{LIMITS[name]:,g}" if name in LIMITS else ""}
                for name, now in figures.items()]  # fmt: skip
        print(table({"measure": "{measure}", "now": "{now}", "limit": "{limit}"}, rows))
    if options.names and not options.json:
        for name, found in names.items():
            print(f"\n{name} ({len(found)})", *found, sep="\n  ")
    over = over_limits(figures, names) if options.limits else []
    print(*over, sep="\n", end="\n" if over else "", file=sys.stderr)
    sys.exit(bool(over))


if __name__ == "__main__":
    main()
