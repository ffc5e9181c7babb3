"""For tests/test_ops.py (or a test of op/): the order of operands in Python is that of the core."""

import pytest

from mixflow import _core
from mixflow.op.table import AFFINE_TRANSFORM, CDF_TRANSFORM, DISCRETIZED_LOG_PROB


@pytest.mark.parametrize(
    ("op", "kernel"),
    [(CDF_TRANSFORM, "map"), (AFFINE_TRANSFORM, "packed_map"), (DISCRETIZED_LOG_PROB, "interval")],
    ids=lambda value: getattr(value, "name", value),
)
def test_operands_stand_in_the_order_in_which_the_core_takes_them(op, kernel):
    def gradients(names):
        return tuple(f"grad_{name}" for name in names)

    assert _core.OPERANDS[kernel] == op.tensors + op.outputs
    assert _core.OPERANDS[f"{kernel}_backward"] == gradients(op.outputs) + op.tensors + gradients(op.tensors)
