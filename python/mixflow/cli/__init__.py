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
    """Run the command line ``argv`` (by default that of the process) and return its exit status.

    The status is 0 for success, 2 for a bad command line or input, with one line on stderr, and 130 after Ctrl-C.

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
        sys.stdout.reconfigure(errors="backslashreplace")  # so that a name that the terminal cannot show is no error
    try:
        _check_overwriting(arguments)
        status: int = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()  # an error of writing is then reported here
    except KeyboardInterrupt:
        print("mixflow: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the program that read stdout, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as in shells
    except OSError as error:
        report(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return 2
    except (ValueError, ArithmeticError, ModuleNotFoundError) as error:
        report(str(error))
        return 2
    except (RuntimeError, MemoryError) as error:  # of torch's errors, the first line is enough; the rest is a trace
        report(next(iter(str(error).strip().splitlines()), "out of memory"))
        return 2
    return status


def _check_overwriting(arguments: argparse.Namespace) -> None:
    """ValueError if two arguments are the same file, of which at least one is written."""
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
