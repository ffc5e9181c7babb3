"""Instructions that move data: between registers, predicates and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sass.assembly import Instruction, Operand
from sass.block import LOCAL_BYTES, WORD, Block, Memory, Opcodes, Values

SHARED_WINDOW = 1 << 24  # the upper half of generic addresses of shared memory; no process has memory there

opcodes = Opcodes()


@opcodes.add("MOV", "UMOV", "R2UR")
def move(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], b.u32(i.operands[-1]))


@opcodes.add("SEL", "USEL")
def select(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), b.u32(i.operands[1]), b.u32(i.operands[2])))


SPECIAL: dict[str, Callable[[Block], Any]] = {
    "SR_TID.X": lambda b: np.arange(b.threads),
    "SR_LANEID": lambda b: np.arange(b.threads) % 32,
    "SR_SWINHI": lambda b: SHARED_WINDOW,
} | dict.fromkeys(["SRZ", "SR_CgaCtaId", "SR_CTAID.X", "SR_TID.Y", "SR_TID.Z"], lambda b: 0)


@opcodes.add("S2R", "S2UR", "CS2R")
def special_register(b: Block, i: Instruction) -> None:
    value = np.zeros(b.threads, np.int64) + SPECIAL[i.operands[1].text](b)
    b.set64(i.operands[0], value) if i.name == "CS2R" and not i.has("32") else b.set(i.operands[0], value)


SIZES = {"U8": (1, "u1"), "S8": (1, "i1"), "U16": (2, "u2"), "S16": (2, "i2"), "64": (8, "u4"), "128": (16, "u4")}


def place(b: Block, i: Instruction, operand: Operand) -> tuple[Memory, Values, int, str]:
    """The memory that a load or store uses, the addresses, and the size and type of a number."""
    size, kind = next((SIZES[option] for option in i.options if option in SIZES), (4, "u4"))
    address = b.address(operand)
    if operand.kind == "constant":
        return b.banks[operand.index], address, size, kind
    space = i.name[2:]
    if not space and (address[b.on] >> 32 == SHARED_WINDOW).all():
        return b.memory["S"], address & WORD, size, kind
    own = np.arange(b.threads) * LOCAL_BYTES if space == "L" else 0
    return b.memory[space], address + own, size, kind


@opcodes.add("LD", "LDG", "LDS", "LDL", "LDC", "ULDC")
def load(b: Block, i: Instruction) -> None:
    memory, address, size, kind = place(b, i, i.operands[1])
    words = memory.load(address, size, b.on).view(kind).astype(np.int64)
    for j in range(words.shape[1]):
        b.set(i.operands[0], words[:, j], j)


@opcodes.add("ST", "STG", "STS", "STL")
def store(b: Block, i: Instruction) -> None:
    memory, address, size, _ = place(b, i, i.operands[0])
    source = i.operands[1]
    rows = [source.index + (0 if source.is_zero else j) for j in range((size + 3) // 4)]
    values = np.ascontiguousarray(b.registers[rows].T.astype(np.uint32)).view(np.uint8)
    memory.store(address, values[:, :size], b.on)


@opcodes.add("P2R")
def predicates_to_register(b: Block, i: Instruction) -> None:
    bits, mask = (b.predicates[:7] << np.arange(7)[:, None]).sum(0), b.u32(i.operands[3])
    b.set(i.operands[0], (bits & mask) | (b.u32(i.operands[2]) & ~mask))


@opcodes.add("R2P")
def register_to_predicates(b: Block, i: Instruction) -> None:
    for j in range(7):
        if b.number(i.operands[2]) >> j & 1:
            b.set_predicate(Operand("", "predicate", j), b.u32(i.operands[1]) >> j & 1 == 1)
