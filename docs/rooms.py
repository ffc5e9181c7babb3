"""The rooms of the source code, and the arrows between them: who imports or includes whom.

Read from the sources themselves, so that the picture in ``how-it-is-built.md`` cannot show a house that is not there.
A room is a folder, or a few files with one idea. What every room may use (checks of arguments and the like) is left
out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
PYTHON, NATIVE = ROOT / "python" / "mixflow", ROOT / "csrc"

# What a room holds, in a few words. The files and folders of a room are its name, split at spaces.
ROOMS = {
    "cli": "the commands",
    "plot": "pictures",
    "fitting": "fit: rows, steps, epochs",
    "files": "models, tables",
    "flows": "recipes, Flow",
    "distributions": "as in torch.distributions",
    "transforms": "invertible maps",
    "networks": "conditioners",
    "start": "where parameters start",
    "op": "the op, as torch sees it",
    "reference": "the same, slow and obvious",
    "bindings": "what Python sees",
    "standard": "families and bases in torch",
    "plan problem": "strides to index spaces",
    "cpu": "loops, threads",
    "cuda": "kernels, launches",
    "mixture inverse interval affine gradients sums parameters": "the mathematics",
    "families bases": "components and bases",
    "special coefficients": "special functions",
    "number scalar units target simd": "verbs for every number type",
}
# The native rooms, by what a reader looks for.
LABELS = {
    "bindings": "bindings.cpp",
    "plan problem": "plan.cpp",
    "cpu": "csrc/cpu/",
    "cuda": "csrc/cuda/",
    "mixture inverse interval affine gradients sums parameters": "mixture.h, inverse.h, ...",
    "families bases": "families, bases",
    "special coefficients": "special.h",
    "number scalar units target simd": "number.h, simd/",
}
INCLUDE = re.compile(r'^\s*#\s*include "(.*)"', re.MULTILINE)
ROOM_OF = {part: room for room in ROOMS for part in room.split()} | {"_core": "bindings"}


def _imports() -> Iterator[tuple[str, str]]:
    """Pairs of a Python room and a room that it imports from."""
    for file in PYTHON.rglob("*.py"):
        path = file.relative_to(PYTHON).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                target = [*path[: -node.level], *(node.module.split(".") if node.module else [])]
                yield from ((path[0], name) for name in ([target[0]] if target else [a.name for a in node.names]))


def _includes() -> Iterator[tuple[str, str]]:
    """Pairs of a native room and a room that it includes from."""
    for file in NATIVE.rglob("*.*"):
        own = file.relative_to(NATIVE).with_suffix("").parts[0]
        for included in INCLUDE.findall(file.read_text()):
            target = (file.parent / included).resolve()
            if target.is_relative_to(NATIVE):
                yield own, target.relative_to(NATIVE).with_suffix("").parts[0]


def arrows() -> dict[str, set[str]]:
    """For each room, the rooms that it uses directly."""
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for source, target in (*_imports(), *_includes()):
        if source in ROOM_OF and target in ROOM_OF and ROOM_OF[source] != ROOM_OF[target]:
            used[ROOM_OF[source]].add(ROOM_OF[target])
    return used


def below(room: str, used: dict[str, set[str]]) -> set[str]:
    """All rooms that ``room`` uses, by way of others, too."""
    found: set[str] = set()
    waiting = list(used[room])
    while waiting:
        target = waiting.pop()
        if target not in found:
            found.add(target)
            waiting += used[target]
    return found


def floors(used: dict[str, set[str]]) -> dict[str, int]:
    """The floor of each room: one below the lowest room that uses it. Needs arrows that only run down."""
    floor: dict[str, int] = {}

    def floor_of(room: str) -> int:
        if room not in floor:
            floor[room] = min((floor_of(user) for user in used if room in used[user]), default=1) - 1
        return floor[room]

    for room in used:
        floor_of(room)
    for room, targets in used.items():  # what nothing uses stands right above what it uses, as the reference does
        if not any(room in others for others in used.values()):
            floor[room] = 1 + max((floor[target] for target in targets), default=-1)
    return floor


def draw() -> Figure:
    """The rooms, each on its floor, with the arrows that no other arrows imply."""
    used = arrows()
    floor = floors(used)
    figure = Figure(figsize=(7.0, 8.4), layout="constrained")
    ax = figure.subplots()
    place = {}
    for level in set(floor.values()):
        rooms = [room for room in ROOMS if floor[room] == level]
        for i, room in enumerate(rooms):
            place[room] = (i - 0.5 * (len(rooms) - 1), level)
    for room, (x, y) in place.items():
        color = "#FBE8DC" if room in LABELS else "#DCEAF5"
        label = LABELS.get(room, f"{room}/" if (PYTHON / room).is_dir() else f"{room}.py")
        box = {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "0.5"}
        ax.text(x, y, f"{label}\n{ROOMS[room]}", ha="center", va="center", fontsize=8, bbox=box, zorder=2)
        implied = set().union(*(below(target, used) for target in used[room]), set())
        for target in used[room] - implied:
            to = place[target]
            ax.annotate(
                "", (to[0], to[1] + 0.27), (x, y - 0.27), arrowprops={"arrowstyle": "->", "color": "0.45"}, zorder=1
            )
    widest = max(abs(x) for x, _ in place.values()) + 0.6
    ax.set(xlim=(-widest, widest), ylim=(min(floor.values()) - 0.5, 0.5))
    ax.axis("off")
    return figure
