"""One command for a machine with a GPU: build, test, benchmark, in under eight minutes (`make gpu`).

    tools/gpu.py [--seconds 460] [--out build/gpu] [--only STEP ...]

The steps, in this order:

    build         for the GPU of this machine
    info          what the build contains
    tests         the tests of the ops, with their tensors on the GPU
    cuda          the tests of what only a GPU has: streams, graphs, devices, memory
    sanitizer     some of these tests under compute-sanitizer, which finds wrong memory accesses
    benchmark     rates of the kernels
    training      training steps a second, captured as CUDA graphs and kernel by kernel
    instructions  how many instructions the kernels execute; this needs nvdisasm and no GPU

Nothing is downloaded. The machine needs nvcc, and the Python that runs this needs torch, numpy, safetensors, tqdm,
pybind11, cmake, and what the tests import.

If a step takes less than its share of the time, the later ones get the rest. A step that fails or takes too long does
not stop the others. Logs and report.txt are in --out, with the tables at the end. The exit status is 1 if any step
failed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sass.toolkit import compiler, disassembler, program

ROOT = Path(__file__).parents[1]
SECONDS = 460
TAIL = 40  # lines of a failure that the report shows

OP_TESTS = (
    "ops",
    "gradients",
    "discretized",
    "accuracy",
    "properties",
    "torch",
    "distributions",
    "transforms",
    "masked",
    "flows",
    "flow_calls",
)
# Every kind of memory access, on few elements: under the sanitizer a test takes ten times as long.
SANITIZED = ["tests/test_ops.py", "tests/test_gradients.py"]
SANITIZED += ["-k", "(oracle or solves) and gaussian and normal and float32 and (element or feature or chunks)"]
# Fails if the build has no CUDA kernels. Without this step, pytest would skip every test and report success.
INFO = "import mixflow; told = mixflow.show_config(); print(told); assert told['cuda_usable'], 'it has no CUDA kernels'"
BENCHMARKS = ("Forward: ", "Inverse: ", "Forward and backward: ", "Limits of the machine: ")
TABLES = ("benchmark", "training", "instructions")  # the steps whose logs are tables

# The flows whose training steps are timed: arguments by the name of the recipe.
TRAINED: dict[str, dict[str, int]] = {
    "univariate": {},
    **{name: {"features": 5} for name in ("gaussianization", "coupling", "autoregressive", "gaussian_mixture")},
}
BATCHES = (256, 4096, 65_536)  # rows
STEPS, EPOCHS = 32, 4  # steps in an epoch; epochs. The first epoch is not timed, because steps are captured in it


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Args:
        name: The name of the step and of its log.
        share: Its share of the time, relative to the other steps.
        commands: Alternatives, tried in turn until one succeeds.
        environment: Environment variables that are added to those of this process.
        missing: Why the step cannot be done here; empty if it can.
        on_device: Whether it needs a CUDA device.

    """

    name: str
    share: float
    commands: Sequence[Sequence[str]]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""
    on_device: bool = True


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str  # ok, skipped, failed, or out of time
    detail: str
    log: Path


def run_steps(steps: Sequence[Step], out: Path, seconds: float) -> list[Outcome]:
    """Do all steps within ``seconds``, also after one that fails."""
    end = time.monotonic() + seconds
    outcomes = []
    for i, step in enumerate(steps):
        left = max(1.0, end - time.monotonic())
        limit = left * step.share / sum(s.share for s in steps[i:] if not s.missing) if not step.missing else 0.0
        outcomes.append(run_step(step, out / f"{step.name.replace(' ', '-')}.log", limit))
        print(f"{step.name:<14} {outcomes[-1].status}, {outcomes[-1].detail}", flush=True)
    return outcomes


def run_step(step: Step, log: Path, limit: float) -> Outcome:
    if step.missing:
        log.write_text(step.missing + "\n")
        return Outcome(step.name, "skipped", step.missing, log)
    started = time.monotonic()
    with log.open("w") as said:
        for command in step.commands:
            print(f"$ {' '.join(command)}", file=said, flush=True)
            left = limit - (time.monotonic() - started)
            status = run(command, step.environment, said.fileno(), left)
            if status is None:
                return Outcome(step.name, "out of time", f"ended after {limit:.0f} s", log)
            if status == 0:
                return Outcome(step.name, "ok", f"{time.monotonic() - started:.0f} s", log)
    return Outcome(step.name, "failed", f"status {status} after {time.monotonic() - started:.0f} s", log)


