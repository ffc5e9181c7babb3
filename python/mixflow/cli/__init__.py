"""The ``mixflow`` command: fit, sample, score, plot, transport, info, bench."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence

from .parser import Parser, build_parser, report

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return its exit status.

    0 is success; 2 a bad command line or input, said in one line on stderr; 130 an interruption by Ctrl-C.

    Example:
        >>> from mixflow.cli import main
        >>> main(["score", "missing.safetensors", "missing.csv"])
        2

    """
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    if unknown:
        _refuse(parser, unknown)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no command
    try:
        _check_overwriting(arguments)
        status: int = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()  # so that an error is reported here
    except KeyboardInterrupt:
        print("mixflow: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read stdout, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells have it
    except OSError as error:
        report(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return 2
    except (ValueError, ArithmeticError, ModuleNotFoundError) as error:
        report(str(error))
        return 2
    except (RuntimeError, MemoryError) as error:  # torch's own, whose first line says it; the rest is where in torch
        report(next(iter(str(error).strip().splitlines()), "out of memory"))
        return 2
    return status


def _check_overwriting(arguments: argparse.Namespace) -> None:
    """ValueError if a file that is written is a table that is read, or if two of them are one file."""
    options = {"data": "DATA", "context": "--context", "checkpoint": "--checkpoint", "out": "--out"}
    taken: dict[str, str] = {}
    for name, option in options.items():
        given = getattr(arguments, name, None)
        if not isinstance(given, str) or not given:  # --context of fit is a list of names
            continue
        path = os.path.realpath(given)
        if path in taken:
            raise ValueError(f"{option}: expected another file than {taken[path]}, got {given!r} for both")
        taken[path] = option


def _joined(argv: Sequence[str]) -> list[str]:
    """``argv`` with ``--option=-1,2`` in place of ``--option -1,2``, which argparse takes for two options."""
    joined: list[str] = []
    for word in argv:
        if joined and re.fullmatch(r"--\w[\w-]*", joined[-1]) and re.match(r"-[\d.]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _refuse(parser: Parser, unknown: Sequence[str]) -> None:
    message = f"unrecognized arguments: {' '.join(unknown)}"
    if not unknown[0].startswith("-"):
        message += "; an option that takes several names is repeated: --column a --column b"
    parser.error(message)
