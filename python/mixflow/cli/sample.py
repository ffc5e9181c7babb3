"""``mixflow sample``: new rows from a model."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..checks import check_integer, check_seed
from ..files.atomic import check_space, check_writable
from ..files.model_file import load
from ..files.tables import TableError, check_extension, columns_of, count_rows, iter_table, listed, table_writer
from ..flows import Flow
from .names import Names, positions_of, request
from .passes import PART, array_of, in_parallel, progress_bar
from .reading import TABLE, add_reading, reading_of
from .source import Notes

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow sample MODEL -n N --out FILE [options]"
HELP = "draw new rows from a model"
DETAILS = "FILE has the columns of the model, then those of its context."
EXAMPLE = "mixflow sample weather.safetensors -n 1000 --context month=7,height=520 --out july.csv"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of :func:`run`."""
    group = command.add_argument_group("data")
    group.add_argument("model", metavar="MODEL", help="a model file")
    group.add_argument(
        "-n", type=int, required=True, metavar="N", help="number of rows; of each context, if there is one"
    )
    group.add_argument(
        "--context",
        metavar="VALUES|FILE",
        help="of a model with a context: its numbers separated by commas, as 1.5,-2 or NAME=1.5,NAME=-2, or a table "
        "with a row for each context",
    )
    group.add_argument("--seed", type=int, help="makes the draws reproducible (default: others each time)")
    add_reading(command.add_argument_group("how a context FILE is read"))
    group = command.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE", help=TABLE)


def run(arguments: argparse.Namespace) -> int:
    """Draw samples and write them, chunk by chunk; returns 0."""
    check_extension(arguments.out)
    check_writable(arguments.out)
    flow = load(arguments.model)
    count, names = check_integer("n", arguments.n, 0), Names.of(flow)
    _check_context(arguments, names)
    contexts = count_rows(arguments.context) if _is_table(arguments.context) else 1
    total = None if contexts is None else count * contexts
    # "1," is the shortest that a number can be
    check_space(arguments.out, 2 * (total or count) * len(names.written))
    seeds, notes, written = _seeds(arguments.seed), Notes(arguments.context), 0
    jobs = (job for context in _contexts(arguments, names, notes) for job in _jobs(count, context, seeds))
    with table_writer(arguments.out, names.written) as write, progress_bar(total) as bar:
        for drawn, given in in_parallel(flow, partial(_drawn, flow), jobs):
            write(names.arranged(drawn, given))
            written += len(drawn)
            bar.update(len(drawn))
    notes.tell()
    print(f"saved {written} samples to {arguments.out}")
    return 0


def _seeds(seed: int | None) -> Iterator[int]:
    """A seed for each part. The first is ``seed``, so that the first samples are those of ``flow.sample``."""
    first = torch.Generator().seed() if seed is None else check_seed(seed)
    yield first
    generator = torch.Generator().manual_seed(first)
    while True:
        yield int(torch.randint(2**63 - 1, (), generator=generator))


_Job: TypeAlias = tuple[int, "torch.Tensor | None", int]  # samples of each context, contexts (k, C), seed


def _jobs(count: int, context: NDArray[Any] | None, seeds: Iterator[int]) -> Iterator[_Job]:
    """``count`` samples of each row of ``context`` (K, C), in parts; without a context, ``count`` in all.

    The samples of one context are together. Each part has a seed of its own, so that threads need not wait for each
    other.
    """
    together = max(1, PART // max(1, count))  # contexts
    for first in range(0, 1 if context is None else len(context), together):
        some = None if context is None else torch.from_numpy(context[first : first + together])
        for start in range(0, max(count, 1), PART):
            yield min(PART, count - start), some, next(seeds)


def _drawn(flow: Flow, job: _Job) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The samples (n, D) of a job, and the context (n, C) of each."""
    n, some, seed = job
    drawn, given = flow.sample(n, some, seed=seed), None
    if some is not None:
        drawn, given = drawn.transpose(0, 1), some.repeat_interleave(n, dim=0).numpy()
    return array_of(drawn.reshape(-1, flow.features)), given


# -- contexts ------------------------------------------------------------------------------------------------


def _check_context(arguments: argparse.Namespace, names: Names) -> None:
    if names.context and arguments.context is None:
        raise ValueError(
            f"{arguments.model}: expected --context, as the density depends on {listed(names.context)}, got none"
        )
    if not names.context and arguments.context is not None:
        raise ValueError(f"--context: expected none, as {arguments.model} has no context, got {arguments.context!r}")


def _is_table(context: str | None) -> bool:
    try:
        check_extension(context or "")
    except TableError:
        return False
    return True


def _contexts(arguments: argparse.Namespace, names: Names, notes: Notes) -> Iterator[NDArray[Any] | None]:
    """The contexts to draw for, (n, C), in chunks; a single None for a model without a context."""
    if not names.context:
        yield None
    elif not _is_table(arguments.context):
        yield _values(arguments.context, names.context)
    else:
        path, reading = arguments.context, reading_of(arguments)
        wanted = names.context if names.given else columns_of(path, reading)
        if len(wanted) != len(names.context):
            raise ValueError(f"{path}: expected {len(names.context)} column(s) of contexts, got {listed(wanted)}")
        for table in iter_table(path, request(path, wanted, reading), reading=reading):
            notes.begin(table)
            yield np.ascontiguousarray(table.values[:, positions_of(table, wanted)])


def _values(text: str, names: Sequence[str]) -> NDArray[np.float64]:
    """The context (1, C) in ``text``: numbers in the order of ``names``, or NAME=number for each."""
    cells = [cell.rpartition("=") for cell in text.split(",")]
    pairs = {name.strip(): number for name, _, number in cells}
    ordered = [number for _, _, number in cells]
    if any(sign for _, sign, _ in cells):
        ordered = [pairs.get(name, "") for name in names] if len(pairs) == len(cells) == len(names) else []
    try:
        numbers = [float(number) for number in ordered]
    except ValueError:
        numbers = []
    if len(numbers) != len(names) or not all(map(math.isfinite, numbers)):
        example = ",".join(f"{name}=1.5" for name in names)
        raise ValueError(
            f"--context: expected {len(names)} number(s) separated by commas, of {listed(names)}, or {example}, or a "
            f"table, got {text!r}"
        )
    return np.array([numbers])
