"""``mixflow transport``: rows that follow one model turned into rows that follow another."""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.atomic import check_writable
from ..files.model_file import load
from ..files.tables import check_extension, count_rows, listed, table_writer
from ..flows import Flow, like, transport
from ..transforms import Transform
from .names import Names
from .passes import array_of, in_parallel, progress_bar
from .reading import TABLE, add_table, reading_of
from .source import Part, Source

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow transport MODEL_A MODEL_B DATA --out FILE [options]"
HELP = "turn rows that follow one model into rows that follow another"
DETAILS = "Both models have the same context, or none."
EXAMPLE = "mixflow transport before.safetensors after.safetensors before.csv --out carried.csv"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of :func:`run`."""
    models = [
        ("source", "MODEL_A", "the model file of the flow that DATA follow"),
        ("target", "MODEL_B", "the model file of the flow that FILE is to follow"),
    ]
    add_table(command, models)
    group = command.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FILE", help=TABLE)


def run(arguments: argparse.Namespace) -> int:
    """Carry all rows, chunk by chunk, from one model to the other; returns 0."""
    check_extension(arguments.out)
    check_writable(arguments.out)
    source, target = load(arguments.source), load(arguments.target)
    _check_contexts(source, target)
    dtype = torch.promote_types(like(source).dtype, like(target).dtype)
    carry, names = transport(source.to(dtype), target.to(dtype)), Names.of(target)
    table = Source(arguments.data, source, reading_of(arguments, in_place=True))
    outside = 0
    with table_writer(arguments.out, names.written) as write, progress_bar(count_rows(arguments.data)) as bar:
        for part, image in in_parallel(source, partial(_carried, carry, dtype), table):
            write(names.arranged(image, None if part.context is None else array_of(part.context)))
            outside += int((np.isnan(image).any(axis=1) & ~part.missing).sum())
            bar.update(len(part.missing))
    table.finish(arguments.out)
    if outside:
        place = f"they are nan in {arguments.out}"
        print(f"{arguments.data}: {outside:,} of {table.rows:,} rows have density zero; {place}")
    print(f"saved {table.rows} rows to {arguments.out}")
    return 0


def _check_contexts(source: Flow, target: Flow) -> None:
    ours, theirs = (Names.of(flow).context for flow in (source, target))
    if ours != theirs:
        raise ValueError(
            f"MODEL_B: expected the context of MODEL_A, {listed(ours) or 'none'}, got {listed(theirs) or 'none'}"
        )


def _carried(carry: Transform, dtype: torch.dtype, part: Part) -> tuple[Part, NDArray[Any]]:
    """A part and the image (n, D) of its rows, which is NaN for a row that lacks a value."""
    with torch.no_grad():
        y, _ = carry(part.x if carry.takes_any_dtype() else part.x.to(dtype), part.context)
    image = array_of(y.reshape(len(y), -1))
    image[part.missing] = math.nan
    return part, image
