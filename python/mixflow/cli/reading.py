"""The options for the table that a command takes, and for how it is read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..files.tables import Reading

__all__ = ["TABLE", "add_reading", "add_table", "reading_of"]

TABLE = "a .csv, .csv.gz, .tsv, .npy or .parquet file"
_WORDS = {"tab": "\t", r"\t": "\t", "space": " "}


def add_table(command: argparse.ArgumentParser, models: Sequence[tuple[str, str, str]] = ()) -> argparse._ArgumentGroup:
    """Give ``command`` the group "data": model files, each (name, metavar, help), then DATA and how it is read."""
    group = command.add_argument_group("data")
    for name, metavar, help_ in models:
        group.add_argument(name, metavar=metavar, help=help_)
    group.add_argument("data", metavar="DATA", help=TABLE)
    add_reading(group)
    return group


def add_reading(group: argparse._ArgumentGroup) -> None:
    """Add the options for how a table is read, which :func:`reading_of` collects."""
    group.add_argument(
        "--sep", type=_separator, metavar="C", help="what separates cells: a character, tab or space (default: found)"
    )
    group.add_argument(
        "--decimal", choices=(".", ","), metavar="MARK", help="the decimal mark, a point or a comma (default: found)"
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line holds names (default: found)",
    )
    group.add_argument(
        "--na",
        choices=("error", "drop"),
        default="error",
        help="what to do with a row in which a value is missing (default: %(default)s)",
    )


def reading_of(arguments: argparse.Namespace, in_place: bool = False) -> Reading:
    """How a table is read, by the options.

    With ``in_place``, the rows that ``--na drop`` leaves out are read as NaN, so that they keep their place in the
    output.
    """
    na: Any = "keep" if in_place and arguments.na == "drop" else arguments.na
    return Reading(arguments.sep, arguments.decimal, arguments.header, na)


def _separator(text: str) -> str:
    sep = _WORDS.get(text, text)
    try:
        Reading(sep=sep)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("sep: ")) from error
    return sep
