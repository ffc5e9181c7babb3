"""Launches, as the project's host code makes them: it is compiled against a CUDA runtime that hands them over."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sass.assembly import plain_name
from sass.block import Block, Launch, Memory, Values
from sass.cubin import Cubin
from sass.threads import run_block
from sass.toolkit import ToolError, compiler

HERE = Path(__file__).parent
OnLaunch = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p)


def compile_kernels(source: Path, arch: str, folder: Path, cubin: Path | None) -> tuple[ctypes.CDLL, Path]:
    """The recorder with the project's host code, and the cubin, unless there is one."""
    nvcc = compiler()
    if not nvcc:
        raise ToolError("nvcc: not found on PATH or in CUDA_HOME/bin; install the CUDA toolkit")
    source = source.resolve()
    if not (source / "cuda" / "kernels.cu").exists():
        raise ToolError(f"--source: expected a folder with cuda/kernels.cu, got {source}")
    command = [nvcc, f"-arch={arch}", "-std=c++17", "-O3", "-fmad=false", "-I", str(source), "--keep"]
    command += ["-shared", "-cudart", "none", "-Xcompiler", "-fPIC", "-Xlinker", "-Bsymbolic", "-o", "recorder.so"]
    command += [] if cubin is None else ["-Xptxas", "-O0"]  # then only the host code is of use
    files = [HERE / "recorder.cu", HERE / "runtime.cpp", source / "plan.cpp", source / "names.cpp"]
    result = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise ToolError(f"nvcc failed:\n{result.stderr.strip()}")
    return ctypes.CDLL(str(folder / "recorder.so"), mode=os.RTLD_LAZY), cubin or folder / f"recorder.{arch}.cubin"


# The operands of a call, with the spread of their values, or none for results.
ELEMENTS = {"input": 1.0, "output": None, "ladj": None, "grad_value": 1.0, "grad_ladj": 1.0}
PARAMETERS = {"logits": 1.0, "loc": 1.0, "log_scale": 0.5}
GRADIENTS = tuple(f"grad_{name}" for name in PARAMETERS)
OPERANDS = {
    False: ("input", "output", *PARAMETERS, "ladj"),
    True: ("input", "output", *PARAMETERS, "grad_value", "grad_ladj", *GRADIENTS),
}
FILLED = 256  # parameter sets with values: more than one block works on


@dataclass
class Case:
    """A call of the op on `inner` elements for each of `outer` parameter sets."""

    family: str
    backward: bool
    outer: int
    inner: int
    components: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.data: dict[str, Values] = {}
        for name in OPERANDS[self.backward]:
            spread = (ELEMENTS | PARAMETERS).get(name)
            shape = self.outer, self.inner if name in ELEMENTS else self.components
            self.data[name] = np.full(shape, np.nan if spread is None else 0, np.float32)
            if spread is not None:
                self.data[name][:FILLED] = rng.normal(0, spread, self.data[name][:FILLED].shape)
        self.data["workspace"] = np.full(2**20, np.nan)

    @property
    def done(self) -> Values:
        """The elements that have results."""
        return np.isfinite(self.data["output"])

    def error(self) -> float:
        """The largest difference from mixflow on the CPU; relative where a result is above one."""
        import torch

        import mixflow

        sets = self.done.any(1)
        done = torch.tensor(self.done[sets])
        data = {name: torch.tensor(self.data[name][sets], dtype=torch.float64) for name in OPERANDS[self.backward]}
        x, *parameters = (data[name].requires_grad_() for name in ("input", *PARAMETERS))
        z, ladj = mixflow.cdf_transform(x, *(p[:, None] for p in parameters), family=self.family, base="normal")
        expected = {"output": z, "ladj": ladj}
        if self.backward:
            loss = (z * data["grad_value"] + ladj * data["grad_ladj"])[done].sum()
            gradients = torch.autograd.grad(loss, [x, *parameters])
            expected = dict(zip(("output", *GRADIENTS), gradients, strict=True))
        errors = [
            ((data[name] - exact).abs() / exact.abs().clamp(min=1))[done if name in ELEMENTS else ...].max().item()
            for name, exact in expected.items()
        ]
        return float(np.max(errors))  # NaN if there is one


class Kernels:
    """The project's kernels, as its host code launches them, in the interpreter."""

    def __init__(self, library: ctypes.CDLL, cubin: Cubin):
        self.kernels, self.library = cubin.kernels, library
        library.record.restype = ctypes.c_char_p

    def _noting(self, found: list[Launch]) -> Callable[..., None]:
        """A callback that puts the launches of known kernels into a list."""

        def note(mangled: bytes, blocks: int, threads: int, shared_bytes: int, arguments: int) -> None:
            name = plain_name(mangled.decode())
            if kernel := self.kernels.get(name):
                pointers = (ctypes.c_void_p * len(kernel.parameters)).from_address(arguments)
                pairs = zip(pointers, kernel.parameters, strict=True)
                data = [ctypes.string_at(pointer or 0, size) for pointer, (_, size) in pairs]
                found.append(Launch(name, kernel, blocks, threads, shared_bytes, data))

        return note

    def launches(self, case: Case) -> list[Launch]:
        found: list[Launch] = []
        callback = OnLaunch(self._noting(found))
        ctypes.c_void_p.in_dll(self.library, "on_launch").value = ctypes.cast(callback, ctypes.c_void_p).value
        data = (ctypes.c_void_p * len(case.data))(*(array.ctypes.data for array in case.data.values()))
        sizes = ctypes.c_int64(case.outer), ctypes.c_int64(case.inner), case.components
        workspace = ctypes.c_size_t(case.data["workspace"].nbytes)
        error = self.library.record(case.family.encode(), case.backward, *sizes, data, workspace)
        if error:
            raise ToolError(error.decode())
        if not found:
            raise ToolError("--cubin: expected the kernels of --source; the kernel that it launches is not there")
        return found

    def run(self, case: Case) -> Block:
        """Runs the first block of each launch, and returns that of the first one."""
        memory = Memory("global", {a.ctypes.data: a.reshape(-1).view(np.uint8) for a in case.data.values()})
        blocks = [Block(launch, memory) for launch in self.launches(case)]
        for block in blocks:
            run_block(block)
        return blocks[0]
