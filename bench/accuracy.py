"""Measure errors against high-precision truth, in eps, and print them as one table.

    PYTHONPATH=tests python bench/accuracy.py [--cases N] [--seed S] [--quick] [--json FILE] [--markdown FILE]

Every figure is the largest error over all cases, divided by eps (2^-23 for float32, 2^-52 for float64) and by its
scale, which tests/truth/errors.py explains:

    z             |z - z*| / max(1, |z*|); uniform base |u - u*| / (u* max(1, |log u*|)), which for u > 1/2 is the
                  absolute error of u and of 1 - u as far as the dtype can hold it            at most 4 (8)
    ladj          |ladj - ladj*| / (1 + |log f*| + |log g*|)                                  at most 4 (8)
    inverse       |z(x) - z| beyond |dz/dx| ulp(x), z(x) exact, / max(1, |z|)                 at most 16
    inverse ladj  as ladj, at the x returned                                                  at most 4 (8)
    grad ...      gradients of z, ladj, x and the inverse's ladj by every input               at most 64
    log P         of bins: |log P - log P*| / (1 + |log P*|)                                  at most 4
    grad log P    its gradients by the edges and the parameters                               at most 64

The bounds in parentheses hold for float32 on a GPU.

Baselines are plain PyTorch formulas (mixflow.bench.baselines), and zuko if it is installed. They get the same cases.
`inf` means that a result was infinite or NaN although the truth is an ordinary number. In parentheses stands the share
of cases beyond the bound. "ordinary" cases are normal draws of moderate size. "extreme" ones are far tails, gaps
between components, scales from 1e-6 to 1e6, weights down to 1e-30, flanks of spikes on which log f passes through 0,
and both sides of every switch between formulas.

If a bound does not hold, the script prints the worst case in hexadecimal, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mixflow
import truth
from mixflow import standard
from mixflow.bench import baselines
from mixflow.op import kernels

HAS_ZUKO = importlib.util.find_spec("zuko") is not None
HEADINGS = ("method", "family", "base", "dtype", "cases", "count", *truth.BOUNDS)


@dataclass(frozen=True)
class Baseline:
    """What people use today, in the terms of `truth.measure`, and for which families and which base it exists."""

    ops: dict[str, truth.Op]
    families: tuple[str, ...] = tuple(truth.FAMILIES)
    equal_weights: bool = False
    differentiate: bool = True


def plain(function: Any) -> truth.Op:
    """A formula of `mixflow.bench.baselines`, which goes to the base of `baselines.BASE_OF`."""

    def op(x: torch.Tensor, *parameters: torch.Tensor, family: str, base: str) -> tuple[torch.Tensor, torch.Tensor]:
        return function(x, parameters, family)  # type: ignore[no-any-return]

    return op


def zuko_op(x: torch.Tensor, *parameters: torch.Tensor, family: str, base: str) -> tuple[torch.Tensor, torch.Tensor]:
    """GaussianizationTransform of zuko."""
    z, ladj = baselines.zuko_transform(parameters).call_and_ladj(x)
    return z, ladj


BASELINES = {
    "eager log-space": Baseline(
        {
            "forward": plain(baselines.log_space_forward),
            "inverse": plain(
                torch.no_grad()(baselines.bisection_inverse)
            ),  # autograd does not differentiate a bisection
        }
    ),
    "eager linear": Baseline({"forward": plain(baselines.linear_forward)}),
    "zuko": Baseline({"forward": zuko_op}, ("gaussian",), equal_weights=True, differentiate=False),
}


def run_on_emulated_device(kernel: Callable[..., None], indices: Any, tensors: Sequence[Any], *extra: Any) -> None:
    """Replace ``mixflow.op.kernels.run`` where the GPU is emulated: call its kernels with tensors of the CPU."""
    operands = [t if type(t) is tuple else (t.data_ptr(), t.shape, t.stride()) for t in tensors]
    device, stream, threads = 0, 0, 1
    kernel(*indices, tensors[0].dtype == torch.float64, operands, device, stream, threads, *extra)


def measure(cases: int, seed: int, emulated: bool) -> truth.Table:
    own = {"mixflow": {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}}
    table: truth.Table = {}
    for dtype in truth.DTYPES:
        for family in truth.FAMILIES:
            sample = truth.sample(dtype, family, cases, seed)
            promised = truth.bounds(dtype, "cuda" if emulated else "cpu")
            table.update(truth.measure(sample, own, seed=seed, promised=promised))
            if not emulated:
                table.update(measure_baselines(sample, seed))
    return table


def measure_baselines(sample: Sequence[truth.Case], seed: int) -> truth.Table:
    family, table = sample[0].family, {}
    for name, baseline in BASELINES.items():
        if family not in baseline.families or (name == "zuko" and not HAS_ZUKO):
            continue
        cases = [c for c in sample if len(set(c.logits)) == 1] if baseline.equal_weights else sample
        methods, bases = {name: baseline.ops}, (baselines.BASE_OF[family],)
        table.update(truth.measure(cases, methods, bases, seed=seed, differentiate=baseline.differentiate))
    return table


def difference_of_cdfs(lower: torch.Tensor, upper: torch.Tensor, *parameters: torch.Tensor, family: str) -> Any:
    """The definition: log(F(upper) - F(lower))."""
    logits, loc, log_scale = parameters
    cdf = standard.FAMILIES[family].plain_cdf
    tails = (cdf((edge.unsqueeze(-1) - loc) * (-log_scale).exp()) for edge in (upper, lower))
    return (logits.softmax(-1) * (next(tails) - next(tails))).sum(-1).log()


def pixelcnn(lower: torch.Tensor, upper: torch.Tensor, *parameters: torch.Tensor, family: str) -> Any:
    """The formula of PixelCNN++ for logistic components: the density at the centre where the CDFs are too close."""
    logits, loc, log_scale = parameters
    low, high = ((e.unsqueeze(-1) - loc) * (-log_scale).exp() for e in (lower, upper))
    finite = lower.isfinite() & upper.isfinite()
    a, b = torch.where(finite, lower, 0.0).unsqueeze(-1), torch.where(finite, upper, 1.0).unsqueeze(-1)
    middle = (0.5 * a + 0.5 * b - loc) * (-log_scale).exp()
    density = middle - log_scale - 2 * torch.nn.functional.softplus(middle) + (b - a).log()
    delta = high.sigmoid() - low.sigmoid()
    inner = torch.where(delta > 1e-5, delta.clamp(min=1e-12).log(), density)
    first = lower.isneginf().unsqueeze(-1)
    edge = torch.where(first, torch.nn.functional.logsigmoid(high), torch.nn.functional.logsigmoid(-low))
    return (logits.log_softmax(-1) + torch.where(finite.unsqueeze(-1), inner, edge)).logsumexp(-1)


# Of bins: the op, and the families for which it exists.
BIN_METHODS = {
    "mixflow": (mixflow.discretized_log_prob, tuple(truth.FAMILIES)),
    "difference of CDFs": (difference_of_cdfs, tuple(truth.FAMILIES)),
    "PixelCNN++": (pixelcnn, ("logistic",)),
}


def measure_bins(cases: int, seed: int) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """The table of log P and its gradients, and every bound that does not hold with its worst case."""
    lines, broken = [["method", "family", "dtype", "figure", *truth.BIN_KINDS]], []
    for method, (op, families) in BIN_METHODS.items():
        for dtype in truth.DTYPES:
            for family in families:
                table = truth.measure_bins(truth.sample_bins(dtype, family, cases, seed), op)
                for figure, bound in truth.BIN_BOUNDS.items():
                    worst = [table[figure, kind] for kind in truth.BIN_KINDS]
                    if method == "mixflow":
                        broken += [(f"{figure}: {w.error:.4g} > {bound:g} eps", w.note) for w in worst if w.over]
                    elif figure != "log P":
                        continue  # where the value is lost, so is its gradient
                    lines.append([method, family, dtype, figure, *map(show, worst)])
    return lines, broken


def show(worst: truth.Worst | None) -> str:
    if worst is None:
        return "-"
    if worst.error <= worst.bound:
        return f"{worst.error:.2f}"
    error = f"{worst.error:.3g}" if math.isfinite(worst.error) else "inf"
    return f"{error} ({100 * worst.over / worst.count:.1f}%)"


def rows(table: truth.Table) -> list[list[str]]:
    result = []
    for key, row in sorted(table.items(), key=lambda item: item[0][0] != "mixflow"):
        counts = [w.count for w in row.values()]
        cells = [show(row.get(figure)) for figure in truth.BOUNDS]
        result.append([*key, str(max(counts)), *cells])
    promised = {
        key[3]: [row[figure].bound for figure in truth.BOUNDS] for key, row in table.items() if key[0] == "mixflow"
    }
    limits = [["bound", "", "", dtype, "", "", *(f"{b:g}" for b in row)] for dtype, row in promised.items()]
    return [list(HEADINGS), *result, *limits]


def render(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in table]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="cases per family and dtype")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--emulated", action="store_true", help="of the CUDA kernels: `make emulated` builds them")
    parser.add_argument("--quick", action="store_true", help="256 cases, and --cases is ignored")
    parser.add_argument("--json", type=Path, help="also write the figures and their worst cases here")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    args = parser.parse_args()

    start = time.perf_counter()
    where = f"CPU capability {mixflow.show_config()['cpu_capability']}"
    if args.emulated:
        if mixflow._core.cuda_architectures() != "emulated":
            parser.error("--emulated: expected a module built with MIXFLOW_CUDA=EMULATED; `make emulated` builds one")
        kernels.run = run_on_emulated_device
        where = "the CUDA kernels, emulated, with units as inexact as they may be"
    table = measure(256 if args.quick else args.cases, args.seed, args.emulated)
    text = render(rows(table))
    print(f"Largest errors in eps, {where}:\n\n{text}\n")
    bins, broken_bins = measure_bins(256 if args.quick else args.cases, args.seed)
    print(f"Bins, by kind:\n\n{render(bins)}\n")
    print(f"{time.perf_counter() - start:.0f} s")
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if args.json:
        records = [
            dict(zip(HEADINGS[:5], key, strict=True))
            | {"figure": figure, "error": repr(w.error), "count": w.count, "over": w.over, "worst": w.note}
            for key, row in table.items()
            for figure, w in row.items()
        ]
        args.json.write_text(json.dumps(records, indent=1) + "\n")
    failures = truth.broken(table) + broken_bins
    for what, note in failures:
        print(f"\nBROKEN {what}\n  {note}")
    print("\nevery bound holds" if not failures else f"\n{len(failures)} bounds broken")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
