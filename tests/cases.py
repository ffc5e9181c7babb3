"""The table of cases for the tests of the ops: every way in which shapes and strides can be combined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import mixflow

FAMILY_AND_BASE = [(family, base) for family in mixflow.FAMILIES for base in mixflow.BASES]
EPSILON = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def computes_by_units(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether a GPU's instructions compute special functions, to two eps. z and ladj are then within 8 eps, not 4."""
    return dtype == torch.float32 and torch.device(device).type == "cuda"


Draw = Callable[..., Tensor]
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def _parameters(draw: Draw, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(*shape), 2 * draw(*shape), -0.5 + 0.5 * draw(*shape)


def _transposed(draw: Draw) -> Arguments:
    logits, loc, log_scale = (p.movedim(0, 2) for p in _parameters(draw, 3, 5, 4))
    return draw(4, 5).T, logits, loc, log_scale


def _expanded(draw: Draw) -> Arguments:
    return (draw(1, 7).expand(6, 7), *(p.expand(6, 7, 3) for p in _parameters(draw, 7, 3)))


def _strided(draw: Draw) -> Arguments:
    return (draw(90)[::3], *(p[::2, 1::2] for p in _parameters(draw, 60, 6)))


def _mixed(draw: Draw) -> Arguments:
    logits, loc, log_scale = draw(4), 2 * draw(6, 1, 4), -0.5 + 0.5 * draw(5, 4)
    return draw(6, 5), logits, loc, log_scale


LAYOUTS: dict[str, Callable[[Draw], Arguments]] = {
    "shared": lambda draw: (draw(50), *_parameters(draw, 8)),
    "shared, matrix": lambda draw: (draw(9, 11), *_parameters(draw, 3)),
    "shared, many chunks": lambda draw: (draw(20001), *_parameters(draw, 2)),
    "one component": lambda draw: (draw(20), *_parameters(draw, 1)),
    "many components": lambda draw: (draw(3, 17), *_parameters(draw, 130)),
    "per feature": lambda draw: (draw(40, 3), *_parameters(draw, 3, 4)),
    "per feature, few rows": lambda draw: (draw(2, 37), *_parameters(draw, 37, 4)),
    "per row": lambda draw: (draw(35, 6), *_parameters(draw, 35, 1, 4)),
    "per row, long rows": lambda draw: (draw(5, 60), *_parameters(draw, 5, 1, 4)),
    "per element": lambda draw: (draw(30, 3), *_parameters(draw, 30, 3, 5)),
    "one set over x of length 1": lambda draw: (draw(1), *_parameters(draw, 1, 5)),
    "x broadcast against parameters": lambda draw: (draw(1), *_parameters(draw, 33, 5)),
    "scalar x": lambda draw: (draw(), *_parameters(draw, 4)),
    "scalar x, batch of parameters": lambda draw: (draw(), *_parameters(draw, 2, 3, 4)),
    "empty": lambda draw: (draw(0), *_parameters(draw, 4)),
    "empty, per element": lambda draw: (draw(3, 0), *_parameters(draw, 3, 0, 4)),
    "mixed": _mixed,
    "expanded": _expanded,
    "transposed": _transposed,
    "strided": _strided,
    "many axes": lambda draw: (
        draw(3, 2, 4, 2, 3).permute(4, 1, 0, 3, 2),
        *_parameters(draw, 3, 1, 3, 1, 4, 2),
    ),
}


def arguments(layout: str, dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return LAYOUTS[layout](draw)


def to_base_range(z: Tensor, base: str) -> Tensor:
    """Maps any real values to values of the base distribution."""
    return torch.sigmoid(z) if base == "uniform" else z
