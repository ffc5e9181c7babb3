"""Results are checked on the arrays that are then timed. A wrong result ends the run: a fast one would mean nothing.

mixflow is held to four times the bounds that it promises (docs/how-exact.md), against the careful formula in float64 at
the same inputs: what is sought here among millions of elements is a wrong one, and the bounds themselves are for
`make accuracy`. Rivals, which promise nothing, must agree with mixflow roughly, or they do other work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import standard
from .baselines import BASE_OF, Parameters, log_space_forward
from .inputs import Inputs

__all__ = ["WrongResult", "check_agreement", "check_gradients", "check_values"]

Tensors = tuple[Tensor, ...]

# In eps of the dtype; what they are multiplied by is said in docs/how-exact.md.
_Z, _LADJ, _INVERSE, _GRADIENT = (4 * bound for bound in (4, 4, 16, 64))
# A float64 reference has errors of its own, which are as large as those of a float64 result.
_OWN_ERRORS = {torch.float32: 1, torch.float64: 2}
_MOST = 2**23  # components of elements
_CHUNK = 2**16
_CHUNK_ON_CUDA = 2**20


class WrongResult(ArithmeticError):
    """A result that was to be timed is wrong."""


def check_values(name: str, inputs: Inputs, results: Sequence[Tensor], family: str, *, inverse: bool) -> None:
    """Check ``results = (z, ladj)`` of the forward, or ``(x, ladj)`` of the inverse, of ``inputs``.

    Of more than 2^23 / K elements, as many are checked, evenly spread.

    Raises:
        WrongResult: a value is further off than allowed.

    Example:
        >>> import torch
        >>> from mixflow.bench.inputs import Inputs
        >>> from mixflow.bench.verify import check_values
        >>> inputs = Inputs(torch.ones(1), (torch.zeros(1),) * 3)
        >>> check_values("identity", inputs, (torch.ones(1), torch.zeros(1)), "logistic", inverse=False)
        >>> check_values("identity", inputs, (torch.ones(1) + 1e-5, torch.zeros(1)), "logistic", inverse=False)
        Traceback (most recent call last):
        mixflow.bench.verify.WrongResult: identity: z is off by 5.2 times the error allowed; nothing was timed

    """
    base = BASE_OF[family]
    for rows in _chunks(len(inputs.x), inputs.parameters[0].shape[-1]):
        part = inputs.select(rows)
        value, ladj = (r.detach()[rows] for r in results)
        eps = torch.finfo(value.dtype).eps * _OWN_ERRORS[value.dtype]
        x, z = (value, part.x) if inverse else (part.x, value)
        with torch.no_grad():
            exact, slope = log_space_forward(x.double(), _doubles(part), family)
        z = z.detach().double()
        allowed = (_INVERSE if inverse else _Z) * eps * exact.abs().clamp(min=1)
        if inverse:
            spacing = torch.nextafter(x.abs(), torch.full_like(x, torch.inf)) - x.abs()
            allowed += slope.exp() * spacing.double()
        _require(name, "x" if inverse else "z", (z - exact).abs(), allowed)
        log_g = standard.BASES[base].log_prob(exact)
        scale = 1 + (slope + log_g).abs() + log_g.abs()
        _require(name, "ladj", (ladj.double() + (slope if inverse else -slope)).abs(), _LADJ * eps * scale)


def check_gradients(
    name: str, inputs: Inputs, results: Sequence[Tensor], grads: Sequence[Tensor], family: str, *, inverse: bool
) -> None:
    """Check the gradients of ``inputs`` (x, logits, loc, log_scale) from its seeds; ``results`` as in check_values.

    Each is held to its bound in the Euclidean norm over all elements, a sum over elements (of shared parameters)
    on the scale of the sum of absolute values.

    Raises:
        WrongResult: a gradient is further off than allowed.

    """
    eps = torch.finfo(inputs.x.dtype).eps * _OWN_ERRORS[inputs.x.dtype]
    summed = [inputs.shared and g is not grads[0] for g in grads]
    off, scale = ([torch.zeros((), dtype=torch.float64, device=g.device) for g in grads] for _ in range(2))
    left = [g.double() for g in grads]
    step = _CHUNK_ON_CUDA if inputs.x.is_cuda else _CHUNK
    for start in range(0, len(inputs.x), step):
        rows = slice(start, start + step)
        part = inputs.select(rows)
        point = results[0].detach()[rows] if inverse else part.x
        exact, weight = _exact_gradients(point, part, family, inverse=inverse)
        for i, term in enumerate(exact):
            weighted = term.abs() * weight.reshape(-1, *[1] * (term.dim() - 1))
            if summed[i]:
                left[i] -= term.sum(0)
                scale[i] += weighted.sum()
            else:
                off[i] = torch.hypot(off[i], (left[i][rows] - term).norm())
                scale[i] = torch.hypot(scale[i], weighted.norm())
    for i, what in enumerate(("x", "logits", "loc", "log_scale")):
        error = left[i].norm() if summed[i] else off[i]
        _require(name, f"the gradient of {what}", error, _GRADIENT * eps * scale[i])


def check_agreement(name: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Check that a rival does the same work: 95 % of its results within 1e-3 of ours, relative to 1 + their size.

    Tails, in which the plain formulas are wrong or infinite, may be off.

    Raises:
        WrongResult: they are not.

    """
    for mine, other in zip(ours, theirs, strict=False):
        mine, other = (torch.as_tensor(t).detach().double() for t in (mine, other))
        same = ((mine - other).abs() <= 1e-3 * (1 + mine.abs())).double().mean().item()
        if same < 0.95:
            raise WrongResult(f"{name}: only {100 * same:.0f} % of its results agree with mixflow's; nothing was timed")


def _exact_gradients(point: Tensor, inputs: Inputs, family: str, *, inverse: bool) -> tuple[Tensors, Tensor]:
    """Gradients per element in float64, and how much larger the terms of ladj are than ladj: 1 + |log f| + |log g|."""
    n, base = len(point), BASE_OF[family]
    x = point.detach().double().requires_grad_()
    logits, loc, log_scale = (p.expand(n, p.shape[-1]).clone().requires_grad_() for p in _doubles(inputs))
    parameters = logits, loc, log_scale
    z, ladj = log_space_forward(x, parameters, family)
    log_g = standard.BASES[base].log_prob(z.detach())
    weight = 1 + (ladj.detach() + log_g).abs() + log_g.abs()
    grad_value, grad_ladj = (s.double() for s in inputs.seeds)
    if not inverse:
        return torch.autograd.grad((z, ladj), (x, *parameters), (grad_value, grad_ladj)), weight
    (slope,) = torch.autograd.grad(ladj, x, torch.ones_like(ladj), retain_graph=True)
    grad_z = ((grad_value - grad_ladj * slope) * torch.exp(-ladj)).detach()
    return (grad_z, *torch.autograd.grad((z, ladj), parameters, (-grad_z, -grad_ladj))), weight


def _doubles(inputs: Inputs) -> Parameters:
    logits, loc, log_scale = (p.detach().double() for p in inputs.parameters)
    return logits, loc, log_scale


def _chunks(n: int, components: int) -> Iterator[slice]:
    stride = -(-n * components // _MOST)
    for start in range(0, n, _CHUNK * stride):
        yield slice(start, min(n, start + _CHUNK * stride), stride)


def _require(name: str, what: str, error: Tensor, allowed: Tensor) -> None:
    worst = float((error / allowed).max())
    if not worst <= 1:
        raise WrongResult(f"{name}: {what} is off by {worst:.1f} times the error allowed; nothing was timed")
