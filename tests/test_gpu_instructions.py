"""tools/gpu_instructions.py, the interpreter of compiled CUDA kernels: instructions, paths, memory and counts."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import gpu_instructions
from sass.assembly import parse_programs
from sass.block import Block, Launch, Memory
from sass.cubin import Cubin, Kernel
from sass.launch import Kernels, compile_kernels
from sass.threads import run_block
from sass.toolkit import ToolError, compiler, disassembler


def run(code: str, registers: dict[int, int], predicates: str = "") -> Block:
    """A block of two warps after some lines of code, of which those that end in a colon are labels."""
    text, address = ["\t.section .text.k,"], 0
    for line in code.splitlines():
        text.append(line if line.endswith(":") else f"        /*{address:04x}*/  {line} ;")
        address += 0 if line.endswith(":") else 16
    program = parse_programs("\n".join(text))["k"]
    block = Block(Launch("k", Kernel(8, lambda: program), 1, 64, 256, []), Memory("global", {}))
    for index, value in registers.items():
        block.registers[index] = value
    for j, value in enumerate(predicates):
        block.predicates[j] = value == "1"
    run_block(block)
    return block


def bits(*values: float) -> list[int]:
    return np.array(values, np.float32).view(np.uint32).tolist()


ONE, HALF, THIRD, MINUS_ZERO, NAN, TINY = bits(1, 0.5, 1 / 3, -0.0, np.nan, 1e-40)
EXACT_FMA = bits(float(np.float64(np.float32(1 / 3)) * 3 - 1))[0]
M = 0xFFFFFFFF

# What is in R2, R3, R4 (P0 is true, P1 is false), and what is in R6 afterwards.
INSTRUCTIONS = {
    "FADD R6, -R2, |R3|": (ONE, bits(-0.5)[0], 0, bits(-0.5)[0]),
    "FMUL.FTZ R6, R2, 1": (TINY, 0, 0, 0),
    "FFMA R6, R2, 3, -1": (THIRD, 0, 0, EXACT_FMA),
    "FFMA R6, R2, R3, R4": (bits(1 + 2**-12)[0], bits(1 + 2**-12)[0], bits(-(2.0**-60))[0], bits(1 + 2**-11)[0]),
    "FFMA.RP R6, R2, R3, R4": (ONE, ONE, bits(2.0**-60)[0], ONE + 1),
    "FMNMX R6, R2, R3, PT": (NAN, ONE, 0, ONE),
    "FMNMX.NAN R6, R2, R3, !PT": (NAN, ONE, 0, NAN),
    "FMNMX R6, R2, RZ, PT": (MINUS_ZERO, 0, 0, MINUS_ZERO),
    "FSEL R6, R2, +INF , P1": (ONE, 0, 0, bits(np.inf)[0]),
    "MUFU.RCP R6, -R2": (HALF, 0, 0, bits(-2)[0]),
    "MUFU.EX2 R6, R2": (bits(-3)[0], 0, 0, bits(0.125)[0]),
    "HFMA2.MMA R6, -RZ, RZ, 1.875, 0": (0, 0, 0, ONE),
    "IADD3 R6, R2, -R3, 0x10": (5, 7, 0, 14),
    "VIADD R6, R2, -0x1": (0, 0, 0, M),
    "IMAD.HI.U32 R6, R2, R3, RZ": (1 << 31, 6, 0, 3),
    "IMAD R6, R2, R3, -R4": (M, 3, 1, M - 3),
    "LEA R6, R2, R3, 0x4": (3, 5, 0, 53),
    "LEA.HI R6, R2, R3, RZ, 0x1": (1 << 31, 5, 0, 6),
    "LOP3.LUT R6, R2, R3, R4, 0xf8, !PT": (0b1100, 0b0110, 0b0011, 0b1110),  # x | (y & z)
    "LOP3.LUT R6, RZ, R2, RZ, 0x33, !PT": (1, 0, 0, M - 1),
    "SHF.R.S32.HI R6, RZ, 0x1f, R2": (1 << 31, 0, 0, M),
    "SHF.L.U64.HI R6, R2, 0x2, R3": (3 << 30, 1, 0, 7),
    "SHF.R.U64 R6, R2, 0x24, R3": (0, 0x50, 0, 5),
    "PRMT R6, R2, 0x5410, R3": (0x11112222, 0x33334444, 0, 0x44442222),
    "VIMNMX R6, R2, 0x1, PT": (M, 0, 0, M),
    "SEL R6, R2, R3, !P0": (1, 2, 0, 2),
    "P2R R6, PR, RZ, 0x3": (0, 0, 0, 1),
    "F2I.TRUNC.NTZ R6, R2": (bits(-2.7)[0], 0, 0, M - 1),
    "F2I.U32.TRUNC.NTZ R6, R2": (bits(-2.7)[0], 0, 0, 0),
    "I2F.U32.RP R6, R2": (M, 0, 0, bits(2.0**32)[0]),
    "I2FP.F32.S32 R6, R2": (M, 0, 0, bits(-1)[0]),
}


@pytest.mark.parametrize("line", INSTRUCTIONS)
def test_an_instruction_computes(line: str) -> None:
    x, y, z, expected = INSTRUCTIONS[line]
    assert run(f"{line}\nEXIT", {2: x, 3: y, 4: z}, "10").registers[6].tolist() == [expected] * 64


# Values in R2, R3 and R4, R5, as for 64 bits, and the predicate P0 afterwards.
COMPARISONS = {
    "FSETP.GEU.AND P0, PT, R2, R3, PT": (NAN, ONE, 0, 0, True),
    "FSETP.GE.AND P0, PT, R2, R3, PT": (NAN, ONE, 0, 0, False),
    "FSETP.NEU.OR P0, PT, |R2|, +INF , P1": (bits(-np.inf)[0], 0, 0, 0, False),
    "ISETP.GT.AND P0, PT, R2, 0x1, PT": (M, 0, 0, 0, False),
    "ISETP.GT.U32.AND P0, PT, R2, 0x1, PT": (M, 0, 0, 0, True),
    "LOP3.LUT P0, RZ, R2, 0x4, RZ, 0xc0, !PT": (7, 0, 0, 0, True),
    "PLOP3.LUT P0, PT, PT, PT, P1, 0x40, 0x0": (0, 0, 0, 0, True),
    "ISETP.GE.U32.AND P2, PT, R2, R4, PT\nISETP.GE.AND.EX P0, PT, R3, R5, PT, P2": (1, 7, 2, 7, False),
    "ISETP.NE.U32.AND P2, PT, R2, R4, PT\nISETP.NE.AND.EX P0, PT, R3, R5, PT, P2": (1, 7, 2, 7, True),
    "IADD3 R6, P2, -R4, R2, RZ\nIADD3.X R7, P0, ~R5, R3, RZ, P2, !PT": (0, 1, 1, 0, True),
    "FCHK P0, R2, R3": (ONE, ONE, 0, 0, False),
}


@pytest.mark.parametrize("lines", COMPARISONS)
def test_a_comparison_sets_its_predicate(lines: str) -> None:
    *values, expected = COMPARISONS[lines]
    block = run(f"{lines}\nEXIT", dict(zip((2, 3, 4, 5), values, strict=True)))
    assert block.predicates[0].tolist() == [expected] * 64


def test_threads_take_their_own_paths_meet_at_a_barrier_and_are_counted() -> None:
    code = """\
