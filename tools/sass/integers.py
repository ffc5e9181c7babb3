"""Instructions that compute with integers and predicates."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from sass.assembly import Instruction, Operand
from sass.block import WORD, Block, Opcodes, Values, signed

opcodes = Opcodes()


def add_up(b: Block, i: Instruction, numbers: list[Values], operands: list[Operand]) -> None:
    """Writes the sum of numbers and operands, and its carries. Minus x is ~x + 1, whose carry means no borrow."""
    out, own, carries = i.parts
    total = sum(numbers, np.zeros(b.threads, np.int64))
    for operand in operands:
        total += (b.bits(operand) ^ WORD) + 1 if operand.sign == "-" else b.u32(operand)
    for carry in carries if i.has("X") else []:
        total += b.predicate(carry)
    for j, predicate in enumerate(out):
        b.set_predicate(predicate, total >> 32 > j)
    b.set(own[0], total)


@opcodes.add("IADD3", "UIADD3", "VIADD")
def add(b: Block, i: Instruction) -> None:
    add_up(b, i, [], i.parts[1][1:])


@opcodes.add("LEA", "ULEA")
def add_scaled(b: Block, i: Instruction) -> None:
    _, x, y, *high, by = i.parts[1]
    low, shift = b.u32(x), b.number(by)
    if i.has("HI"):
        upper = signed(low) >> 31 if i.has("SX32") else b.u32(high[0])
        return add_up(b, i, [(low | upper << 32) << shift >> 32 & WORD], [y])
    return add_up(b, i, [low << shift & WORD], [y])


@opcodes.add("IMAD", "UIMAD")
def multiply_add(b: Block, i: Instruction) -> None:
    out, (target, x, y, z), carries = i.parts
    as_signed = i.has("WIDE", "HI") and not i.has("U32")
    product = b.i32(x) * b.i32(y) if as_signed else b.u32(x) * b.u32(y)
    total = product + (b.i64(z) if i.has("WIDE", "HI") else b.u32(z))
    if out:
        b.set_predicate(out[0], total.view(np.uint64) < product.view(np.uint64))
    if i.has("X"):
        total = total + b.predicate(carries[0])
    return b.set64(target, total) if i.has("WIDE") else b.set(target, total >> 32 if i.has("HI") else total)


def lookup(table: int, x: Values, y: Values, z: Values, ones: Any) -> Values:
    """Each bit of the result is bit 4 x + 2 y + z of a table of eight."""
    result = x & ~x
    for j in range(8):
        if table >> j & 1:
            result = result | ((x if j & 4 else x ^ ones) & (y if j & 2 else y ^ ones) & (z if j & 1 else z ^ ones))
    return result


@opcodes.add("LOP3", "ULOP3")
def logic(b: Block, i: Instruction) -> None:
    out, (target, x, y, z, table), carries = i.parts
    result = lookup(b.number(table), b.u32(x), b.u32(y), b.u32(z), WORD)
    for predicate in out:
        b.set_predicate(predicate, (result != 0) | b.predicate(carries[0]))
    b.set(target, result)


@opcodes.add("PLOP3", "UPLOP3")
def predicate_logic(b: Block, i: Instruction) -> None:
    x, y, z = (b.predicate(operand).copy() for operand in i.operands[2:5])
    for target, table in zip(i.operands[:2], i.operands[5:], strict=True):
        b.set_predicate(target, lookup(b.number(table), x, y, z, True))


@opcodes.add("SHF", "USHF")
def shift(b: Block, i: Instruction) -> None:
    low, by, high = (b.u32(operand) for operand in i.operands[1:])
    most = 63 if i.has("U64", "S64") else 32
    by = by & (most | 31) if i.has("W") else np.minimum(by, most)
    if i.has("L"):
        result = (low | high << 32) << by >> 32 if i.has("HI") else low << by
    elif i.has("HI"):
        result = (signed(high) if i.has("S32", "S64") else high) >> by
    else:
        upper = signed(high) if i.has("S64") else high
        result = np.where(by < 32, (low | high << 32) >> np.minimum(by, 31), upper >> np.maximum(by - 32, 0))
    b.set(i.operands[0], result)


@opcodes.add("PRMT", "UPRMT")
def permute(b: Block, i: Instruction) -> None:
    low, choice, high = (b.u32(operand) for operand in i.operands[1:4])
    result = np.zeros(b.threads, np.int64)
    for j in range(4):
        code = choice >> 4 * j & 15
        byte = (low | high << 32) >> 8 * (code & 7) & 255
        result |= np.where(code & 8, 255 * (byte >> 7), byte) << 8 * j
    b.set(i.operands[0], result)


@opcodes.add("IABS")
def absolute(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], np.abs(b.i32(i.operands[1])))


@opcodes.add("IMNMX", "VIMNMX", "UIMNMX")
def extreme(b: Block, i: Instruction) -> None:
    x, y = (b.u32(operand) if i.has("U32") else b.i32(operand) for operand in i.operands[1:3])
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), np.minimum(x, y), np.maximum(x, y)))


COMPARISONS = {name: getattr(operator, name.lower()) for name in ("LT", "LE", "EQ", "NE", "GE", "GT")}
COMBINATIONS = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def set_comparison(b: Block, i: Instruction, found: Values) -> None:
    """Writes the outcome of a comparison, and its opposite, each combined with another predicate."""
    combine, other = i.choose(COMBINATIONS), b.predicate(i.operands[4]).copy()
    b.set_predicate(i.operands[0], combine(found, other))
    b.set_predicate(i.operands[1], combine(~found, other))


@opcodes.add("ISETP", "UISETP")
def compare(b: Block, i: Instruction) -> None:
    x, y = (b.u32(operand) if i.has("U32") else b.i32(operand) for operand in i.operands[2:4])
    found = i.choose(COMPARISONS)(x, y)
    if i.has("EX"):  # it compares upper halves; the last predicate is the outcome for the lower halves
        lower = b.predicate(i.operands[5])
        found = found | lower if i.has("NE") else np.where(x == y, lower, found)
    set_comparison(b, i, found)
