"""Build the wheels that are shipped, and test one on a machine that has only Python.

    wheel.py build [PYTHON ...]     an sdist, and from it a wheel for each Python, for the oldest manylinux that it fits
    wheel.py check WHEEL_OR_FOLDER  what is in it: size, linked libraries, typing marker, licence
    wheel.py try WHEEL [-- PYTEST]  install it into an empty environment and run the tests there, no compiler on PATH;
                                    with another Python, or other versions of what it needs:
                                    try --python python3.10 --pin torch==2.6.0 --pin numpy==1.26.4 dist/*cp310*.whl

The compiled module does not link to an OpenMP runtime: when it is loaded, it finds the one that torch has loaded (see
CMakeLists.txt). If it did link to libgomp.so.1, auditwheel would copy that library into the wheel, and there would be a
second pool of threads beside torch's. Nor can libgomp.so.1 be a dependency that is not copied: some builds of torch
ship it under another name, so it would be missing, or be loaded twice.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MEGABYTES = 25  # the largest wheel allowed
IMPORT_MILLISECONDS = 50  # the most that importing mixflow may add to importing torch
SYSTEM_LIBRARIES = {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libstdc++.so.6", "libpthread.so.0", "libdl.so.2"}
SYSTEM_LIBRARIES |= {"librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def run(*command: str | Path, **options: object) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def build(out: Path, pythons: list[str]) -> Iterator[Path]:
    """Build an sdist and a repaired wheel for each interpreter in ``out``; yields the paths of the wheels."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
        (sdist,) = Path(folder).glob("*.tar.gz")
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(sdist, out)
        for number, python in enumerate(pythons):
            made, repaired = Path(folder, f"{number}"), Path(folder, f"{number}-repaired")
            its_pip = (sys.executable, "-m", "pip", "--python", shutil.which(python) or python)
            run(*its_pip, "wheel", "--verbose", "--no-deps", "--wheel-dir", made, sdist)
            (wheel,) = made.glob("*.whl")
            if sys.platform == "linux":
                scripts = os.environ | {"PATH": with_own_scripts()}
                run("auditwheel", "repair", "--wheel-dir", repaired, wheel, env=scripts)
                (wheel,) = repaired.glob("*.whl")
            yield Path(shutil.copy(wheel, out))


def with_own_scripts() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def check(wheel: Path) -> str:
    """One line about the wheel; AssertionError if it must not be shipped."""
    size = wheel.stat().st_size / 1e6
    assert size <= MEGABYTES, f"{wheel.name}: {size:.1f} MB, more than {MEGABYTES}"
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        assert "mixflow/py.typed" in names, f"{wheel.name}: py.typed is missing"
        assert any(name.endswith("licenses/LICENSE") for name in names), f"{wheel.name}: LICENSE is missing"
        strangers = [name for name in names if not re.match(r"mixflow/|mixflow-[^/]+\.dist-info/", name)]
        assert not strangers, f"{wheel.name}: expected mixflow and nothing else, found {strangers}"
        (module,) = [name for name in names if re.search(r"_core\..*\.(so|pyd)$", name)]
        linked = linked_libraries(archive.extract(module, folder))
    assert linked <= SYSTEM_LIBRARIES, f"{wheel.name}: links {sorted(linked - SYSTEM_LIBRARIES)}"
    return f"{wheel.name}: {size:.2f} MB, {len(names)} files, links {', '.join(sorted(linked)) or 'nothing listed'}"


def linked_libraries(path: str) -> set[str]:
    if not shutil.which("readelf"):  # not Linux
        return set()
    said = subprocess.run(["readelf", "--dynamic", path], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", said))


@contextlib.contextmanager
def empty_environment(wheel: Path, interpreter: str, pins: list[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A new virtual environment with the wheel, and the environment variables of a machine without compilers.

    Without ``pins``, constraints.txt chooses versions that fit each other.
    """
    with tempfile.TemporaryDirectory() as folder:
        run(interpreter, "-m", "venv", folder)
        python = Path(folder, "bin", "python")
        chosen = pins or ["-c", ROOT / "constraints.txt"]
        run(python, "-m", "pip", "install", "--quiet", *chosen, f"mixflow[test] @ {wheel.resolve().as_uri()}")
        bare = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CC", "CXX", "LD_"))
        }
        yield python, bare | {"PATH": str(python.parent)}


SINGLE_RUNTIME = """
import sys
{imports}
import torch, mixflow
from mixflow.config import openmp_runtimes
assert {prefix!r} in mixflow.__file__, mixflow.__file__
torch.set_num_threads(2)
x = torch.randn(1 << 17)
mixflow.cdf_transform(x, torch.zeros(3), torch.randn(3), torch.zeros(3))
assert mixflow.show_config()["openmp"]
assert len(openmp_runtimes()) == 1, openmp_runtimes()
print("one OpenMP runtime:", *openmp_runtimes())
"""


IMPORT = """
import gc, time
import numpy, torch
gc.collect()  # otherwise a pass over torch's objects falls into the measured time, and takes longer than the rest of it
start = time.process_time()
import mixflow
print(1000 * (time.process_time() - start))
"""


def import_milliseconds(python: Path, environment: dict[str, str]) -> float:
    """What importing mixflow adds to importing torch, in milliseconds of processor time.

    Other programs that run at the same time hardly change processor time. The result is the median of nine processes,
    after one that fills the caches.
    """
    times = []
    for _ in range(10):
        command = [str(python), "-c", IMPORT]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        times.append(float(said))
    return statistics.median(times[1:])


def try_out(wheel: Path, pytest_arguments: list[str], interpreter: str, pins: list[str]) -> None:
    with (
        empty_environment(wheel, interpreter, pins) as (python, environment),
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        for compiler in ("cc", "gcc", "g++", "clang", "cmake", "nvcc", "ninja"):
            assert shutil.which(compiler, path=environment["PATH"]) is None, compiler
        for imports in ("import mixflow", "import torch; torch.zeros(1 << 20).exp()"):
            code = SINGLE_RUNTIME.format(imports=imports, prefix=str(python.parents[1]))
            run(python, "-c", code, cwd=elsewhere, env=environment)
        run(python, "-m", "mixflow", "info", cwd=elsewhere, env=environment)
        milliseconds = import_milliseconds(python, environment)
        print(f"import: {milliseconds:.0f} ms of processor time beyond torch's own", flush=True)
        assert milliseconds <= IMPORT_MILLISECONDS
        tests = pytest_arguments or ["--quiet", "tests", "--pyargs", "mixflow"]
        run(python, "-m", "pytest", *tests, cwd=ROOT, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build")
    command.add_argument("pythons", nargs="*", default=[sys.executable], metavar="PYTHON")
    command.add_argument("--out", type=Path, default=ROOT / "dist")
    command = commands.add_parser("check")
    command.add_argument("path", type=Path)
    command = commands.add_parser("try")
    command.add_argument("path", type=Path)
    command.add_argument("pytest", nargs="*")
    command.add_argument("--python", default=sys.executable)
    command.add_argument("--pin", action="append", default=[], metavar="REQUIREMENT")
    arguments = parser.parse_args()
    if arguments.command == "build":
        for wheel in build(arguments.out, arguments.pythons):
            print(check(wheel))
    elif arguments.command == "check":
        wheels = sorted(arguments.path.glob("*.whl")) if arguments.path.is_dir() else [arguments.path]
        assert wheels, f"{arguments.path}: no wheels"
        print(*map(check, wheels), sep="\n")
    else:
        try_out(arguments.path, arguments.pytest, arguments.python, arguments.pin)


if __name__ == "__main__":
    main()