S2R R2, SR_TID.X
IMAD.SHL.U32 R3, R2, 0x4, RZ
STS [R3+0x400], R2
BAR.SYNC.DEFER_BLOCKING 0x0
LOP3.LUT R3, R3, 0xf0, RZ, 0xc0, !PT
ISETP.GE.AND P0, PT, R2, 0x8, PT
@P0 BRA `(.L_x_1)
LDS.128 R4, [R3+0x400]
@!P0 IADD3 R8, R4, R7, RZ
.L_x_1:
EXIT"""
    block = run(code, {})
    first = [2 * (thread & ~3) + 3 for thread in range(8)]
    assert block.registers[8].tolist() == first + [0] * 56
    threads, warps = block.issued.tolist()
    assert threads == [64] * 7 + [8] * 2 + [64]
    assert warps == [2] * 7 + [1] * 2 + [2]


def test_a_function_returns_to_the_instruction_after_its_call() -> None:
    code = """\
k:
MOV R2, 0x20
CALL.REL.NOINC `(f)
MOV R6, R7
EXIT
f:
MOV R7, 0x5
RET.REL.NODEC R2 `(k)"""
    assert run(code, {}).registers[6].tolist() == [5] * 64


@pytest.mark.parametrize(("other", "agreed"), [("0x5", False), ("0x50", True)])
def test_all_threads_of_a_block_agree_or_one_does_not(other: str, agreed: bool) -> None:
    code = f"""\
S2R R2, SR_TID.X
ISETP.NE.AND P0, PT, R2, {other}, PT
BAR.RED.AND.DEFER_BLOCKING 0x0, P0
B2R.RESULT RZ, P1
EXIT"""
    assert run(code, {}).predicates[1].tolist() == [agreed] * 64


def test_a_vote_of_a_warp_is_its_own() -> None:
    code = """\
S2R R2, SR_TID.X
ISETP.EQ.AND P0, PT, R2, 0x21, PT
VOTEU.ANY UP0, P0
PLOP3.LUT P1, PT, PT, PT, UP0, 0x80, 0x0
EXIT"""
    assert run(code, {}).predicates[1].tolist() == [False] * 32 + [True] * 32


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("HMMA.16816.F32 R0, R2, R3, R4", "HMMA.16816.F32: this instruction is unknown"),
        ("LDS R6, [R2+0x1000]", "shared memory: address 0x1000 is in none"),
        ("LDS.64 R6, [R2+0x404]", "shared memory: an address is not a multiple of 8"),
        ("BAR.RED.OR.DEFER_BLOCKING 0x0, P0", "expected BAR.AND"),
    ],
)
def test_what_can_not_be_interpreted_is_named(line: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        run(f"{line}\nEXIT", {})


@pytest.mark.release
@pytest.mark.skipif(not (compiler() and disassembler()), reason="needs nvcc and nvdisasm")
def test_the_compiled_kernels_agree_with_the_cpu(tmp_path: Path) -> None:
    library, cubin = compile_kernels(gpu_instructions.SOURCE, "sm_90", tmp_path, None)
    kernels = Kernels(library, Cubin(cubin, Path(disassembler())))
    assert gpu_instructions.table(kernels)[1] < gpu_instructions.TOLERANCE
