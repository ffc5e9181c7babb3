"""The ``mixflow`` command: fit, sample, score, plot, transport, info, bench."""

from __future__ import annotations

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
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("mixflow: interrupted", file=sys.stderr)
        return 130
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
