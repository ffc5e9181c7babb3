"""``mixflow plot``: a picture of a model beside a table."""

from __future__ import annotations

import argparse

from ..files.atomic import check_writable
from ..files.model_file import load
from ..fitting.history import History
from .passes import array_of
from .reading import add_table, reading_of
from .source import Source

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow plot MODEL DATA --out PNG [options]"
HELP = "draw a model against a table"
DETAILS = "The picture shows data, samples and training."
EXAMPLE = "mixflow plot weather.safetensors weather.csv --out weather.png"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of :func:`run`."""
    group = add_table(command, [("model", "MODEL", "a model file")])
    group.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="a column to draw; may be repeated (default: all, and of many those that depend on each other most)",
    )
    group = command.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="PNG", help="the picture to write (.png, .pdf, .svg)")


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture; returns 0."""
    from .. import plot

    plot.check_extension(arguments.out)
    check_writable(arguments.out)
    flow = load(arguments.model)
    history = flow.notes.get("history")
    source = Source(arguments.data, flow, reading_of(arguments))
    rows = source.read()
    context = None if rows.context is None else array_of(rows.context)
    past = History.from_dict(history) if history else None
    figure = plot.summary(flow, array_of(rows.x), past, context=context, columns=arguments.column)
    plot.save_figure(figure, arguments.out)
    source.finish()
    print(f"saved {arguments.out}")
    return 0
