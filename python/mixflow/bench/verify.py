"""Results are checked on the arrays that are then timed. A wrong result ends the run: a fast one would mean nothing.

mixflow is held to four times the bounds that it promises (docs/how-exact.md), against :mod:`mixflow.reference` in
float64 at the same inputs: what is sought here among millions of elements is a wrong one, and the bounds themselves are
for `make accuracy`. Baselines, which promise nothing, must agree with mixflow roughly, or they do other work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import reference, standard
from .baselines import BASE_OF
from .inputs import Inputs

__all__ = ["WrongResult", "check", "check_agreement"]

# In eps of the dtype; docs/how-exact.md tells what they are multiplied by.
_Z, _LADJ, _INVERSE, _GRADIENT = (4 * bound for bound in (4, 4, 16, 64))
# A float64 reference has errors of its own, which are as large as those of a float64 result.
_OWN_ERRORS = {torch.float32: 1, torch.float64: 2}
_MOST = 2**23  # components of elements whose values are checked
_CHUNK = {"cpu": 2**16, "cuda": 2**20}  # elements


class WrongResult(ArithmeticError):
    """A result that was to be timed is wrong."""


def check(name: str, inputs: Inputs) -> None:
    """Check the values that mixflow computes from ``inputs``, and the gradients if there are seeds for them.

    Of more than 2^23 / K elements, as many values are checked, evenly spread.

    Raises:
        WrongResult: a value or a gradient is further off than allowed.

    """
    results = inputs.op()
    n, components = len(inputs.x), inputs.parameters[0].shape[-1]
    stride = -(-n * components // _MOST)
    step = _CHUNK[inputs.x.device.type] * stride
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step), stride)
        _check_values(name, inputs.select(rows), *(r.detach()[rows] for r in results))
    if inputs.seeds:
        grads = torch.autograd.grad(results, inputs.leaves, inputs.seeds)
        _check_gradients(name, inputs, results[0].detach(), grads)


def check_agreement(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Check that a baseline does the same work: 95 % of its results within 1e-3 of ours, relative to 1 + their size.

    Tails, in which the plain formulas are wrong or infinite, may be off.

    Raises:
        WrongResult: they are not.

    """
    for mine, other in zip(ours, theirs, strict=False):
        mine, other = (torch.as_tensor(t).detach().double() for t in (mine, other))
        same = ((mine - other).abs() <= 1e-3 * (1 + mine.abs())).double().mean().item()
        if same < 0.95:
            raise WrongResult(f"{name}: only {100 * same:.0f} % of its results agree with mixflow's; nothing was timed")


def _exact(inputs: Inputs, value: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """In float64, with gradients: x and parameters, their z and ladj, and the size of the terms that make up ladj."""
    point = value if inputs.inverse else inputs.x
    shape = len(point), inputs.parameters[0].shape[-1]
    parameters = (p.detach().double().expand(shape).clone() for p in inputs.parameters)
    leaves = [leaf.requires_grad_(bool(inputs.seeds)) for leaf in (point.detach().double(), *parameters)]
    base = BASE_OF[inputs.family]
    z, ladj = reference.cdf_transform(*leaves, family=inputs.family, base=base)
    log_g = standard.BASES[base].log_prob(z.detach())
    return leaves, z, ladj, 1 + (ladj.detach() + log_g).abs() + log_g.abs()


def _check_values(name: str, inputs: Inputs, value: Tensor, ladj: Tensor) -> None:
    """Check ``(z, ladj)`` of the forward op, or ``(x, ladj)`` of the inverse."""
    eps = torch.finfo(value.dtype).eps * _OWN_ERRORS[value.dtype]
    with torch.no_grad():
        _, exact, slope, terms = _exact(replace(inputs, seeds=()), value)
    allowed = (_INVERSE if inputs.inverse else _Z) * eps * exact.abs().clamp(min=1)
    if inputs.inverse:
        spacing = torch.nextafter(value.abs(), torch.full_like(value, torch.inf)) - value.abs()
        allowed += slope.exp() * spacing.double()
    z = inputs.x.detach() if inputs.inverse else value
    _require(name, "x" if inputs.inverse else "z", (z.double() - exact).abs(), allowed)
    off = ladj.double() + (slope if inputs.inverse else -slope)
    _require(name, "ladj", off.abs(), _LADJ * eps * terms)


def _check_gradients(name: str, inputs: Inputs, value: Tensor, grads: Sequence[Tensor]) -> None:
    """Check the gradients of x, logits, loc and log_scale.

    Each is held to its bound in the Euclidean norm over all elements, a sum over elements (of shared parameters)
    on the scale of the sum of absolute values.
    """
    eps = torch.finfo(inputs.x.dtype).eps * _OWN_ERRORS[inputs.x.dtype]
    summed = [inputs.shared and g is not grads[0] for g in grads]
    left = [g.double() for g in grads]
    scale = [g.new_zeros((), dtype=torch.float64) for g in grads]
    step = _CHUNK[inputs.x.device.type]
    for start in range(0, len(inputs.x), step):
        rows = slice(start, start + step)
        exact, terms = _exact_gradients(inputs.select(rows), value[rows])
        for i, term in enumerate(exact):
            weighted = term.abs() * terms.reshape(-1, *[1] * (term.dim() - 1))
            left[i][... if summed[i] else rows] -= term.sum(0) if summed[i] else term
            scale[i] = scale[i] + weighted.sum() if summed[i] else torch.hypot(scale[i], weighted.norm())
    for what, error, size in zip(("x", "logits", "loc", "log_scale"), left, scale, strict=True):
        _require(name, f"the gradient of {what}", error.norm(), _GRADIENT * eps * size)


def _exact_gradients(inputs: Inputs, value: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """The gradients of each element, those of the inverse by the implicit function theorem, and the size of terms."""
    leaves, z, ladj, terms = _exact(inputs, value)
    grad_value, grad_ladj = (seed.double() for seed in inputs.seeds)
    if not inputs.inverse:
        return torch.autograd.grad((z, ladj), leaves, (grad_value, grad_ladj)), terms
    (slope,) = torch.autograd.grad(ladj, leaves[0], torch.ones_like(ladj), retain_graph=True)
    grad_z = ((grad_value - grad_ladj * slope) * torch.exp(-ladj)).detach()
    return (grad_z, *torch.autograd.grad((z, ladj), leaves[1:], (-grad_z, -grad_ladj))), terms


def _require(name: str, what: str, error: Tensor, allowed: Tensor) -> None:
    worst = float((error / allowed).max())
    if not worst <= 1:
        raise WrongResult(f"{name}: {what} is off by {worst:.1f} times the error allowed; nothing was timed")
