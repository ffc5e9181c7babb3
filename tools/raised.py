"""List the errors and warnings of the package that no test triggers: every `raise` and `throw` that was not reached.

    raised.py COVERAGE.json [GCOVR.json]      (`make coverage` writes both)

A message that no test triggers may be wrong, or may describe what cannot happen. The exit status is 1 if there are any,
except those listed below, or if one of those below is reached after all.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What a test on a machine without a GPU cannot trigger: the file and a part of the statement, and why.
UNREACHABLE = {
    ("csrc/bindings.cpp", "this build of mixflow has no CUDA kernels"): "mixflow.op refuses before",
    ("csrc/bindings.cpp", "family: index out of range"): "mixflow.op looks names up",
    ("csrc/bindings.cpp", "base: index out of range"): "mixflow.op looks names up",
    ("csrc/bindings.cpp", "operands: expected"): "mixflow.op passes the right number",
    ("csrc/bindings.cpp", "expected one last axis of the same length"): "mixflow.op checks shapes",
    ("csrc/cuda/launcher.h", "mixflow: CUDA"): "no device",
    ("csrc/plan.cpp", "expected at most"): "mixflow.op broadcasts",
    ("csrc/plan.cpp", "does not broadcast to length"): "mixflow.op broadcasts; tests/native triggers it",
}


def statements(path: Path) -> list[tuple[int, str]]:
    """Line and text of each statement that reports an error or a warning."""
    text = path.read_text()
    if path.suffix == ".py":
        found = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("warn", "error")
            ):
                found.append((node.lineno, ast.get_source_segment(text, node) or ""))
        return [(line, source) for line, source in found if source not in ("raise", "raise NotImplementedError")]
    lines = text.splitlines()
    return [(i + 1, " ".join(lines[i : i + 4])) for i, line in enumerate(lines) if "throw " in line.split("//")[0]]


def main(python: str, *native: str) -> int:
    reached: dict[str, set[int]] = {}
    for name, file in json.loads(Path(python).read_text())["files"].items():
        reached["python/mixflow/" + name.rpartition("mixflow/")[2]] = set(file["executed_lines"])
    for report in native:
        for file in json.loads(Path(report).read_text())["files"]:
            hit = {line["line_number"] for line in file["lines"] if line["count"] > 0}
            reached[file["file"]] = hit
    total, missed, excused = 0, [], []
    native_files = [path for path in ROOT.glob("csrc/**/*") if path.suffix in (".h", ".cpp", ".cu")] if native else []
    for path in sorted([*ROOT.glob("python/mixflow/**/*.py"), *native_files]):
        name = str(path.relative_to(ROOT))
        for line, source in statements(path):
            total += 1
            if line in reached.get(name, ()):
                continue
            excuse = next((key for key in UNREACHABLE if key[0] == name and key[1] in source), None)
            if excuse:
                excused.append(excuse)
            else:
                missed.append(f"{name}:{line}: {' '.join(source.split())[:120]}")
    idle = [f"{name}: no excuse needed for {part!r}" for name, part in UNREACHABLE if (name, part) not in excused]
    print(*missed, *(idle if native else []), sep="\n")
    print(f"messages: {total}, triggered by tests: {total - len(missed) - len(excused)}, excused: {len(excused)}")
    return 1 if missed or (native and idle) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
