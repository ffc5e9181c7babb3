"""The ``mixflow`` command: fit, sample, score, plot, transport, info, bench."""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm.auto import tqdm

import mixflow

from .bench import command as bench
from .checks import check_integer, check_seed
from .files import check_space, check_writable
from .flows import RECIPES, Flow, like, transport
from .flows.base import NO_NUMBERS
from .model_file import load, save
from .parallel import process_rank
from .tables import ROWS, Table, check_extension, count_rows, iter_table, map_table, read_table, table_writer
from .train import History, fit

__all__ = ["main"]

_BLOCK = 4096  # numbers that are added up in float64 before the sums of such blocks are added exactly


class _Parser(argparse.ArgumentParser):
    """Reports a bad command line the way that every other error is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        _report(f"{message} (see {self.prog} --help)")
        sys.exit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default the process's own) and return its exit status.

    0 is success; 2 a bad command line or input, said in one line on stderr; 130 an interruption by Ctrl-C.

    Example:
        >>> from mixflow.cli import main
        >>> main(["score", "missing.safetensors", "missing.csv"])
        2

    """
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("mixflow: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        _report(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return 2
    except (ValueError, ArithmeticError, ModuleNotFoundError) as error:
        _report(str(error))
        return 2
    except (RuntimeError, MemoryError) as error:  # torch's own, whose first line says it; the rest is where in torch
        _report(next(iter(str(error).strip().splitlines()), "out of memory"))
        return 2
    return status


def _report(message: str) -> None:
    print(f"mixflow: error: {' '.join(message.split())}", file=sys.stderr)


# -- the commands --------------------------------------------------------------------------------------------


def _fit(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    first = process_rank() == 0  # of the processes that torchrun started
    if first:
        check_writable(arguments.out)
    table = map_table(arguments.data, arguments.column)
    arguments.features = table.values.shape[1]
    arguments.support = _support(arguments.support, table.columns)
    arguments.resolution = _resolution(arguments.resolution)
    build = RECIPES[arguments.flow]
    flow = build(**_given(arguments, build)).to(getattr(torch, arguments.dtype))
    if table.values.shape[1] != flow.features:
        raise ValueError(
            f"{arguments.data}: expected {flow.features} column for a {arguments.flow} flow, got "
            f"{', '.join(table.columns)}; choose one with --column"
        )
    if table.named:
        flow.notes["columns"] = table.columns
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        history = fit(flow, table.values, progress=not arguments.quiet, **_given(arguments, fit))
    for warning in caught:
        print(f"mixflow: warning: {warning.message}", file=sys.stderr)
    if first:
        flow.notes["history"] = history.to_dict()
        save(flow, arguments.out)
        if not arguments.quiet:
            print(f"{len(table.values)} rows of {', '.join(table.columns)}: {history}")
        ended = "interrupted; saved the best weights so far to" if history.interrupted else "saved"
        print(f"{ended} {arguments.out}", file=sys.stderr if history.interrupted else sys.stdout)
    return 130 if history.interrupted else 0


def _sample(arguments: argparse.Namespace) -> int:
    check_extension(arguments.out)
    check_writable(arguments.out)
    flow = load(arguments.model)
    count = check_integer("n", arguments.n, 0)
    check_space(arguments.out, 2 * count * flow.features)  # "1," is the shortest that a number can be
    columns = _columns(flow)
    generator = torch.Generator()
    if arguments.seed is None:
        generator.seed()
    else:
        generator.manual_seed(check_seed(arguments.seed))
    with table_writer(arguments.out, columns) as write, _bar(count) as bar:
        for start in range(0, max(count, 1), ROWS):
            drawn = flow.sample(min(ROWS, count - start), generator=generator)
            write(_array(drawn.reshape(len(drawn), flow.features)))
            bar.update(len(drawn))
    print(f"saved {count} samples to {arguments.out}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    if arguments.out:
        check_extension(arguments.out)
        check_writable(arguments.out)
    flow = load(arguments.model)
    rows = 0

    def scores(write: Callable[[np.ndarray[Any, Any]], None] | None) -> Iterator[np.ndarray[Any, Any]]:
        nonlocal rows
        for table in iter_table(arguments.data, flow.notes.get("columns")):
            with torch.no_grad():
                log_prob = flow.log_prob(_rows_for(flow, arguments.data, table))
            values = _array(log_prob)
            if write:
                write(values[:, None])
            rows += len(values)
            bar.update(len(values))
            yield values

    writer = table_writer(arguments.out, ["log_prob"]) if arguments.out else nullcontext()
    with _bar(count_rows(arguments.data)) as bar, writer as write:
        total = _sum(scores(write))
    if arguments.out:
        print(f"saved {rows} values to {arguments.out}")
    print(f"mean log_prob: {total / rows:.6f}")
    return 0


def _sum(chunks: Iterable[np.ndarray[Any, Any]]) -> float:
    """The sum of all numbers in ``chunks`` (n,), the same to the last bit wherever one chunk ends and the next begins.

    NaN and infinity count, and errors are raised, as if ``math.fsum`` were given number by number.
    """
    return math.fsum(map(_sum_of_block, _blocks(chunks)))


def _blocks(chunks: Iterable[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """The numbers in ``chunks`` (n,) as float64, in blocks of one length that are counted from the first number."""
    rest = np.empty(0)
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        whole = len(rest) // _BLOCK * _BLOCK
        yield from rest[:whole].reshape(-1, _BLOCK)
        rest = rest[whole:]
    yield rest


def _sum_of_block(values: np.ndarray[Any, Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    return total if math.isfinite(total) else math.fsum(values.tolist())


def _bar(rows: int | None) -> tqdm[NoReturn]:
    """Shown on a terminal alone, and only once the work has taken a while."""
    return tqdm(total=rows, unit="rows", unit_scale=True, disable=None, delay=1.0)


def _plot(arguments: argparse.Namespace) -> int:
    from . import plot  # matplotlib is optional, and slow to import

    plot.check_extension(arguments.out)
    check_writable(arguments.out)
    flow = load(arguments.model)
    history = flow.notes.get("history")
    table = read_table(arguments.data, flow.notes.get("columns"))
    data = _array(_rows_for(flow, arguments.data, table))
    figure = plot.summary(flow, data, History.from_dict(history) if history else None)
    plot.save_figure(figure, arguments.out)
    print(f"saved {arguments.out}")
    return 0


def _transport(arguments: argparse.Namespace) -> int:
    check_extension(arguments.out)
    check_writable(arguments.out)
    source, target = load(arguments.source), load(arguments.target)
    dtype = torch.promote_types(like(source).dtype, like(target).dtype)
    carry = transport(source.to(dtype), target.to(dtype))
    rows = 0
    with table_writer(arguments.out, _columns(target)) as write, _bar(count_rows(arguments.data)) as bar:
        for table in iter_table(arguments.data, source.notes.get("columns")):
            x = _rows_for(source, arguments.data, table)
            with torch.no_grad():
                y, _ = carry(x if carry.takes_any_dtype() else x.to(dtype))
            write(_array(y.reshape(len(y), target.features)))
            rows += len(y)
            bar.update(len(y))
    print(f"saved {rows} rows to {arguments.out}")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    print(mixflow.show_config())
    return 0


def _given(arguments: argparse.Namespace, function: Callable[..., Any]) -> dict[str, Any]:
    """Pick the options of ``function`` that the user gave: defaults stay where they are defined."""
    names = set(inspect.signature(function).parameters) - {"flow", "data"}
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def _recipe_options(build: Callable[..., Any]) -> list[str]:
    """The parameters of a recipe that are options of ``fit``: the others come from the data."""
    own = "features", "context", *NO_NUMBERS
    return [name for name in inspect.signature(build).parameters if name not in own]


def _support(given: Sequence[str] | None, columns: Sequence[str]) -> list[Any] | None:
    """The supports of the columns, from options NAME=positive or NAME=LOW:HIGH; None if none is given."""
    supports: dict[str, Any] = {}
    for option in given or []:
        name, _, value = option.rpartition("=")
        if name not in columns:
            raise ValueError(f"--support: expected NAME=positive or NAME=LOW:HIGH of a column, got {option!r}")
        ends = ["0", ""] if value == "positive" else value.split(":")
        try:
            low, high = (float(end) if end else None for end in ends)
        except ValueError as error:
            raise ValueError(f"--support: expected positive or LOW:HIGH after {name}=, got {value!r}") from error
        supports[name] = [low, high]
    return [supports.get(name) for name in columns] if supports else None


def _resolution(given: str | None) -> str | float | None:
    if given is None or given == "auto":
        return given
    try:
        return float(given)
    except ValueError as error:
        raise ValueError(f"--resolution: expected auto or a number, got {given!r}") from error


def _check_options(arguments: argparse.Namespace) -> None:
    """ValueError for an option of other recipes than the chosen one, which would have no effect."""
    known = _recipe_options(RECIPES[arguments.flow])
    for name in dict.fromkeys(name for build in RECIPES.values() for name in _recipe_options(build)):
        if name not in known and getattr(arguments, name) is not None:
            takes = ", ".join(f"--{option.replace('_', '-')}" for option in known)
            raise ValueError(f"--{name.replace('_', '-')}: no option of a {arguments.flow} flow, which takes {takes}")


def _columns(flow: Flow) -> list[str]:
    return flow.notes.get("columns") or [f"x{number}" for number in range(1, flow.features + 1)]


def _rows_for(flow: Flow, path: str, table: Table) -> torch.Tensor:
    """The rows of ``table`` in their own precision; ValueError if they are not what the flow was fitted to."""
    if table.values.shape[1] != flow.features:
        raise ValueError(f"{path}: expected {flow.features} column(s), got {', '.join(table.columns)}")
    return flow.shaped(torch.from_numpy(table.values).to(like(flow).device))


def _array(values: torch.Tensor) -> np.ndarray[Any, Any]:
    """``values`` as an array; numpy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


# -- the command line ----------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mixflow", description="Normalizing flows built from mixture CDFs.")
    parser.add_argument("--version", action="version", version=f"mixflow {mixflow.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = "a .csv, .csv.gz, .npy or .parquet file"

    command = commands.add_parser("fit", help="fit a flow to data and save it")
    command.set_defaults(run=_fit)
    command.add_argument("data", metavar="DATA", help=table)
    command.add_argument("--flow", choices=RECIPES, default="univariate", help="kind of flow (default: %(default)s)")
    command.add_argument("--out", required=True, metavar="MODEL", help="the model file to write (.safetensors)")
    command.add_argument("--family", choices=mixflow.FAMILIES, help="distribution of the components")
    command.add_argument("--base", choices=mixflow.BASES, help="distribution that the data are mapped to")
    command.add_argument("--components", type=int, metavar="K", help="number of mixture components")
    command.add_argument(
        "--marginal-components", type=int, metavar="K", help="number of components of each column's own mixture"
    )
    command.add_argument("--layers", type=int, metavar="L", help="number of layers")
    command.add_argument("--hidden", type=int, nargs="+", metavar="W", help="widths of a network's hidden layers")
    command.add_argument(
        "--column", action="append", metavar="NAME", help="a column of DATA to fit, by default all; may be repeated"
    )
    command.add_argument(
        "--support",
        action="append",
        metavar="NAME=S",
        help="where values of column NAME lie: positive, or LOW:HIGH with an end left out for none; may be repeated",
    )
    command.add_argument(
        "--resolution",
        metavar="W",
        help="the step that values were rounded to: a number, or auto to find it in the data",
    )
    command.add_argument("--epochs", type=int, metavar="E", help="passes over the data at most")
    command.add_argument("--batch-size", type=int, metavar="B", help="rows per step")
    command.add_argument("--lr", type=float, help="learning rate at the start")
    command.add_argument("--weight-decay", type=float, metavar="W", help="decoupled weight decay")
    command.add_argument("--max-grad-norm", type=float, metavar="G", help="norm that gradients are clipped to")
    command.add_argument("--validation", type=float, metavar="FRACTION", help="part of the rows to hold out")
    command.add_argument("--patience", type=int, metavar="E", help="epochs without improvement before stopping")
    command.add_argument("--seed", type=int, help="of the held-out rows and the minibatches")
    command.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="precision (default: %(default)s)"
    )
    command.add_argument("--device", help="where to train: cpu, cuda, cuda:1, ...")
    command.add_argument("--checkpoint", metavar="FILE", help="keep all that is needed to go on after a crash here")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint if there is one")
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = commands.add_parser("sample", help="draw from a fitted flow")
    command.set_defaults(run=_sample)
    command.add_argument("model", metavar="MODEL", help="a model file")
    command.add_argument("-n", type=int, required=True, metavar="N", help="number of samples")
    command.add_argument("--out", required=True, metavar="FILE", help=table)
    command.add_argument("--seed", type=int, help="makes the draws reproducible")

    command = commands.add_parser("score", help="log_prob of data under a fitted flow, in nats")
    command.set_defaults(run=_score)
    command.add_argument("model", metavar="MODEL", help="a model file")
    command.add_argument("data", metavar="DATA", help=table)
    command.add_argument("--out", metavar="FILE", help=f"write each row's log_prob to {table}")

    command = commands.add_parser("plot", help="draw a fitted flow against data")
    command.set_defaults(run=_plot)
    command.add_argument("model", metavar="MODEL", help="a model file")
    command.add_argument("data", metavar="DATA", help=table)
    command.add_argument("--out", required=True, metavar="PNG", help="the picture to write (.png, .pdf, .svg)")

    command = commands.add_parser("transport", help="turn data that follow one flow into data that follow another")
    command.set_defaults(run=_transport)
    command.add_argument("source", metavar="MODEL_A", help="the model file of the flow that DATA follow")
    command.add_argument("target", metavar="MODEL_B", help="the model file of the flow that FILE is to follow")
    command.add_argument("data", metavar="DATA", help=table)
    command.add_argument("--out", required=True, metavar="FILE", help=table)

    command = commands.add_parser("info", help="versions, CPU and CUDA support")
    command.set_defaults(run=_info)

    command = commands.add_parser("bench", help="check the ops, and time them against plain PyTorch")
    command.set_defaults(run=bench.run)
    bench.add_arguments(command)
    return parser
