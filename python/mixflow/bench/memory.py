"""Peak memory of one call beyond its outputs, measured where nothing can hide it: in a fresh process."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor

from .inputs import Inputs, Settings
from .works import WORKS

__all__ = ["beyond_outputs", "beyond_outputs_on_cuda", "measure"]

_PIECE = 2**16


def measure(settings: Settings, work: str, family: str, layout: str, n: int, components: int) -> tuple[int, int]:
    """Memory of the outputs of one call, and what it needed beyond them at its peak, in bytes.

    Args:
        settings: for dtype, threads and device.
        work: a key of :data:`mixflow.bench.works.WORKS`; gradients count as outputs.
        family: one of ``mixflow.FAMILIES``.
        layout: a key of :data:`mixflow.bench.inputs.LAYOUTS`.
        n: number of elements.
        components: K.

    Example:
        >>> from mixflow.bench.inputs import Settings
        >>> from mixflow.bench.memory import measure
        >>> outputs, beyond = measure(Settings(), "forward + ladj", "gaussian", "shared", 2**18, 8)
        >>> outputs == 2 * 4 * 2**18, beyond < 2**20
        (True, True)

    """
    arguments = settings, work, family, layout, n, components
    if settings.device.type == "cuda":
        return _measure(*arguments)
    # A server that is forked before it starts any thread saves each measurement the import of torch.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if methods != ["spawn"]:
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, *arguments).result()


def beyond_outputs(run: Callable[[], Sequence[Tensor]]) -> tuple[int, int]:
    """Bytes of the tensors that ``run`` returns, and by how much more the peak of resident memory grew.

    Memory that was freed earlier is filled first, so that any page that ``run`` touches raises the peak. Kernels count
    pages per processor and in batches, so that the result may be off by some 100 KiB. Meant for a process that does
    little else: the memory that is filled first may be much.
    """
    ballast, reached = [], _peak()
    while _peak() == reached:
        ballast.append(b"\1" * _PIECE)
    before = _peak()
    results = run()
    growth = _peak() - before
    outputs = sum(r.nbytes for r in results)
    return outputs, growth - outputs


def _measure(settings: Settings, work: str, family: str, layout: str, n: int, components: int) -> tuple[int, int]:
    torch.set_num_threads(settings.threads)
    few, many = (WORKS[work].inputs(settings, m, components, family, layout)[0] for m in (min(n, 2**14), n))

    def call(inputs: Inputs) -> tuple[Tensor, ...]:
        results = WORKS[work].formula(inputs.x, inputs.parameters, family)
        return (*results, *(torch.autograd.grad(results, inputs.leaves, inputs.seeds) if inputs.seeds else ()))

    call(few)  # starts threads, and imports what is imported late
    if settings.device.type == "cuda":
        return beyond_outputs_on_cuda(lambda: call(many))
    return beyond_outputs(lambda: call(many))


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
    import resource  # not everywhere, and the command line imports this file

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
