"""The ops: for each, the names of its operands, its kernels, and its gradient written out.

| function in Python                   | torch op             | kernels in csrc/bindings.cpp |
| ------------------------------------ | -------------------- | ---------------------------- |
| cdf_transform, cdf_transform_inverse | mixflow::map         | map                          |
| affine_transform                     | mixflow::affine_map  | packed_map                   |
| discretized_log_prob                 | mixflow::interval    | interval                     |

An op that is added here is registered, differentiated, vectorised and traced as the others are.
"""

from __future__ import annotations

from typing import Any

from .. import _core
from . import written_out
from .kernels import BASES, FAMILIES, Op

__all__ = ["AFFINE_TRANSFORM", "CDF_TRANSFORM", "DISCRETIZED_LOG_PROB", "OPS"]

_FAMILY_INDEX = {name: index for index, name in enumerate(FAMILIES)}
_BASE_INDEX = {name: index for index, name in enumerate(BASES)}
_INVERTIBLE = {"family": "str", "base": "str", "inverse": "bool"}


def _indices(family: str, base: str, inverse: bool) -> tuple[int, ...]:
    return inverse, _FAMILY_INDEX[family], _BASE_INDEX[base]


def _map_with_slopes(inverse: bool, *args: Any) -> None:
    assert not inverse
    _core.map_with_slopes(*args)


CDF_TRANSFORM = Op(
    name="map",
    elements=("x",),
    outputs=("value", "ladj"),
    options=_INVERTIBLE,
    kernel=_core.map,
    backward_kernel=_core.map_backward,
    slopes_kernel=_map_with_slopes,
    indices=_indices,
    written_out=written_out.cdf_transform_gradient,
)

AFFINE_TRANSFORM = Op(
    name="affine_map",
    elements=("x",),
    parameters=("rows",),
    outputs=("value", "ladj"),
    options=_INVERTIBLE,
    leaves_sums_to_torch=True,
    kernel=_core.packed_map,
    backward_kernel=_core.packed_map_backward,
    indices=_indices,
    written_out=written_out.affine_transform_gradient,
)

DISCRETIZED_LOG_PROB = Op(
    name="interval",
    elements=("lower", "upper"),
    outputs=("log_prob",),
    options={"family": "str"},
    kernel=_core.interval,
    backward_kernel=_core.interval_backward,
    indices=lambda family: (_FAMILY_INDEX[family],),
    written_out=written_out.discretized_log_prob_gradient,
)

OPS = (CDF_TRANSFORM, AFFINE_TRANSFORM, DISCRETIZED_LOG_PROB)
