"""Everything that a release must pass, on this machine, and a summary that fits on a screen: `make release-check`.

In this order: lint; the wheel, built, repaired and looked into; the kernels under sanitizers, and five minutes of
random calls; the long forms of tests, of faults most of all; the whole suite against the wheel in an empty environment
without compilers, and what importing it costs there; coverage, and whether every error message is triggered by a test.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUZZ_SECONDS = 300

summary: list[str] = []


def step(name: str, *command: str) -> str:
    """Run a command, showing what it says; its output, and a failure ends all."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started, said = time.monotonic(), []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        said.append(line)
    status = process.wait()
    seconds = time.monotonic() - started
    if status:
        summary.append(f"{name:<14} FAILED with status {status} after {seconds:.0f} s")
        print("\n".join(["", "release-check: not ready", *summary]))
        sys.exit(1)
    summary.append(f"{name:<14} ok, {seconds:.0f} s")
    return "".join(said)


def note(pattern: str, text: str) -> None:
    """Add to the summary what a step said."""
    for found in re.findall(pattern, text, re.MULTILINE):
        summary.append(f"{'':<14} {found}")


def main() -> None:
    step("lint", "make", "lint")
    said = step("wheel", "make", "wheel")
    note(r"^mixflow-.*\.whl: .*$", said)
    note(r"^fuzz: .*: ok$", step("sanitizers", "make", "sanitize", "CASES=5000"))
    note(r"^fuzz: .*: ok$", step("fuzz", "make", "fuzz", f"SECONDS={FUZZ_SECONDS}"))
    said = step("long forms", sys.executable, "-m", "pytest", "-q", "-rA", "--release", "-m", "release", "tests")
    note(r"^PASSED (.*)$", said)
    wheel = max(ROOT.glob("dist/*.whl"), key=lambda path: path.stat().st_mtime)
    said = step("wheel alone", sys.executable, "tools/wheel.py", "try", str(wheel), "--", "-q", "tests")
    note(r"^(?:import|one OpenMP runtime): .*$", said)
    note(r"^\d+ passed.*$", said)
    said = step("coverage", "make", "coverage")
    note(r"^(?:TOTAL|messages:) .*$|^\d+ passed.*$", said)
    print("\n".join(["", "release-check: ready", *summary]))


if __name__ == "__main__":
    main()
