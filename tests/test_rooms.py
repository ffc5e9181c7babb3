"""The architecture: which folder may import which, no circle among modules, and no file too long to read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "mixflow"

# From the bottom up: a module imports from its own folder and from lines above it alone. The last line is what runs
# the package as a program; `mixflow` itself is `mixflow/__init__.py`, the names that users import.
LAYERS = [
    ["_core"],
    ["checks", "precise", "standard"],
    ["export"],
    ["reference"],
    ["op"],
    ["config", "distributions", "start"],
    ["networks"],
    ["transforms"],
    ["flows"],
    ["files"],
    ["fitting"],
    ["mixflow"],
    ["plot", "sklearn"],
    ["bench"],
    ["cli"],
    ["__main__"],
]
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
LONGEST = 400
SOURCES = [
    path
    for folder, kinds in {"python/mixflow": ["py"], "csrc": ["h", "cpp", "cu", "cuh"]}.items()
    for kind in kinds
    for path in sorted((ROOT / folder).rglob(f"*.{kind}"))
]


def modules():
    """Each module of the package by its dotted name, without the package's own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or "mixflow"] = path
    return found


MODULES = modules()


def imported(name):
    """The modules that a module imports anywhere in it: at its top, in a function, or for its types alone."""
    path = MODULES[name]
    folder = ["mixflow", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (own(alias.name.split(".")) for alias in node.names if alias.name.split(".")[0] == "mixflow")
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else []
            where = start + (node.module.split(".") if node.module else [])
            if where[0] == "mixflow":
                yield from (own([*where, alias.name]) for alias in node.names)


def own(parts):
    """The module that a dotted name is, or is in."""
    name = ".".join(parts[1:])
    if name == "_core" or name.startswith("_core."):
        return "_core"
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "mixflow"


ARROWS = {name: sorted(set(imported(name)) - {name}) for name in MODULES}


def test_every_module_has_a_layer():
    assert {name.partition(".")[0] for name in MODULES} == RANK.keys() - {"_core"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_from_its_own_folder_and_from_layers_below(name):
    folder = name.partition(".")[0]
    others = [other for other in ARROWS[name] if other.partition(".")[0] != folder]
    assert [other for other in others if RANK[other.partition(".")[0]] >= RANK[folder]] == []


def test_no_modules_import_each_other_in_a_circle():
    finished = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for other in ARROWS.get(name, ()):
                visit(other, [*path, name])
            finished.add(name)

    for name in MODULES:
        visit(name, [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_or_gives_the_reason_why_it_is_long(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST or re.search(r"\bLong: \w", "\n".join(lines[:15]))
