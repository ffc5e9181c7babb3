"""The parser of the command line: the commands, their help, and completion for shells."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import mixflow

from ..bench.options import add_arguments
from . import fit, plot, sample, score, transport

__all__ = ["Parser", "build_parser", "report"]

_COMMANDS = {"fit": fit, "sample": sample, "score": score, "plot": plot, "transport": transport}
_EXIT = """exit status:
  0 for success, 2 for a bad command line or input, with one line on stderr,
  130 after Ctrl-C"""
_FILES = ("DATA", "FILE", "MODEL", "MODEL_A", "MODEL_B", "PNG", "VALUES|FILE")


def report(message: str) -> None:
    """Print an error in one line."""
    print(f"mixflow: error: {' '.join(message.split())}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """Reports a bad command line like every other error."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` in one line and exit with status 2."""
        report(f"{message} (see {self.prog} --help)")
        sys.exit(2)


class _PrintCompletion(argparse.Action):
    """Prints a script for a shell and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        try:
            import shtab
        except ModuleNotFoundError:
            report(f"{option} needs shtab: pip install mixflow[completion]")
            parser.exit(2)
        for command in _parsers(parser):
            for action in command._actions:
                if action.metavar in _FILES:
                    action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()


def _parsers(parser: argparse.ArgumentParser) -> Sequence[argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(command for action in found for command in action.choices.values())]


_EXAMPLES = """example:
  mixflow fit data.csv --out model.safetensors
  mixflow sample model.safetensors -n 1000 --out samples.csv"""


def build_parser() -> Parser:
    """The parser of the whole command line. The attribute ``run`` of its result is the function of the command."""
    parser = Parser(
        prog="mixflow",
        description="Normalizing flows built from mixture CDFs: fit a density to a table, score rows, draw new ones.",
        epilog=f"{_EXAMPLES}\n\nEach command has a --help of its own, with an example.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mixflow {mixflow.__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        metavar="SHELL",
        help="print a script that completes commands in bash, zsh or tcsh; needs shtab",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        command = _add(commands, name, module.USAGE, module.HELP, module.DETAILS, module.EXAMPLE)
        command.set_defaults(run=module.run)
        module.add_options(command)
    command = _add(
        commands, "info", "mixflow info", "versions, CPU and CUDA support", "What a bug report needs.", "mixflow info"
    )
    command.set_defaults(run=_info)
    help_, details = "check the ops, and time them against plain PyTorch", "Each table is printed when it is complete."
    command = _add(commands, "bench", "mixflow bench [options]", help_, details, "mixflow bench --only forward")
    command.set_defaults(run=_bench)
    add_arguments(command)
    return parser


def _add(commands: Any, name: str, usage: str, help_: str, details: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=usage,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}. {details}",
        epilog=f"example:\n  {example}\n\n{_EXIT}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return command


def _info(arguments: argparse.Namespace) -> int:
    print(mixflow.show_config())
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    from ..bench import command

    return command.run(arguments)