def run(command: Sequence[str], environment: dict[str, str], log: int, limit: float) -> int | None:
    """The command's exit status; None if it took longer than ``limit`` and was ended with all that it started."""
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
        )
    except OSError as error:
        os.write(log, f"{error}\n".encode())
        return 127
    try:
        return process.wait(max(0.0, limit))
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def all_steps(out: Path, capability: tuple[int, int]) -> list[Step]:
    """The steps for a device of this compute capability."""
    python, site = sys.executable, str(out / "site")
    # The CUDA toolkit may not be on PATH, and neither are the programs of a virtual environment that is not activated.
    scripts, nvcc = str(Path(python).parent), compiler()
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    building = {"CUDAARCHS": os.environ.get("CUDAARCHS") or "{}{}".format(*capability), "CUDACXX": nvcc, "PATH": path}
    pip = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "--upgrade"]
    pip += ["--disable-pip-version-check", "--target", site, "."]
    pip += ["-C", f"build-dir={out}/cmake", "-C", "cmake.define.MIXFLOW_CUDA=ON"]
    plainly = [python, __file__, "--out", str(out), "--with-cmake"]
    built = {"PYTHONPATH": os.pathsep.join([site, str(ROOT / "tests")]), "PATH": path}

    # Plugins of pytest that happen to be installed warn about each other, and a warning fails a test.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda"]
    workers = min(8, (os.cpu_count() or 1) // 2)
    parallel = ["-p", "xdist", "-n", str(workers)] if has("xdist") and workers > 1 else []
    # Tests of packages that such a machine seldom has. They run on the CPU anyway.
    guests = {"zuko": "test_drops_into_zuko", "pyro": "test_pyro"}
    absent = [f"tests/test_distributions.py::{test}" for package, test in guests.items() if not has(package)]
    without = [part for test in absent for part in ("--deselect", test)]
    files = [f"tests/test_{name}.py" for name in OP_TESTS]
    sanitizer = program("compute-sanitizer")
    memcheck = [sanitizer, "--tool", "memcheck", "--error-exitcode", "9"]

    bench = [python, str(ROOT / "bench" / "ops.py"), "--device", "cuda", "--out", str(out)]
    bench += [part for text in BENCHMARKS for part in ("--only", text)]
    # Without a GPU there is no build in `site`, and the last step compares with the mixflow that Python finds.
    beside = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
    nvdisasm = disassembler()
    return [
        Step("build", 150, [pip, plainly], building),
        Step("info", 10, [[python, "-c", INFO]], built),
        Step("tests", 100, [[*pytest, *parallel, *without, *files]], built | alone),
        Step("cuda", 60, [[*pytest, "tests/test_cuda.py"]], built | alone),
        Step(
            "sanitizer",
            70,
            [[*memcheck, *pytest, "-x", *SANITIZED]],
            # torch allocates each tensor by itself, so the sanitizer notices an access beyond its end.
            built | alone | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            missing="" if sanitizer else "compute-sanitizer is not there; it comes with the CUDA toolkit",
        ),
        Step("benchmark", 110, [bench], built),
        Step("training", 60, [[python, __file__, "--training"]], built),
        Step(
            "instructions",
            60,
            [[python, str(ROOT / "tools" / "gpu_instructions.py"), "--nvdisasm", nvdisasm]],
            {"PYTHONPATH": beside, "CUDACXX": nvcc},
            missing="" if nvdisasm else "nvdisasm is not there; pip install nvidia-cuda-nvdisasm",
            on_device=False,
        ),
    ]


def build_with_cmake(out: Path) -> None:
    """Build the package in ``out``/site without pip, if pip or scikit-build-core is missing."""
    import pybind11

    folder, site = out / "cmake-alone", out / "site" / "mixflow"
    options = [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options += ["-DCMAKE_BUILD_TYPE=Release", "-DMIXFLOW_CUDA=ON", f"-DCMAKE_INSTALL_PREFIX={out / 'site'}"]
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, *generator, *options], check=True)
    subprocess.run(["cmake", "--build", folder, "--parallel"], check=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(ROOT / "python" / "mixflow", site, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    subprocess.run(["cmake", "--install", folder], check=True)


@dataclass(frozen=True)
class Rates:
    """Training steps a second, captured as CUDA graphs and kernel by kernel.

    ``off`` is the largest difference of two weights after the same steps, or None if all are equal. ``note`` is what
    ``fit`` noted about the run that should capture: how it took the steps.
    """

    flow: str
    rows: int
    captured: float
    plain: float
    off: float | None
    note: str

    def cells(self) -> dict[str, str]:
        """What the table shows, by heading."""
        return {
            "case": f"{self.flow}, N = {self.rows:,}",
            "steps/s, captured": f"{self.captured:,.0f}",
            "steps/s, plain": f"{self.plain:,.0f}",
            "times as fast": f"{self.captured / self.plain:.2f}",
            "weights": "equal" if self.off is None else f"off by {self.off:.1e}",
        }


def training_rates(flow: str, rows: int, device: str, steps: int = STEPS, epochs: int = EPOCHS) -> Rates:
    """Fit a flow twice to the same batches of ``rows`` rows on ``device``, and compare weights and times."""
    import torch

    import mixflow

    start = mixflow.flows.RECIPES[flow](**TRAINED[flow], seed=0)
    data = torch.randn(steps * rows, start.features, generator=torch.Generator().manual_seed(0))
    start.initialize(data[:4096])

    def fitted() -> tuple[dict[str, Any], float, list[str]]:
        trained = copy.deepcopy(start)
        options = {"batch_size": rows, "epochs": epochs, "validation": 0, "initialize": False, "progress": False}
        history = mixflow.fit(trained, data.to(device), device=device, **options)
        return trained.state_dict(), steps / statistics.median(history.seconds[1:]), history.notes

    weights, captured, notes = fitted()
    with mixflow.fitting.captured.disabled():
        others, plain, _ = fitted()
    off = None
    if not all(torch.equal(value, others[name]) for name, value in weights.items()):
        off = max(float((value - others[name]).abs().max()) for name, value in weights.items() if value.numel())
    note = next((note for note in notes if note.startswith("Steps: ")), "")
    return Rates(flow, rows, captured, plain, off, note)


def print_training(device: str, batches: Sequence[int] = BATCHES, steps: int = STEPS, epochs: int = EPOCHS) -> None:
    """Print the table of :func:`training_rates`, and below it how the steps were taken."""
    from mixflow.bench.report import table

    found = [training_rates(flow, rows, device, steps, epochs) for flow in TRAINED for rows in batches]
    notes = dict.fromkeys(f"  {row.flow}: {row.note}" for row in found if row.note)
    print("\n".join(["Steps of training", "", table([rates.cells() for rates in found]), *notes]))


def report(outcomes: Sequence[Outcome], device: str) -> str:
    """The outcome of each step, the last lines of the logs of failed ones, and the tables."""
    lines = [device, "", *(f"{o.name:<14} {o.status}, {o.detail}" for o in outcomes), ""]
    for outcome in outcomes:
        said = outcome.log.read_text(errors="replace").splitlines()
        if outcome.status not in ("ok", "skipped"):
            lines += [f"== the end of {outcome.log}", *said[-TAIL:], ""]
        elif outcome.name == "info":
            lines += [*said[1:], ""]
        elif outcome.name not in TABLES:
            lines += [f"{outcome.name}: {said[-1]}"]
    tables = [o.log.read_text(errors="replace") for o in outcomes if o.name in TABLES and o.status != "skipped"]
    return "\n".join([*lines, "", *tables])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build, test and time mixflow on the CUDA device of this machine.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="default: %(default)s")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="only this step; may be repeated")
    parser.add_argument("--with-cmake", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--training", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if options.with_cmake:
        build_with_cmake(out)
        return 0
    if options.training:
        print_training("cuda")
        return 0
    missing = [name for name in ("torch", "numpy", "pybind11") if not has(name)]
    if missing:
        print(f"gpu: {sys.executable} has no {', '.join(missing)}", file=sys.stderr)
        return 1
    import torch

    found = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    steps = all_steps(out, (found.major, found.minor) if found else (0, 0))
    unknown = set(options.only) - {step.name for step in steps}
    if unknown:
        parser.error(f"--only: expected some of {', '.join(s.name for s in steps)}, got {', '.join(sorted(unknown))}")
    chosen = [step for step in steps if not options.only or step.name in options.only]
    if not found and any(step.on_device for step in chosen):
        print(f"gpu: torch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        return 1
    if not compiler():
        print("gpu: nvcc is not there; put it on PATH, or set CUDACXX or CUDA_HOME", file=sys.stderr)
        return 1
    device = f"{found.name}, {found.total_memory / 2**30:.0f} GiB" if found else "no CUDA device"
    device += f", torch {torch.__version__}"
    if chosen[0].name == "build":
        shutil.rmtree(out / "site", ignore_errors=True)  # after a failed build, no old one is tested
    out.mkdir(parents=True, exist_ok=True)
    print(device, flush=True)
    outcomes = run_steps(chosen, out, options.seconds)
    text = report(outcomes, device)
    (out / "report.txt").write_text(text)
    print(f"\nwrote {out / 'report.txt'}\n\n{text}")
    return int(any(o.status in ("failed", "out of time") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
