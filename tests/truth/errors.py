"""Errors against the truth: the scales on which they count, the bounds that are promised, and the measuring.

Scales. An error is divided by eps (2^-23 or 2^-52) and by its scale, which is the magnitude of what is computed, or
of the terms that are added where the sum may cancel:

    z                 max(1, |z*|); uniform base: u* max(1, |log u*|)
    ladj              1 + |log f*| + |log g*|, called L below, with f* the mixture density and g* the base density at z*
    inverse           that of z, for |z(x) - z| beyond |dz/dx| ulp(x), with z(x) the truth at the x returned
    gradients         the sum of the magnitudes of the terms that are added, times L

The terms of the gradients are made of r_k, the share of component k in f, and q_k, its share in the smaller tail.
Both are exponentials of differences of logs as large as L, which explains the factor L. A share below eps cannot be
seen in any sum, so it is compared as if it were eps. A score that is a difference of two terms has the scale of those
terms: the score of the logistic is a difference of probabilities and has the scale 1. -z as a score has the scale of z.

With A the magnitude of what is named, score_k = d log c(a_k) / da and score = d log g / dz:

    dz/dx             A(dz/dx)
    dz/dloc_k         r_k dz/dx
    dz/dlog_scale_k   r_k |x - loc_k| dz/dx
    dz/dlogit_k       (q_k + omega_k) m / g, m the smaller tail, omega_k the weight
    dladj/dx          A(D) + A(score) dz/dx, A(D) = sum_k r_k A(score_k) / s_k
    dladj/dloc_k      r_k A(score_k) / s_k + A(score) A(dz/dloc_k)
    dladj/dlog_s_k    r_k (1 + |a_k| A(score_k)) + A(score) A(dz/dlog_s_k)
    dladj/dlogit_k    r_k + omega_k + A(score) A(dz/dlogit_k)

and for the inverse, which differentiates implicitly (the base score cancels),

    dx/dz             1 / (dz/dx)
    dx/dtheta         A(dz/dtheta) / (dz/dx)
    dladj'/dz         A(score) + A(D) / (dz/dx)
    dladj'/dtheta     A(dladj/dtheta without its score term) + A(D) A(dz/dtheta) / (dz/dx)

and for the log-probability of an interval, with L = 1 + |log P*|, pi_k the share of component k in P, and A(score_k)
the largest magnitude of the score in the interval,

    log P             L
    dlogP/dedge       f(edge) / P times L + |log f(edge)|
    dlogP/dlogit_k    (pi_k + omega_k) L
    dlogP/dloc_k      the smaller of pi_k A(score_k) L / s_k and e_k (L + |log e_k|) / s_k,
                      e_k = w_k (c(a_k) + c(b_k)) / P
    dlogP/dlog_s_k    the smaller of pi_k (1 + max|a_k, b_k| A(score_k)) L and e_k' (L + |log e_k'|),
                      e_k' = w_k (|a_k| c(a_k) + |b_k| c(b_k)) / P

Results below the smallest normal number of the dtype may be flushed to zero: that much is allowed on top of the scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
import torch
from mpmath import mpf

from .bases import BASES
from .exact import (
    EDGES,
    PARAMETERS,
    Gradient,
    Mixture,
    Value,
    gradients,
    log_interval,
    mixture,
    to_base,
)
from .families import FAMILIES
from .hard_cases import Bin, Case, largest_target
from .numbers import DTYPES, EPSILON, LARGEST, MIN_NORMAL, NUMBER, Number

Device = torch.device | str

# What is promised, in eps. `Base.reach` limits for which z.
BOUNDS = {
    "z": 4.0,
    "ladj": 4.0,
    "inverse": 16.0,
    "inverse ladj": 4.0,
    "grad z": 64.0,
    "grad ladj": 64.0,
    "grad x": 64.0,
    "grad inverse ladj": 64.0,
}
# A GPU has units for 2^x, log2 x and 1 / x in float32, of two eps.
UNITS_BOUNDS = BOUNDS | {"z": 8.0, "ladj": 8.0, "inverse ladj": 8.0}
BIN_BOUNDS = {"log P": 4.0, "grad log P": 64.0}


def bounds(dtype: str, device: Device = "cpu") -> dict[str, float]:
    """What is promised for this dtype on this device."""
    return BOUNDS if dtype == "float64" or torch.device(device).type == "cpu" else UNITS_BOUNDS


# -- one error -------------------------------------------------------------------------------------------------


def relative_error(got: float, exact: Number, scale: Number, dtype: str) -> float:
    """|got - exact| in eps of its scale. NaN and infinity count as inf where the terms of the sum are representable."""
    if not math.isfinite(got):
        return 0.0 if scale > LARGEST[dtype] else math.inf
    if abs(exact) > LARGEST[dtype]:
        return 0.0 if abs(got) >= LARGEST[dtype] / 2 else math.inf
    difference = abs(mpf(got) - exact)
    if difference == 0:
        return 0.0
    if scale == 0:
        return math.inf
    return float(difference / (EPSILON[dtype] * scale + MIN_NORMAL[dtype]))


def in_reach(value: Value, base: str) -> bool:
    size = BASES[base].size(value.z, value.log_F - value.log_S)
    return bool(abs(size) <= BASES[base].reach)


def value_scale(value: Value, base: str) -> Number:
    return BASES[base].z_scale(value.z)


def gradient_error(exact: Gradient, got: list[Any], row: int, dtype: str) -> tuple[float, str]:
    worst, where = 0.0, ""
    for name, k, value, scale in exact.entries():
        mine = got[0][row] if name == "input" else got[1 + PARAMETERS.index(name)][row][k]
        error = relative_error(mine, value, scale, dtype)
        if not error <= worst:
            worst = error
            where = f"by {name}[{k}]: got {float(mine).hex()} ({mine:.9g}), expected {mp.nstr(value, 20)}"
    return worst, where


def inverse_excess(case: Case, base: str, z: float, x: float, value: Value) -> float:
    """Excess of |z(x) - z| over what one ulp of x explains, in eps of the scale of z.

    One ulp explains |dz/dx| ulp(x) or, where the slope changes within that ulp (a spike narrower than the spacing of
    the numbers around it), the change of z to the neighbour of x on the side of the target.
    """
    number = NUMBER[case.dtype]
    miss = abs(value.z - mpf(z))
    scale = EPSILON[case.dtype] * BASES[base].z_scale(mpf(z))
    excess = miss - abs(value.slope) * mpf(float(np.spacing(number(abs(x)))))
    if excess > scale:
        neighbour = float(np.nextafter(number(x), number(math.inf if value.z < z else -math.inf)))
        if math.isfinite(neighbour):
            other = to_base(mixture(neighbour, case.logits, case.loc, case.log_scale, case.family), base).z
            excess = min(excess, miss - abs(other - value.z))
    return max(0.0, float(excess / scale))


# -- the worst of many -----------------------------------------------------------------------------------------


@dataclass
class Worst:
    """The largest error of one figure, how many cases it was taken over, and how many of them broke the bound."""

    error: float = 0.0
    count: int = 0
    over: int = 0
    note: str = ""
    bound: float = math.inf

    def add(self, error: float, bound: float, note: Callable[[], str]) -> None:
        self.count += 1
        self.bound = bound
        self.over += not error <= bound
        if not error <= self.error:  # also when error is NaN, which is then kept
            if math.isnan(self.error):
                return
            self.error, self.note = error, note()


# (method, family, base, dtype, group) -> figure -> worst
Table = dict[tuple[str, str, str, str, str], dict[str, Worst]]


@dataclass
class Recorder:
    table: Table
    method: str
    base: str
    differentiate: bool
    bounds: dict[str, float]

    def add(self, case: Case, figure: str, error: float, note: Callable[[], str]) -> None:
        key = (self.method, case.family, self.base, case.dtype, case.group)
        worst = self.table.setdefault(key, {}).setdefault(figure, Worst())
        worst.add(error, self.bounds[figure], lambda: f"{figure} {self.base} {case}: {error:.4g} eps; {note()}")

    def compare(self, case: Case, figure: str, got: float, exact: Number, scale: Number, prefix: str = "") -> None:
        def note() -> str:
            return f"{prefix}got {float(got).hex()} ({got:.17g}), expected {mp.nstr(exact, 25)}"

        self.add(case, figure, relative_error(got, exact, scale, case.dtype), note)

    def compare_gradients(
        self, case: Case, row: int, exact: dict[str, Gradient], figures: Sequence[str], out: Output, prefix: str = ""
    ) -> None:
        for figure, got in zip(figures, out.gradients, strict=True):
            error, where = gradient_error(exact[figure], got, row, case.dtype)
            self.add(case, "grad " + figure, error, functools.partial("{}{}".format, prefix, where))


def broken(table: Table, method: str = "mixflow") -> list[tuple[str, str]]:
    """(figure, worst case) of every bound that does not hold."""
    return [
        (f"{figure}: {w.error:.4g} > {w.bound:g} eps", w.note)
        for key, row in table.items()
        if key[0] == method
        for figure, w in row.items()
        if not w.error <= w.bound
    ]


# -- calls of an op --------------------------------------------------------------------------------------------


@dataclass
class Output:
    """What an op returns for a batch: values, and per output the gradients by input, logits, loc, log_scale."""

    value: list[float]
    ladj: list[float]
    gradients: list[list[Any]]


Op = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def tensors(cases: Sequence[Case], device: Device = "cpu") -> tuple[torch.Tensor, ...]:
    columns = ([getattr(c, n) for c in cases] for n in ("x", *PARAMETERS))
    return tuple(torch.tensor(c, dtype=torch.float64).to(device, DTYPES[cases[0].dtype]) for c in columns)


def evaluate(op: Op, inputs: Sequence[torch.Tensor], differentiate: bool = True) -> Output:
    leaves = [t.detach().clone().requires_grad_(differentiate) for t in inputs]
    value, ladj = op(*leaves)
    grads = []
    if differentiate and value.requires_grad:
        for output in (value, ladj):
            found = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
            grads.append(
                [(torch.zeros_like(t) if g is None else g).tolist() for g, t in zip(found, leaves, strict=True)]
            )
    return Output(value.tolist(), ladj.tolist(), grads)


def by_size(cases: Sequence[Any]) -> list[list[Any]]:
    """The cases in batches of as many components."""
    batches: dict[int, list[Any]] = {}
    for case in cases:
        batches.setdefault(len(case.logits), []).append(case)
    return list(batches.values())


def measure(
    cases: Sequence[Case],
    methods: dict[str, dict[str, Op]],
    bases: Sequence[str] = tuple(BASES),
    seed: int = 0,
    differentiate: bool = True,
    device: Device = "cpu",
    promised: dict[str, float] | None = None,
) -> Table:
    """Worst errors of every method over the cases, which share dtype and family, on one device.

    ``promised`` are other bounds than those of the dtype and device.

    methods: name -> {"forward": op, "inverse": op}; an op takes (x, logits, loc, log_scale, family=, base=), and a
    method that has no inverse leaves it out. The inverse is called with z* rounded to the dtype and, in extreme cases,
    with values from all over the base's range. Its ladj and gradients are compared with the truth at the x it returned,
    since the figure "inverse" already counts the distance of x from the root.
    """
    table: Table = {}
    rng = np.random.default_rng(seed)
    dtype, family = cases[0].dtype, cases[0].family
    for batch in by_size(cases):
        mixes = [mixture(c.x, c.logits, c.loc, c.log_scale, family) for c in batch]
        for base in bases:
            values = [to_base(mix, base) for mix in mixes]
            targets = [_target(case, value, base, rng) for case, value in zip(batch, values, strict=True)]
            for method, ops in methods.items():
                recorder = Recorder(table, method, base, differentiate, promised or bounds(dtype, device))
                for name, op in ops.items():
                    bound = functools.partial(op, family=family, base=base)
                    if name == "forward":
                        _measure_forward(recorder, bound, batch, mixes, values, device)
                    else:
                        _measure_inverse(recorder, bound, batch, targets, device)
    return table


def _target(case: Case, value: Value, base: str, rng: np.random.Generator) -> float:
    """A z for the inverse: the image of the case or, of an extreme one, sometimes any z of the base."""
    if case.group == "ordinary" or (value.z and abs(value.z) <= LARGEST[case.dtype] and rng.random() < 0.6):
        return float(value.z)
    return BASES[base].target(case.dtype, largest_target(base, case.family, case.dtype), rng)


def _measure_forward(
    recorder: Recorder,
    op: Op,
    batch: Sequence[Case],
    mixes: Sequence[Mixture],
    values: Sequence[Value],
    device: Device,
) -> None:
    out = evaluate(op, tensors(batch, device), recorder.differentiate)
    for i, (case, mix, value) in enumerate(zip(batch, mixes, values, strict=True)):
        if not in_reach(value, recorder.base):
            continue
        recorder.compare(case, "z", out.value[i], value.z, value_scale(value, recorder.base))
        recorder.compare(case, "ladj", out.ladj[i], value.ladj, value.L)
        # The share of a component in the slope is compared down to eps, with an accuracy of eps.
        least = MIN_NORMAL[case.dtype] / EPSILON[case.dtype] ** 2
        vanishes = FAMILIES[case.family].slope_vanishes and value.slope < least
        if out.gradients and not vanishes:
            recorder.compare_gradients(case, i, gradients(mix, value, EPSILON[case.dtype]), ("z", "ladj"), out)


def _measure_inverse(
    recorder: Recorder, op: Op, batch: Sequence[Case], targets: Sequence[float], device: Device
) -> None:
    _, *parameters = tensors(batch, device)
    z_in = torch.tensor(targets, dtype=torch.float64).to(parameters[0])
    out = evaluate(op, (z_in, *parameters), recorder.differentiate)
    for i, (case, z) in enumerate(zip(batch, z_in.tolist(), strict=True)):
        x = out.value[i]
        if not BASES[recorder.base].is_target(z):
            continue
        prefix = f"z={float(z).hex()} ({z:.9g}) -> x={float(x).hex()} ({x:.9g}): "
        if not math.isfinite(x):
            recorder.add(case, "inverse", math.inf, functools.partial(str, prefix))
            continue
        mix = mixture(x, case.logits, case.loc, case.log_scale, case.family)
        value = to_base(mix, recorder.base)
        excess = inverse_excess(case, recorder.base, z, x, value)
        recorder.add(case, "inverse", excess, functools.partial("{}z(x)={}".format, prefix, mp.nstr(value.z, 20)))
        recorder.compare(case, "inverse ladj", out.ladj[i], -value.ladj, value.L, prefix)
        if out.gradients:
            exact = gradients(mix, value, EPSILON[case.dtype])
            recorder.compare_gradients(case, i, exact, ("x", "inverse ladj"), out, prefix)


def measure_bins(bins: Sequence[Bin], op: Any, device: Device = "cpu") -> dict[tuple[str, str], Worst]:
    """Worst errors by figure and kind; op takes (lower, upper, logits, loc, log_scale, family=)."""
    table: dict[tuple[str, str], Worst] = {}
    for batch in by_size(bins):
        columns = ([getattr(b, name) for b in batch] for name in (*EDGES, *PARAMETERS))
        dtype = DTYPES[batch[0].dtype]
        leaves = [torch.tensor(c, dtype=torch.float64).to(device, dtype).requires_grad_() for c in columns]
        value = op(*leaves, family=batch[0].family)
        grads = [g.cpu() for g in torch.autograd.grad(value.sum(), leaves)]
        values = value.tolist()
        for row, b in enumerate(batch):
            exact, expected = log_interval(b.lower, b.upper, b.logits, b.loc, b.log_scale, b.family, b.dtype)
            entries = [("log P", "", values[row], exact, 1 + abs(exact))]
            for name, g in zip((*EDGES, *PARAMETERS), grads, strict=True):
                got = zip(g[row].reshape(-1).tolist(), expected[name], strict=True)
                entries += [("grad log P", name, mine, *theirs) for mine, theirs in got]
            for figure, name, mine, theirs, scale in entries:
                note = functools.partial("{} {}: got {}, expected {}".format, b, name, mine, mp.nstr(theirs, 20))
                worst = table.setdefault((figure, b.kind), Worst())
                worst.add(relative_error(mine, theirs, scale, b.dtype), BIN_BOUNDS[figure], note)
    return table
