"""Which instruction each thread executes next: the loop that runs a block, and instructions that steer threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from sass import floats, integers, moves
from sass.assembly import Instruction
from sass.block import Block, Opcodes, Values
from sass.toolkit import ToolError

LEAVES = object()  # returned by instructions after which threads may be elsewhere
opcodes = Opcodes(moves.opcodes | integers.opcodes | floats.opcodes)


@opcodes.add("BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD", "BREAK", "BMOV", "NANOSLEEP", "MEMBAR", "DEPBAR", "CCTL")
def nothing(b: Block, i: Instruction) -> None:
    pass


@opcodes.add("BRA", "CALL")
def branch(b: Block, i: Instruction) -> Any:
    if i.has("DIV", "CONV"):  # taken where a warp has diverged, which never happens here
        return None
    if i.name == "CALL":
        i.expect("REL")  # the caller has put the way back into a register
    taken = b.on
    for operand in i.operands[:-1]:
        taken = taken & b.predicate(operand)
    b.next[taken] = b.program.labels[i.operands[-1].text]
    return LEAVES


@opcodes.add("RET")
def come_back(b: Block, i: Instruction) -> Any:
    i.expect("REL")
    b.next[b.on] = b.i64(i.operands[0])[b.on] // 16 + b.program.labels[i.operands[1].text]
    return LEAVES


@opcodes.add("BRX", "BRXU")
def jump(b: Block, i: Instruction) -> Any:
    target, offset = i.operands
    b.next[b.on] = (b.i64(target)[b.on] + b.number(offset) + i.address) // 16 + 1
    return LEAVES


@opcodes.add("EXIT")
def leave(b: Block, i: Instruction) -> Any:
    b.alive &= ~b.on
    return LEAVES


@opcodes.add("BAR")
def barrier(b: Block, i: Instruction) -> Any:
    if not i.has("SYNC"):
        i.expect("AND")
        b.votes[b.on] = b.predicate(i.operands[-1])[b.on]
    b.waiting |= b.on
    return LEAVES


@opcodes.add("B2R")
def outcome_of_vote(b: Block, i: Instruction) -> None:
    i.expect("RESULT")
    b.set_predicate(i.operands[-1], np.full(b.threads, b.all_agreed))


@opcodes.add("VOTEU")
def vote_of_warp(b: Block, i: Instruction) -> None:
    i.expect("ANY")
    votes = b.predicate(i.operands[-1]) & b.on
    by_warp = np.logical_or.reduceat(votes, np.arange(0, b.threads, 32))
    b.set_predicate(i.operands[0], np.repeat(by_warp, 32)[: b.threads])


def run_block(b: Block) -> None:
    """Runs a block to its end. Of threads that are at different instructions, those at the first of these run."""
    with np.errstate(all="ignore"):
        while b.alive.any():
            ready = b.alive & ~b.waiting
            if not ready.any():
                b.all_agreed = bool(b.votes.all())
                b.waiting[:], b.votes[:] = False, True
                continue
            at = int(b.next[ready].min())
            group = ready & (b.next == at)
            others = b.next[ready & ~group]
            run_group(b, at, group, int(others.min()) if len(others) else len(b.program.instructions))


def run_group(b: Block, at: int, group: Values, limit: int) -> None:
    """Runs threads until some may take another path, or they meet others at `limit`."""
    warps = np.add.reduceat(group, np.arange(0, b.threads, 32)) > 0
    counts = group.sum(), warps.sum()
    while at < limit:
        instruction = b.program.instructions[at]
        b.issued[:, at] += counts
        b.on = group if instruction.guard is None else group & b.predicate(instruction.guard)
        at += 1
        b.next[group] = at
        try:
            if instruction.name not in opcodes:
                raise ToolError("this instruction is unknown; add it to the opcodes of this tool")
            if opcodes[instruction.name](b, instruction) is LEAVES:
                return
        except (ToolError, ValueError, IndexError, KeyError) as e:
            raise ToolError(f"{b.launch.name} at {instruction.address:#x}, {instruction.opcode}: {e}") from e
