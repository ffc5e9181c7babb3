"""Peak memory of one call beyond its outputs, measured where nothing can hide it: in a fresh process."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

import mixflow

from .cases import Case, Columns, Group, Row, yes_or_no
from .inputs import LAYOUTS, OPS, Inputs, Settings, draw_inputs

__all__ = ["GROUPS", "beyond_outputs", "beyond_outputs_on_cuda"]

_PIECE = 2**16  # bytes
_TARGET = 1.0  # MiB

# The layout of the parameters, N and K.
SIZES = [("shared", 2**18, 8), ("shared", 2**24, 8), ("shared", 2**20, 128), ("per feature", 2**20, 32)]
SIZES += [("per element", 2**18, 8), ("per element", 2**18, 64)]
COLUMNS: Columns = {
    "case": lambda row: str(row["case"]),
    "outputs MiB": lambda row: f"{row['outputs']:.1f}",
    "beyond MiB": lambda row: f"{row['beyond']:.2f}",
    "target": lambda row: f"<= {row['target']:g}",
    "reached": yes_or_no,
}


def beyond_outputs(run: Callable[[], Sequence[Tensor]]) -> tuple[int, int]:
    """Bytes of the tensors that ``run`` returns, and by how much more the peak of resident memory grew.

    Memory that was freed earlier is filled first, so that any page that ``run`` touches raises the peak. Kernels count
    pages per processor and in batches, so the result may be off by some 100 KiB. Meant for a process that does little
    else: the memory that is filled first may be much.
    """
    ballast, reached = [], _peak()
    while _peak() == reached:
        ballast.append(b"\1" * _PIECE)
    before = _peak()
    results = run()
    growth = _peak() - before
    outputs = sum(r.nbytes for r in results)
    return outputs, growth - outputs


def beyond_outputs_on_cuda(run: Callable[[], Sequence[Tensor]]) -> tuple[int, int]:
    """The same of the current CUDA device, by what its allocator was asked for: it may give 1 MiB more."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    results = run()
    torch.cuda.synchronize()
    outputs = sum(r.nbytes for r in results)
    return outputs, torch.cuda.memory_stats()["requested_bytes.all.peak"] - before - outputs


def _peak() -> int:
    import resource  # not everywhere

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _here(settings: Settings, op: str, layout: str, n: int) -> tuple[int, int]:
    """Bytes of the outputs and beyond them, in this process."""
    torch.set_num_threads(settings.threads)
    few, many = (draw_inputs(settings, op, mixflow.FAMILIES[0], layout, m)[0] for m in (min(n, 2**14), n))

    def call(inputs: Inputs) -> tuple[Tensor, ...]:
        results = inputs.op()
        return (*results, *(torch.autograd.grad(results, inputs.leaves, inputs.seeds) if inputs.seeds else ()))

    call(few)  # starts threads, and imports what is imported late
    on_cuda = settings.device.type == "cuda"
    return (beyond_outputs_on_cuda if on_cuda else beyond_outputs)(lambda: call(many))


def _in_a_fresh_process(*arguments: object) -> tuple[int, int]:
    # A server that is forked before it starts any thread saves each measurement the import of torch.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if methods != ["spawn"]:
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_here, *arguments).result()  # type: ignore[arg-type]


def _case(op: str, layout: str, n: int, components: int) -> Case:
    shape = " x ".join(f"{length:,}" for length in LAYOUTS[layout](n)[0])
    name = f"{op}, {layout}, x {shape}, K = {components}"

    def measure(settings: Settings) -> list[Row]:
        place = _here if settings.device.type == "cuda" else _in_a_fresh_process
        sizes = place(replace(settings, components=components), op, layout, settings.capped(n))
        outputs, beyond = (size / 2**20 for size in sizes)
        row = {"case": name, "outputs": outputs, "beyond": beyond, "target": _TARGET, "note": ""}
        return [row | {"reached": beyond <= _TARGET}]

    return Case(name, measure)


GROUPS = [Group("Peak memory beyond the outputs", [_case(op, *size) for op in OPS for size in SIZES], COLUMNS)]
