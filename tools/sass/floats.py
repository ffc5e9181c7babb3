"""Instructions that compute with floating point numbers, and conversions.

Sums and products are exact in float64, or rounded there so that the rounding to float32 is right.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from sass.assembly import Instruction, Operand
from sass.block import Block, Opcodes, Values
from sass.integers import COMPARISONS, set_comparison
from sass.toolkit import ToolError

opcodes = Opcodes()


def flush(x: Values) -> Values:
    """Zero in place of a subnormal number."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


def floats(b: Block, i: Instruction, operands: list[Operand]) -> list[Values]:
    values = [b.floating(operand) for operand in operands]
    return [flush(value) for value in values] if i.has("FTZ") else values


def add_to_odd(x: Values, y: Values) -> Values:
    """The sum, rounded to odd where it is not exact: a second rounding, to float32, then gives the right result."""
    total = x + y
    rest = (x - (total - (total - x))) + (y - (total - x))
    wrong = (rest != 0) & np.isfinite(total) & (total.view(np.int64) & 1 == 0)
    return np.where(wrong, np.nextafter(total, np.where(rest > 0, np.inf, -np.inf)), total)


def to_float32(i: Instruction, x: Values) -> Values:
    near = x.astype(np.float32)
    if i.has("RP", "RM", "RZ"):
        limit = np.float32(np.inf) * (1 if i.has("RP") else -1 if i.has("RM") else -np.sign(near))
        over = (near < x) if i.has("RP") else (near > x) if i.has("RM") else np.abs(near) > np.abs(x)
        near = np.where(over, np.nextafter(near, limit), near)
    return flush(near) if i.has("FTZ") else near


@opcodes.add("FADD", "FMUL", "FFMA")
def multiply_add(b: Block, i: Instruction) -> None:
    x, y, *z = (value.astype(np.float64) for value in floats(b, i, i.operands[1:]))
    exact = add_to_odd(x, y) if i.name == "FADD" else add_to_odd(x * y, z[0]) if z else x * y
    result = to_float32(i, exact)
    b.set(i.operands[0], np.clip(np.nan_to_num(result), np.float32(0), np.float32(1)) if i.has("SAT") else result)


@opcodes.add("FMNMX")
def extreme(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[1:3])
    least, most = (np.minimum, np.maximum) if i.has("NAN") else (np.fmin, np.fmax)
    zeros = (x == 0) & (y == 0)  # -0 is below +0, which a sum of zeros respects
    smaller, larger = np.where(zeros, -(-x - y), least(x, y)), np.where(zeros, x + y, most(x, y))
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), smaller, larger))


@opcodes.add("FSEL")
def select(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[1:3])
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), x, y))


@opcodes.add("FSETP")
def compare(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[2:4])
    unordered = np.isnan(x) | np.isnan(y)
    table = {name: relation(x, y) & ~unordered for name, relation in COMPARISONS.items()}
    table |= {f"{name}U": found | unordered for name, found in table.items()}
    set_comparison(b, i, i.choose(table | {"NUM": ~unordered, "NAN": unordered}))


@opcodes.add("FCHK")
def check_division(b: Block, i: Instruction) -> None:
    x, y = (b.bits(operand) >> 23 & 255 for operand in i.operands[1:3])
    b.set_predicate(i.operands[0], (x <= 24) | (x == 255) | (y <= 1) | (y >= 253) | (np.abs(x - y) >= 125))


FUNCTIONS = {"EX2": np.exp2, "LG2": np.log2, "RCP": np.reciprocal, "SQRT": np.sqrt, "TANH": np.tanh} | {
    "RSQ": lambda x: 1 / np.sqrt(x)
}


@opcodes.add("MUFU")
def special_function(b: Block, i: Instruction) -> None:
    x = flush(b.floating(i.operands[1])).astype(np.float64)
    b.set(i.operands[0], flush(i.choose(FUNCTIONS)(x).astype(np.float32)))


@opcodes.add("HFMA2")
def half_constant(b: Block, i: Instruction) -> None:
    if not (i.operands[1].is_zero and i.operands[2].is_zero):
        raise ToolError("expected a constant, 0 * 0 + (high, low)")
    high, low = (np.array([float(operand.text)], np.float16).view(np.uint16) for operand in i.operands[3:5])
    b.set(i.operands[0], high.astype(np.int64) << 16 | low)


def integer_type(i: Instruction) -> np.dtype[Any]:
    name = next((option for option in i.options if re.fullmatch(r"[US](8|16|32|64)", option)), "S32")
    return np.dtype(f"{'u' if name[0] == 'U' else ''}int{name[1:]}")


@opcodes.add("F2I", "FRND")
def to_integer(b: Block, i: Instruction) -> None:
    ways = {"TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}
    x = b.floating(i.operands[1], np.float64 if i.has("F64") else np.float32)
    whole = (i.choose(ways) if i.has(*ways) else np.rint)(x)
    if i.name == "FRND":
        return b.set(i.operands[0], whole)
    kind = integer_type(i)
    limits = np.iinfo(kind)
    numbers = [int(max(limits.min, min(limits.max, v))) if v == v else 0 for v in whole.tolist()]
    result = np.array(numbers, kind).astype(np.int64)
    return b.set64(i.operands[0], result) if kind.itemsize == 8 else b.set(i.operands[0], result)


@opcodes.add("I2F", "I2FP")
def from_integer(b: Block, i: Instruction) -> None:
    kind = integer_type(i)
    bits = np.ascontiguousarray(b.i64(i.operands[1]) if kind.itemsize == 8 else b.u32(i.operands[1]))
    exact = bits.astype(kind).astype(np.longdouble)
    return b.set64(i.operands[0], exact.astype(float)) if i.has("F64") else b.set(i.operands[0], to_float32(i, exact))


@opcodes.add("F2F")
def convert(b: Block, i: Instruction) -> None:
    if i.options[:2] == ["F64", "F32"]:
        return b.set64(i.operands[0], b.floating(i.operands[1]).astype(np.float64))
    i.expect("F64")
    return b.set(i.operands[0], to_float32(i, b.floating(i.operands[1], np.float64)))


@opcodes.add("DADD", "DMUL")
def double_arithmetic(b: Block, i: Instruction) -> None:
    x, y = (b.floating(operand, np.float64) for operand in i.operands[1:3])
    b.set64(i.operands[0], x + y if i.name == "DADD" else x * y)
