"""Run everything that a release must pass, on this machine, and print a summary that fits on a screen.

`make release-check` runs, in this order:

1. lint;
2. the wheel: build it, repair it, check its contents;
3. at the same time
   - the kernels under sanitizers, the accuracy of the emulated CUDA kernels, five minutes of random calls, and the long
     forms of tests, most of which inject faults;
   - all tests, the slow ones too, against the wheel in an empty environment without compilers, and the time that
     importing the package takes there; then all tests once more, for coverage, and whether they trigger every error
     message.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
FUZZ_SECONDS = 300

summary: list[str] = []


def step(name: str, *command: str, notable: str = "$^") -> None:
    """Run a command and show its output. Lines that match ``notable`` go to the summary. SystemExit if it fails."""
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    started, output = time.monotonic(), []
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name}: {line}", end="", flush=True)
        output.append(line)
    status = process.wait()
    seconds = time.monotonic() - started
    if status:
        summary.append(f"{name:<14} FAILED with status {status} after {seconds:.0f} s")
        raise SystemExit(1)
    found = [f"{'':<14} {match}" for line in output for match in re.findall(notable, line.rstrip())]
    summary.extend([f"{name:<14} ok, {seconds:.0f} s", *found])


def check_kernels() -> None:
    fuzzed = r"^fuzz.*: ok$"
    step("sanitizers", "make", "sanitize", "CASES=5000", notable=fuzzed)
    step("emulated", "make", "emulated", notable=r"^every bound holds$")
    step("fuzz", "make", "fuzz", f"SECONDS={FUZZ_SECONDS}", notable=fuzzed)
    long = [sys.executable, "-m", "pytest", "-q", "-rA", "--release", "-m", "release", "tests"]
    step("long forms", *long, notable=r"^PASSED .*$")


def check_wheel() -> None:
    wheel = max(ROOT.glob("dist/*.whl"), key=lambda path: path.stat().st_mtime)
    alone = [sys.executable, "tools/wheel.py", "try", str(wheel), "--", "-q", "tests"]
    step("wheel alone", *alone, notable=r"^(?:import|one OpenMP runtime): .*$|^\d+ passed.*$")
    step("coverage", "make", "coverage", notable=r"^(?:TOTAL|messages:) .*$|^\d+ passed.*$")


def check_all() -> None:
    step("lint", "make", "lint")
    step("wheel", "make", "wheel", notable=r"^mixflow-.*\.whl: .*$")
    with ThreadPoolExecutor() as pool:
        for running in [pool.submit(check_kernels), pool.submit(check_wheel)]:
            running.result()


def main() -> int:
    try:
        check_all()
    except SystemExit:
        print("\n".join(["", "release-check: not ready", *summary]))
        return 1
    print("\n".join(["", "release-check: ready", *summary]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
