"""Count the instructions that the compiled CUDA kernels execute, and check their results, without a GPU.

    python tools/gpu_instructions.py [--source DIR] [--arch sm_90] [--nvdisasm PATH] [--cubin FILE] [--markdown FILE]

The tool compiles `cuda/kernels.cu` with nvcc, disassembles it with nvdisasm, and runs a block of threads in an
interpreter. The project's own host code makes the launch: in place of the CUDA runtime it meets one that hands over the
kernel, the size of the block and the bytes of the arguments. So a new member of an argument needs no change here. The
results are compared with those of mixflow on the CPU in float64.

An instruction counts when a thread issues it. So do instructions whose predicate is false, and those that only steer
threads (BSSY, BSYNC, NOP). Counts are averages over the threads of a block, for float32, the normal base and ordinary
values: components that overlap, and elements among them. The lines of the table:

- a component: what another component of an element costs, (count at K = 16 - count at K = 8) / 8. For the shared
  kernels this is taken between blocks of 8 and of 4 elements a thread, which leaves out the preparation of the
  components. In `backward shared` a thread is first an element and then a component, so its line holds both passes;
- of these MUFU, memory: special functions of the hardware; loads and stores of global, shared and local memory;
- an element: what is left at no components;
- whole: all instructions of a block at K = 8, the preparation too, for an element (with 4 elements a thread where a
  set is shared);
- warp: the same as the warp issues it. It is larger where the threads of a warp take different paths;
- registers, shared bytes: of a thread, and of the block at K = 8; spills: loads and stores of local memory in the code.

MUFU functions are computed in float64 and rounded: the hardware has errors of an ULP or two. FCHK, which chooses the
slow path of a division, is approximate. Instructions across the threads of a warp (SHFL, VOTE) are not interpreted.
"""

from __future__ import annotations

import argparse
import bisect
import ctypes
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]  # a number for each thread of a block, or one for all

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("gaussian", "logistic")

# A CUDA runtime that passes launches on instead of making them.
RUNTIME = r"""
#include <cstddef>
#include <map>
struct Extent { unsigned x, y, z; };
using OnLaunch = void (*)(const char* kernel, unsigned blocks, unsigned threads, size_t shared_bytes, void** arguments);
OnLaunch on_launch;
static std::map<const void*, const char*>& kernels() {
  static std::map<const void*, const char*> names;
  return names;
}
extern "C" {
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, void*, void*, int*) {
  kernels()[stub] = name;
}
int cudaLaunchKernel(const void* stub, Extent grid, Extent block, void** arguments, size_t bytes, void*) {
  on_launch(kernels().at(stub), grid.x, block.x, bytes, arguments);
  return 0;
}
int cudaFuncSetAttribute(const void*, int, int) { return 0; }
int cudaGetDevice(int* device) { return *device = 0; }
int cudaSetDevice(int) { return 0; }
int cudaGetLastError() { return 0; }
const char* cudaGetErrorString(int) { return "error"; }
}
"""

# The launches that the project's host code makes of an op on `inner` elements for each of `outer` parameter sets.
RECORDER = r"""
#include "cuda/kernels.cu"
#include "plan.cpp"
#include <cstring>

using OnLaunch = void (*)(const char* kernel, unsigned blocks, unsigned threads, size_t shared_bytes, void** arguments);
extern OnLaunch on_launch;

template <class... Sizes>
static mixflow::Array array(void* data, Sizes... sizes) {
  mixflow::Array array;
  array.data = data;
  array.shape.count = array.stride.count = sizeof...(sizes);
  int64_t size[] = {static_cast<int64_t>(sizes)...}, stride = 1;
  for (int i = sizeof...(sizes) - 1; i >= 0; stride *= size[i--]) {
    array.shape.value[i] = size[i];
    array.stride.value[i] = stride;
  }
  return array;
}
template <class... Names>
static int place(const char* wanted, Names... names) {
  int i = 0, found = -1;
  ((std::strcmp(names, wanted) == 0 ? found = i++ : i++), ...);
  return found;
}

// Returns an error's text, or null.
extern "C" const char* record(const char* family, bool backward, int64_t outer, int64_t inner, int components,
                              void* const* data, size_t workspace_bytes, OnLaunch callback) {
  using namespace mixflow;
  static std::string error;
  Call call{};
  call.op = backward ? Op::backward : Op::forward;
  call.dtype = Dtype::float32;
#define MIXFLOW_NAME(NAME) , MIXFLOW_ARCH::NAME::name
  call.family = place(family MIXFLOW_FAMILIES(MIXFLOW_NAME));
  call.base = place("normal" MIXFLOW_BASES(MIXFLOW_NAME));
  call.on_gpu = true;
  call.input = array(data[0], outer, inner);
  call.logits = array(data[1], outer, 1, components);
  call.loc = array(data[2], outer, 1, components);
  call.log_scale = array(data[3], outer, 1, components);
  call.output = array(data[4], outer, inner);
  if (backward) {
    call.grad_value = array(data[6], outer, inner);
    call.grad_ladj = array(data[7], outer, inner);
    call.grad_logits = array(data[8], outer, 1, components);
    call.grad_loc = array(data[9], outer, 1, components);
    call.grad_log_scale = array(data[10], outer, 1, components);
  } else {
    call.ladj = array(data[5], outer, inner);
  }
  on_launch = callback;
  try {
    Problem problem = make_problem(call);
    if (cuda_workspace(problem) > workspace_bytes) throw std::runtime_error("workspace: too small");
    run_on_cuda(problem, 0, nullptr, data[11]);
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
  return nullptr;
}
"""


class ToolError(Exception):
    """An error that the user can do something about."""


# ---------------------------------------------------------------------------------------------------------------------
# The compiled kernels: an ELF file (cubin), and the text of nvdisasm.

ZERO, UNIFORM_ZERO, SINK = 255, 319, 320  # rows of Block.registers: RZ, URZ (uniform ones follow the others), nowhere
TRUE, UNIFORM_TRUE = 7, 15  # rows of Block.predicates: PT, UPT
WORD = 0xFFFFFFFF


@dataclass
class Operand:
    """An operand as nvdisasm writes it: -|R3|, !P0, 0x10, 1.5, c[0x0][R2+0x210], [R4.64+0x10], `(.L_x_1)."""

    text: str
    kind: str  # register, predicate, number, constant, memory, label or other
    index: int = 0  # of the register, the predicate or the constant bank
    sign: str = ""  # any of - ~ ! |
    terms: list[tuple[int, str, int]] = field(default_factory=list)  # of an address: register, its kind, its factor
    offset: int = 0

    @property
    def is_zero(self) -> bool:
        return self.index in (ZERO, UNIFORM_ZERO)


def register_index(text: str) -> int:
    if text.endswith("RZ"):
        return UNIFORM_ZERO if text == "URZ" else ZERO
    return int(text[2:]) + ZERO + 1 if text[0] == "U" else int(text[1:])


def address_terms(text: str) -> tuple[list[tuple[int, str, int]], int]:
    """The registers and the offset of an address such as R4.64+UR6+0x10."""
    terms, offset = [], 0
    for part in filter(None, text.split("+")):
        if match := re.fullmatch(r"(U?R(?:\d+|Z))(?:\.(64|U32))?(?:\.X(\d+))?", part):
            terms.append((register_index(match[1]), match[2] or "", int(match[3] or 1)))
        else:
            offset += int(part, 16)
    return terms, offset


def parse_operand(text: str) -> Operand:
    text = text.strip().replace(".reuse", "")
    match = re.match(r"[~!|]|-(?=[|URc])", text)
    if match:
        operand = parse_operand(text[1:].removesuffix("|"))
        operand.sign += match[0]
        return operand
    if re.fullmatch(r"U?R(\d+|Z)(\.64)?|SRZ", text):
        return Operand(text, "register", register_index(text.removesuffix(".64")))
    if match := re.fullmatch(r"(U?)P(\d|T)", text):
        return Operand(text, "predicate", (8 if match[1] else 0) + (TRUE if match[2] == "T" else int(match[2])))
    if match := re.fullmatch(r"c\[(0x[0-9a-f]+)\]\[([^]]*)\]", text):
        return Operand(text, "constant", int(match[1], 16), "", *address_terms(match[2]))
    if match := re.fullmatch(r"(?:desc\[[^]]*\])?\[([^]]*)\]", text):
        return Operand(text, "memory", 0, "", *address_terms(match[1]))
    if match := re.fullmatch(r"`\((.*)\)", text):
        return Operand(match[1], "label")
    is_number = re.fullmatch(r"[+-]?(0x[0-9a-f]+|[\d.]+(e[+-]?\d+)?|INF|[QS]NAN)", text)
    return Operand(text, "number" if is_number else "other")


@dataclass
class Instruction:
    address: int
    guard: Operand | None
    opcode: str
    operands: list[Operand]

    def __post_init__(self) -> None:
        self.name, *options = self.opcode.split(".")
        self.options = dict.fromkeys(options)  # in their order

    @cached_property
    def run(self) -> Callable[[Block, Instruction], Any]:
        if self.name not in OPCODES:
            raise ToolError(f"{self.opcode}: this instruction is unknown; add it to the opcodes of this tool")
        return OPCODES[self.name]

    def has(self, *options: str) -> bool:
        return any(option in self.options for option in options)

    def choose(self, table: dict[str, Any]) -> Any:
        """The entry of a table that an option names."""
        for option in self.options:
            if option in table:
                return table[option]
        raise ToolError(f"{self.opcode}: expected one of {', '.join(table)} in its name")

    @property
    def parts(self) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """Predicates that are written, the other operands (the result first), and predicates that are read."""
        own = [j for j, operand in enumerate(self.operands) if operand.kind != "predicate"]
        written = [operand for operand in self.operands[: own[-1]] if operand.kind == "predicate"]
        return written, [self.operands[j] for j in own], self.operands[own[-1] + 1 :]


@dataclass
class Program:
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # indices of instructions


LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][\w.]*)\s*(.*?)\s*(\(\*.*)?;?\s*(/\*.*)?$")


def parse_programs(text: str) -> dict[str, Program]:
    """The functions in the text of nvdisasm, by their names."""
    programs: dict[str, Program] = {}
    program = Program()
    for line in text.splitlines():
        if match := LINE.match(line):
            operands = [parse_operand(part) for part in re.split(r",|\s+(?=`|-0x)", match[4]) if part.strip()]
            guard = parse_operand(match[2]) if match[2] else None
            program.instructions.append(Instruction(int(match[1], 16), guard, match[3], operands))
        elif match := re.match(r"\s*\.section\s+\.text\.([^,]+),", line):
            program = programs[plain_name(match[1])] = Program()
        elif match := re.match(r"([\w.$]+):\s*$", line):
            program.labels[match[1]] = len(program.instructions)
    return programs


def plain_name(name: str) -> str:
    """A mangled name without that of the file, which names differ by between two compilations."""
    return re.sub(r"\d+_GLOBAL__N__\w+?_cu_[0-9a-f]{8}", "", name)


@dataclass
class Kernel:
    symbol: int
    registers: int
    program: Callable[[], Program]
    first_parameter: int = 0  # where the parameters begin in constant bank 0
    parameters: dict[int, tuple[int, int]] = field(default_factory=dict)  # offset and size, by their order
    banks: dict[int, bytes] = field(default_factory=dict)  # the other constant banks


class Cubin:
    """The kernels of a cubin, by their plain names."""

    def __init__(self, path: Path, nvdisasm: Path):
        self.path, self.nvdisasm, self.data = path, nvdisasm, path.read_bytes()
        if self.data[:4] != b"\x7fELF":
            raise ToolError(f"--cubin: expected an ELF file with kernels; got {path}")
        (start,), (count, names) = struct.unpack_from("<Q", self.data, 40), struct.unpack_from("<HH", self.data, 60)
        headers = [struct.unpack_from("<IIQQQQIIQQ", self.data, start + 64 * i) for i in range(count)]
        self.sections = {self._text(headers[names][4] + header[0]): header[4:6] for header in headers}
        attributes = self._attributes(".nv.info")
        registers = dict(struct.unpack("<II", payload) for attribute, payload in attributes if attribute == 0x2F)
        (symbols, size), (texts, _) = self.sections[".symtab"], self.sections[".strtab"]
        self.kernels: dict[str, Kernel] = {}
        for i in range(size // 24):
            name = self._text(texts + struct.unpack_from("<I", self.data, symbols + 24 * i)[0])
            if f".nv.info.{name}" in self.sections and i in registers:
                self.kernels[plain_name(name)] = self._kernel(name, i, registers[i])

    def _text(self, place: int) -> str:
        return self.data[place : self.data.index(b"\0", place)].decode()

    def _attributes(self, section: str) -> Iterator[tuple[int, bytes]]:
        place, size = self.sections[section]
        end = place + size
        while place < end:
            form, attribute, size = struct.unpack_from("<BBH", self.data, place)
            place += 4
            if form == 4:  # the others hold a value in place of the size
                yield attribute, self.data[place : place + size]
                place += size

    def _kernel(self, name: str, symbol: int, registers: int) -> Kernel:
        kernel = Kernel(symbol, registers, lambda: self._program(plain_name(name), symbol))
        for attribute, payload in self._attributes(f".nv.info.{name}"):
            if attribute == 0x17:  # KPARAM_INFO
                ordinal, offset, size = struct.unpack_from("<HHI", payload, 4)
                kernel.parameters[ordinal] = offset, size >> 18
            if attribute == 0x0A:  # PARAM_CBANK
                kernel.first_parameter = struct.unpack_from("<H", payload, 4)[0]
        for bank in range(1, 5):
            place, size = self.sections.get(f".nv.constant{bank}.{name}", (0, 0))
            kernel.banks[bank] = self.data[place : place + size]
        return kernel

    def _program(self, name: str, symbol: int) -> Program:
        command = [str(self.nvdisasm), "-c", "-fun", str(symbol), str(self.path)]
        return parse_programs(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[name]


# ---------------------------------------------------------------------------------------------------------------------
# The interpreter. A register is a row of numpy integers, one for each thread of the block. Of threads that are at
# different instructions, those at the first of these run until they meet the others.


class Memory:
    """Bytes at addresses, which all threads read and write at once."""

    def __init__(self, name: str, regions: dict[int, Values]):
        self.name, self.starts, self.regions = name, sorted(regions), regions

    def _places(self, addresses: Values, size: int, on: Values) -> Iterator[tuple[Values, Values, Values]]:
        """The regions that the threads in `on` use: their bytes, the threads, and the places of the threads' bytes."""
        if (addresses[on] % size).any():
            raise ToolError(f"{self.name} memory: an address is not a multiple of {size}")
        while on.any():
            address = int(addresses[on.argmax()])
            start = self.starts[max(bisect.bisect_right(self.starts, address) - 1, 0)]
            data, offsets = self.regions[start], addresses - start
            inside = on & (offsets >= 0) & (offsets + size <= len(data))
            if not inside.any():
                raise ToolError(f"{self.name} memory: address {address:#x} is in none of the kernel's operands")
            yield data, inside, offsets[inside][:, None] + np.arange(size)
            on = on & ~inside

    def load(self, addresses: Values, size: int, on: Values) -> Values:
        result = np.zeros((len(addresses), size), np.uint8)
        for data, inside, places in self._places(addresses, size, on):
            result[inside] = data[places]
        return result

    def store(self, addresses: Values, values: Values, on: Values) -> None:
        for data, inside, places in self._places(addresses, values.shape[1], on):
            data[places] = values[inside]


SHARED_WINDOW = 1 << 24  # the upper half of the generic addresses of shared memory: in no process an address
SHARED_RESERVED = 1024  # bytes that the driver keeps in front of a block's shared memory
LOCAL_BYTES = 8192  # of a thread


@dataclass
class Launch:
    name: str
    kernel: Kernel
    blocks: int
    threads: int
    shared_bytes: int
    arguments: list[bytes]


class Block:
    """One block of threads, and how often each instruction was issued."""

    def __init__(self, launch: Launch, memory: Memory):
        self.launch, self.program, self.threads = launch, launch.kernel.program(), launch.threads
        self.memory = {"G": memory, "": memory}
        # All ones is NaN: results show where shared memory is read before it is written.
        self.memory["S"] = Memory("shared", {0: np.full(SHARED_RESERVED + launch.shared_bytes, 0xFF, np.uint8)})
        self.memory["L"] = Memory("local", {0: np.zeros(self.threads * LOCAL_BYTES, np.uint8)})
        banks = {bank: np.frombuffer(data, np.uint8) for bank, data in launch.kernel.banks.items()}
        self.banks = {i: Memory("constant", {0: data}) for i, data in ({0: self._bank0()} | banks).items()}
        self.registers = np.zeros((SINK + 1, self.threads), np.int64)
        self.predicates = np.zeros((16, self.threads), bool)
        self.predicates[[TRUE, UNIFORM_TRUE]] = True
        self.next = np.zeros(self.threads, np.int64)  # the instruction that each thread is at
        self.alive, self.waiting = np.ones(self.threads, bool), np.zeros(self.threads, bool)
        self.votes, self.all_agreed = np.ones(self.threads, bool), True  # of the barrier ahead, and of the last one
        self.on = self.alive.copy()  # the threads that execute the present instruction
        self.issued = np.zeros((2, len(self.program.instructions)), np.int64)  # by threads, by warps

    def _bank0(self) -> Values:
        """Constant bank 0: the sizes of block and grid, the top of the stack, and the arguments."""
        kernel = self.launch.kernel
        bank = np.zeros(kernel.first_parameter + 32768, np.uint8)
        bank[:24].view(np.uint32)[:] = self.threads, 1, 1, self.launch.blocks, 1, 1
        bank[40:44].view(np.uint32)[:] = LOCAL_BYTES
        for (_, (offset, size)), data in zip(sorted(kernel.parameters.items()), self.launch.arguments, strict=True):
            bank[kernel.first_parameter + offset :][:size] = np.frombuffer(data, np.uint8)
        return bank

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while self.alive.any():
                ready = self.alive & ~self.waiting
                if not ready.any():
                    self.all_agreed = bool(self.votes.all())
                    self.waiting[:], self.votes[:] = False, True
                    continue
                at = int(self.next[ready].min())
                group = ready & (self.next == at)
                others = self.next[ready & ~group]
                self._run_group(at, group, int(others.min()) if len(others) else len(self.program.instructions))

    def _run_group(self, at: int, group: Values, limit: int) -> None:
        """Runs threads until some may take another path, or they meet others at `limit`."""
        warps = np.add.reduceat(group, np.arange(0, self.threads, 32)) > 0
        counts = group.sum(), warps.sum()
        while at < limit:
            instruction = self.program.instructions[at]
            self.issued[:, at] += counts
            self.on = group if instruction.guard is None else group & self.predicate(instruction.guard)
            at += 1
            self.next[group] = at
            try:
                if instruction.run(self, instruction) is LEAVES:
                    return
            except (ToolError, ValueError, IndexError, KeyError) as e:
                raise ToolError(f"{self.launch.name} at {instruction.address:#x}, {instruction.opcode}: {e}") from e

    # Operands

    def bits(self, operand: Operand, size: int = 4) -> Values:
        """An integer of 32 or 64 bits, without its sign. Those of 64 bits may be negative."""
        if operand.kind == "register":
            low: Values = self.registers[operand.index]
            return low if size == 4 or operand.is_zero else low | self.registers[operand.index + 1] << 32
        if operand.kind == "constant":
            everyone = np.ones(self.threads, bool)
            words = self.banks[operand.index].load(self.address(operand), size, everyone)
            value: Values = words.view(np.uint32 if size == 4 else np.int64)[:, 0].astype(np.int64)
            return value
        if operand.kind != "number":
            raise ToolError(f"{operand.text}: expected a number")
        return np.array([int(operand.text, 0) & (WORD if size == 4 else -1)])

    def u32(self, operand: Operand) -> Values:
        value: Values = self.bits(operand)
        if "~" in operand.sign:
            value = value ^ WORD
        return -value & WORD if "-" in operand.sign else value

    def i32(self, operand: Operand) -> Values:
        return signed(self.u32(operand))

    def i64(self, operand: Operand) -> Values:
        value = self.bits(operand, 8)
        return -value if "-" in operand.sign else value

    def floating(self, operand: Operand, kind: Any = np.float32) -> Values:
        """A float32 or float64 number."""
        if operand.kind == "number":
            value = np.array([float(re.sub("[QS]NAN", "nan", operand.text))], kind)
        elif kind is np.float32:
            value = self.bits(operand).astype(np.uint32).view(kind)
        else:
            value = np.ascontiguousarray(self.bits(operand, 8)).view(kind)
        value = np.abs(value) if "|" in operand.sign else value
        return -value if "-" in operand.sign else value

    def predicate(self, operand: Operand) -> Values:
        value: Values = self.predicates[operand.index]
        return ~value if "!" in operand.sign else value

    def address(self, operand: Operand) -> Values:
        result = np.full(self.threads, operand.offset)
        for index, kind, factor in operand.terms:
            result += factor * self.bits(Operand("", "register", index), 8 if kind == "64" else 4)
        return result if any(kind == "64" for _, kind, _ in operand.terms) else result & WORD

    # Results

    def set(self, operand: Operand, value: Values, word: int = 0) -> None:
        """Writes a register: the low 32 bits of an integer, or the bits of a float32 number."""
        if operand.is_zero:
            return
        value = value.view(np.uint32) if value.dtype == np.float32 else value & WORD
        np.copyto(self.registers[operand.index + word], value, where=self.on)

    def set64(self, operand: Operand, value: Values) -> None:
        value = np.ascontiguousarray(value).view(np.int64)
        self.set(operand, value)
        self.set(operand, value >> 32, 1)

    def set_predicate(self, operand: Operand, value: Values) -> None:
        if operand.index not in (TRUE, UNIFORM_TRUE):
            np.copyto(self.predicates[operand.index], value, where=self.on)


LEAVES = object()  # returned by instructions after which threads may be elsewhere
Handler = Callable[[Block, Instruction], Any]
OPCODES: dict[str, Handler] = {}


def opcode(*names: str) -> Callable[[Handler], Handler]:
    def add(handler: Handler) -> Handler:
        OPCODES.update(dict.fromkeys(names, handler))
        return handler

    return add


def expect(i: Instruction, option: str) -> None:
    if option not in i.options:
        raise ToolError(f"expected {i.name}.{option}")


# Paths of threads


@opcode("BSSY", "BSYNC", "NOP", "WARPSYNC", "YIELD", "BREAK", "BMOV", "NANOSLEEP", "MEMBAR", "DEPBAR", "CCTL")
def nothing(b: Block, i: Instruction) -> None:
    pass


@opcode("BRA", "CALL")
def branch(b: Block, i: Instruction) -> Any:
    if i.has("DIV", "CONV"):  # taken where a warp has diverged, which it has not here
        return None
    if i.name == "CALL":
        expect(i, "REL")  # the caller has put the way back into a register
    taken = b.on
    for operand in i.operands[:-1]:
        taken = taken & b.predicate(operand)
    b.next[taken] = b.program.labels[i.operands[-1].text]
    return LEAVES


@opcode("RET")
def come_back(b: Block, i: Instruction) -> Any:
    expect(i, "REL")
    b.next[b.on] = b.i64(i.operands[0])[b.on] // 16 + b.program.labels[i.operands[1].text]
    return LEAVES


@opcode("BRX", "BRXU")
def jump(b: Block, i: Instruction) -> Any:
    target, offset = i.operands
    b.next[b.on] = (b.i64(target)[b.on] + int(offset.text, 0) + i.address) // 16 + 1
    return LEAVES


@opcode("EXIT")
def leave(b: Block, i: Instruction) -> Any:
    b.alive &= ~b.on
    return LEAVES


@opcode("BAR")
def barrier(b: Block, i: Instruction) -> Any:
    if not i.has("SYNC"):
        expect(i, "AND")
        b.votes[b.on] = b.predicate(i.operands[-1])[b.on]
    b.waiting |= b.on
    return LEAVES


@opcode("B2R")
def outcome_of_vote(b: Block, i: Instruction) -> None:
    expect(i, "RESULT")
    b.set_predicate(i.operands[-1], np.full(b.threads, b.all_agreed))


# Moves and memory


@opcode("MOV", "UMOV", "R2UR")
def move(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], b.u32(i.operands[-1]))


@opcode("SEL", "USEL")
def select(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), b.u32(i.operands[1]), b.u32(i.operands[2])))


SPECIAL: dict[str, Callable[[Block], Any]] = {
    "SR_TID.X": lambda b: np.arange(b.threads),
    "SR_LANEID": lambda b: np.arange(b.threads) % 32,
    "SR_SWINHI": lambda b: SHARED_WINDOW,
} | dict.fromkeys(["SRZ", "SR_CgaCtaId", "SR_CTAID.X", "SR_TID.Y", "SR_TID.Z"], lambda b: 0)


@opcode("S2R", "S2UR", "CS2R")
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


@opcode("LD", "LDG", "LDS", "LDL", "LDC", "ULDC")
def load(b: Block, i: Instruction) -> None:
    memory, address, size, kind = place(b, i, i.operands[1])
    words = memory.load(address, size, b.on).view(kind).astype(np.int64)
    for j in range(words.shape[1]):
        b.set(i.operands[0], words[:, j], j)


@opcode("ST", "STG", "STS", "STL")
def store(b: Block, i: Instruction) -> None:
    memory, address, size, _ = place(b, i, i.operands[0])
    source = i.operands[1]
    rows = [source.index + (0 if source.is_zero else j) for j in range((size + 3) // 4)]
    values = np.ascontiguousarray(b.registers[rows].T.astype(np.uint32)).view(np.uint8)
    memory.store(address, values[:, :size], b.on)


@opcode("P2R")
def predicates_to_register(b: Block, i: Instruction) -> None:
    bits, mask = (b.predicates[:7] << np.arange(7)[:, None]).sum(0), b.u32(i.operands[3])
    b.set(i.operands[0], (bits & mask) | (b.u32(i.operands[2]) & ~mask))


@opcode("R2P")
def register_to_predicates(b: Block, i: Instruction) -> None:
    for j in range(7):
        if int(i.operands[2].text, 0) >> j & 1:
            b.set_predicate(Operand("", "predicate", j), b.u32(i.operands[1]) >> j & 1 == 1)


# Integers


def signed(value: Values) -> Values:
    result: Values = (value ^ 1 << 31) - (1 << 31)
    return result


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


@opcode("IADD3", "UIADD3", "VIADD")
def add(b: Block, i: Instruction) -> None:
    add_up(b, i, [], i.parts[1][1:])


@opcode("LEA", "ULEA")
def add_scaled(b: Block, i: Instruction) -> None:
    _, x, y, *high, by = i.parts[1]
    low, shift = b.u32(x), int(by.text, 0)
    if i.has("HI"):
        upper = signed(low) >> 31 if i.has("SX32") else b.u32(high[0])
        return add_up(b, i, [(low | upper << 32) << shift >> 32 & WORD], [y])
    return add_up(b, i, [low << shift & WORD], [y])


@opcode("IMAD", "UIMAD")
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


def lookup(table: str, x: Values, y: Values, z: Values, ones: Any) -> Values:
    """Bits from a table of eight: number 4 x + 2 y + z."""
    result = x & ~x
    for j in range(8):
        if int(table, 0) >> j & 1:
            result = result | ((x if j & 4 else x ^ ones) & (y if j & 2 else y ^ ones) & (z if j & 1 else z ^ ones))
    return result


@opcode("LOP3", "ULOP3")
def logic(b: Block, i: Instruction) -> None:
    out, (target, x, y, z, table), carries = i.parts
    result = lookup(table.text, b.u32(x), b.u32(y), b.u32(z), WORD)
    for predicate in out:
        b.set_predicate(predicate, (result != 0) | b.predicate(carries[0]))
    b.set(target, result)


@opcode("PLOP3", "UPLOP3")
def predicate_logic(b: Block, i: Instruction) -> None:
    x, y, z = (b.predicate(operand).copy() for operand in i.operands[2:5])
    for target, table in zip(i.operands[:2], i.operands[5:], strict=True):
        b.set_predicate(target, lookup(table.text, x, y, z, True))


@opcode("SHF", "USHF")
def shift(b: Block, i: Instruction) -> None:
    target, *rest = i.operands
    low, by, high = (b.u32(operand) for operand in rest)
    most = 63 if i.has("U64", "S64") else 32
    by = by & (most | 31) if i.has("W") else np.minimum(by, most)
    if i.has("L"):
        result = (low | high << 32) << by >> 32 if i.has("HI") else low << by
    elif i.has("HI"):
        result = (signed(high) if i.has("S32", "S64") else high) >> by
    else:
        upper = signed(high) if i.has("S64") else high
        result = np.where(by < 32, (low | high << 32) >> np.minimum(by, 31), upper >> np.maximum(by - 32, 0))
    b.set(target, result)


@opcode("PRMT", "UPRMT")
def permute(b: Block, i: Instruction) -> None:
    low, choice, high = (b.u32(operand) for operand in i.operands[1:4])
    result = np.zeros(b.threads, np.int64)
    for j in range(4):
        code = choice >> 4 * j & 15
        byte = (low | high << 32) >> 8 * (code & 7) & 255
        result |= np.where(code & 8, 255 * (byte >> 7), byte) << 8 * j
    b.set(i.operands[0], result)


@opcode("IABS")
def absolute(b: Block, i: Instruction) -> None:
    b.set(i.operands[0], np.abs(b.i32(i.operands[1])))


@opcode("IMNMX", "VIMNMX", "UIMNMX")
def extreme(b: Block, i: Instruction) -> None:
    x, y = (b.u32(operand) if i.has("U32") else b.i32(operand) for operand in i.operands[1:3])
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), np.minimum(x, y), np.maximum(x, y)))


COMPARISONS = {"LT": np.less, "LE": np.less_equal, "EQ": np.equal, "NE": np.not_equal} | {
    "GE": np.greater_equal,
    "GT": np.greater,
}
COMBINATIONS = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def set_comparison(b: Block, i: Instruction, found: Values) -> None:
    """Writes what was found, and its opposite, each combined with another predicate."""
    combine, other = i.choose(COMBINATIONS), b.predicate(i.operands[4]).copy()
    b.set_predicate(i.operands[0], combine(found, other))
    b.set_predicate(i.operands[1], combine(~found, other))


@opcode("ISETP", "UISETP")
def compare(b: Block, i: Instruction) -> None:
    x, y = (b.u32(operand) if i.has("U32") else b.i32(operand) for operand in i.operands[2:4])
    found = i.choose(COMPARISONS)(x, y)
    if i.has("EX"):  # of upper halves; the last predicate is that of the lower ones
        lower = b.predicate(i.operands[5])
        found = found | lower if i.has("NE") else np.where(x == y, lower, found)
    set_comparison(b, i, found)


# Floating point. Sums and products are exact in float64, or rounded there so that the rounding to float32 is right.


def flush(x: Values) -> Values:
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


@opcode("FADD", "FMUL", "FFMA")
def float_multiply_add(b: Block, i: Instruction) -> None:
    x, y, *z = (value.astype(np.float64) for value in floats(b, i, i.operands[1:]))
    exact = add_to_odd(x, y) if i.name == "FADD" else add_to_odd(x * y, z[0]) if z else x * y
    result = to_float32(i, exact)
    b.set(i.operands[0], np.clip(np.nan_to_num(result), np.float32(0), np.float32(1)) if i.has("SAT") else result)


@opcode("FMNMX")
def float_extreme(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[1:3])
    least, most = (np.minimum, np.maximum) if i.has("NAN") else (np.fmin, np.fmax)
    zeros, signs = (x == 0) & (y == 0), (np.signbit(x), np.signbit(y))  # -0 is below +0
    smaller = np.where(zeros & (signs[0] | signs[1]), np.float32(-0.0), least(x, y))
    larger = np.where(zeros & ~(signs[0] & signs[1]), np.float32(0), most(x, y))
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), smaller, larger))


@opcode("FSEL")
def float_select(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[1:3])
    b.set(i.operands[0], np.where(b.predicate(i.operands[3]), x, y))


@opcode("FSETP")
def float_compare(b: Block, i: Instruction) -> None:
    x, y = floats(b, i, i.operands[2:4])
    unordered = np.isnan(x) | np.isnan(y)
    table = {name: relation(x, y) & ~unordered for name, relation in COMPARISONS.items()}
    table |= {f"{name}U": found | unordered for name, found in table.items()}
    set_comparison(b, i, i.choose(table | {"NUM": ~unordered, "NAN": unordered}))


@opcode("FCHK")
def division_check(b: Block, i: Instruction) -> None:
    x, y = (b.bits(operand) >> 23 & 255 for operand in i.operands[1:3])
    b.set_predicate(i.operands[0], (x <= 24) | (x == 255) | (y <= 1) | (y >= 253) | (np.abs(x - y) >= 125))


FUNCTIONS = {"EX2": np.exp2, "LG2": np.log2, "RCP": np.reciprocal, "SQRT": np.sqrt, "TANH": np.tanh} | {
    "RSQ": lambda x: 1 / np.sqrt(x)
}


@opcode("MUFU")
def special_function(b: Block, i: Instruction) -> None:
    x = flush(b.floating(i.operands[1])).astype(np.float64)
    b.set(i.operands[0], flush(i.choose(FUNCTIONS)(x).astype(np.float32)))


@opcode("HFMA2")
def half_constant(b: Block, i: Instruction) -> None:
    if not (i.operands[1].is_zero and i.operands[2].is_zero):
        raise ToolError("expected a constant, 0 * 0 + (high, low)")
    high, low = (np.array([float(operand.text)], np.float16).view(np.uint16) for operand in i.operands[3:5])
    b.set(i.operands[0], high.astype(np.int64) << 16 | low)


# Conversions and float64


def integer_type(i: Instruction) -> np.dtype[Any]:
    name = next((option for option in i.options if re.fullmatch(r"[US](8|16|32|64)", option)), "S32")
    return np.dtype(f"{'u' if name[0] == 'U' else ''}int{name[1:]}")


@opcode("F2I", "FRND")
def float_to_integer(b: Block, i: Instruction) -> None:
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


@opcode("I2F", "I2FP")
def integer_to_float(b: Block, i: Instruction) -> None:
    kind = integer_type(i)
    bits = np.ascontiguousarray(b.i64(i.operands[1]) if kind.itemsize == 8 else b.u32(i.operands[1]))
    exact = bits.astype(kind).astype(np.longdouble)
    return b.set64(i.operands[0], exact.astype(float)) if i.has("F64") else b.set(i.operands[0], to_float32(i, exact))


@opcode("F2F")
def float_to_float(b: Block, i: Instruction) -> None:
    if list(i.options)[:2] == ["F64", "F32"]:
        return b.set64(i.operands[0], b.floating(i.operands[1]).astype(np.float64))
    expect(i, "F64")
    return b.set(i.operands[0], to_float32(i, b.floating(i.operands[1], np.float64)))


@opcode("DADD", "DMUL")
def double_arithmetic(b: Block, i: Instruction) -> None:
    x, y = (b.floating(operand, np.float64) for operand in i.operands[1:3])
    b.set64(i.operands[0], x + y if i.name == "DADD" else x * y)


# ---------------------------------------------------------------------------------------------------------------------
# Launches


def compile_kernels(source: Path, arch: str, folder: Path, cubin: Path | None) -> tuple[ctypes.CDLL, Path]:
    """The recorder with the project's host code, and the cubin, unless there is one."""
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin")
    if nvcc is None:
        raise ToolError("nvcc: not found on PATH or in CUDA_HOME/bin; install the CUDA toolkit")
    if not (source / "cuda" / "kernels.cu").exists():
        raise ToolError(f"--source: expected a folder with cuda/kernels.cu; got {source}")
    (folder / "recorder.cu").write_text(RECORDER)
    (folder / "runtime.cpp").write_text(RUNTIME)
    command = [nvcc, f"-arch={arch}", "-std=c++17", "-O3", "-fmad=false", "-I", str(source.resolve()), "--keep"]
    command += ["-shared", "-cudart", "none", "-Xcompiler", "-fPIC", "-Xlinker", "-Bsymbolic", "-o", "recorder.so"]
    if cubin is not None:
        command += ["-Xptxas", "-O0"]
    result = subprocess.run([*command, "recorder.cu", "runtime.cpp"], cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        raise ToolError(f"nvcc failed:\n{result.stderr.strip()}")
    return ctypes.CDLL(str(folder / "recorder.so"), mode=os.RTLD_LAZY), cubin or folder / f"recorder.{arch}.cubin"


OnLaunch = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p)

# The operands of a call, in the order of `record`, with the spread of their values; the others are results.
ELEMENTS = {"input": 1.0, "output": None, "ladj": None, "grad_value": 1.0, "grad_ladj": 1.0}
PARAMETERS = {"logits": 1.0, "loc": 1.0, "log_scale": 0.5}
OPERANDS = ("input", *PARAMETERS, "output", "ladj", "grad_value", "grad_ladj", *(f"grad_{name}" for name in PARAMETERS))
FILLED = 256  # parameter sets with values: more than one block works on


@dataclass
class Case:
    """A call of the op on `inner` elements for each of `outer` parameter sets."""

    family: str
    backward: bool
    outer: int
    inner: int
    components: int

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.data: dict[str, Values] = {}
        for name in OPERANDS:
            spread = (ELEMENTS | PARAMETERS).get(name)
            shape = self.outer, self.inner if name in ELEMENTS else self.components
            self.data[name] = np.full(shape, np.nan if spread is None else 0, np.float32)
            if spread is not None:
                self.data[name][:FILLED] = rng.normal(0, spread, self.data[name][:FILLED].shape)
        self.data["workspace"] = np.full(2**20, np.nan)

    @property
    def done(self) -> Values:
        """The elements that have results."""
        return np.isfinite(self.data["output"])

    def error(self) -> float:
        """The largest difference from mixflow on the CPU; relative where a result is above one."""
        import torch

        import mixflow

        sets, done = self.done.any(1), torch.tensor(self.done[self.done.any(1)])
        data = {name: torch.tensor(self.data[name][sets], dtype=torch.float64) for name in OPERANDS}
        x, *parameters = (data[name].requires_grad_() for name in ("input", *PARAMETERS))
        z, ladj = mixflow.cdf_transform(x, *(p[:, None] for p in parameters), family=self.family, base="normal")
        expected = {"output": z, "ladj": ladj}
        if self.backward:
            loss = (z * data["grad_value"] + ladj * data["grad_ladj"])[done].sum()
            gradients = torch.autograd.grad(loss, [x, *parameters])
            expected = dict(zip(("output", *(f"grad_{name}" for name in PARAMETERS)), gradients, strict=True))
        errors = [
            ((data[name] - exact).abs() / exact.abs().clamp(min=1))[done if name in ELEMENTS else ...].max().item()
            for name, exact in expected.items()
        ]
        return float(np.max(errors))  # NaN if there is one


class Kernels:
    """The project's kernels, as its host code launches them, in the interpreter."""

    def __init__(self, library: ctypes.CDLL, cubin: Cubin):
        self.kernels, self.record = cubin.kernels, library.record
        self.record.restype = ctypes.c_char_p

    def launches(self, case: Case) -> list[Launch]:
        found: list[Launch] = []

        def on_launch(mangled: bytes, blocks: int, threads: int, shared_bytes: int, arguments: int) -> None:
            name = plain_name(mangled.decode())
            if kernel := self.kernels.get(name):
                pointers = (ctypes.c_void_p * len(kernel.parameters)).from_address(arguments)
                sizes = [size for _, (_, size) in sorted(kernel.parameters.items())]
                data = [ctypes.string_at(pointer or 0, size) for pointer, size in zip(pointers, sizes, strict=True)]
                found.append(Launch(name, kernel, blocks, threads, shared_bytes, data))

        data = (ctypes.c_void_p * len(case.data))(*(array.ctypes.data for array in case.data.values()))
        sizes = ctypes.c_int64(case.outer), ctypes.c_int64(case.inner), case.components
        workspace = ctypes.c_size_t(case.data["workspace"].nbytes)
        error = self.record(case.family.encode(), case.backward, *sizes, data, workspace, OnLaunch(on_launch))
        if error:
            raise ToolError(error.decode())
        if not found:
            raise ToolError("--cubin: expected the kernels of --source; the kernel that it launches is not there")
        return found

    def run(self, case: Case) -> Block:
        """Runs the first block of each launch, and returns that of the first one."""
        memory = Memory("global", {a.ctypes.data: a.reshape(-1).view(np.uint8) for a in case.data.values()})
        blocks = [Block(launch, memory) for launch in self.launches(case)]
        for block in blocks:
            block.run()
        return blocks[0]


# ---------------------------------------------------------------------------------------------------------------------
# The table

MEMORY = ("LD", "LDG", "LDS", "LDL", "ST", "STG", "STS", "STL")
KINDS: dict[str, Callable[[Instruction], bool]] = {
    "all": lambda i: True,
    "MUFU": lambda i: i.name == "MUFU",
    "memory": lambda i: i.name in MEMORY,
}
SETS = 4096  # so many that the shared kernels have a block for each: then a thread has several elements
TOLERANCE = 1e-5


@dataclass
class Count:
    """What one block did."""

    block: Block
    elements: int
    error: float

    def __post_init__(self) -> None:
        threads, warps = self.block.issued
        kinds = {kind: [holds(i) for i in self.block.program.instructions] for kind, holds in KINDS.items()}
        self.issued = np.array([threads[mask].sum() for mask in kinds.values()])
        self.warps = int(32 * warps.sum())


def count(kernels: Kernels, layout: str, family: str, components: int, elements: int) -> Count:
    """Counts a block; `elements` are those of a thread, in the shared kernels."""
    direction, kind = layout.split()
    outer, inner = (FILLED, 1) if kind == "rows" else (SETS, 128 * elements)
    case = Case(family, direction == "backward", outer, inner, components)
    block = kernels.run(case)
    if f"run_{kind}" not in block.launch.name:
        raise ToolError(f"{layout}: expected a kernel run_{kind}; the host code launches {block.launch.name}")
    return Count(block, int(case.done.sum()), case.error())


def measure(kernels: Kernels, layout: str, family: str) -> tuple[dict[str, str], float]:
    """A column of the table, and the largest error."""
    few = {k: count(kernels, layout, family, k, 4) for k in (8, 16)}
    counts, cost = list(few.values()), {k: few[k].issued / few[k].elements for k in few}
    if "shared" in layout:
        many = {k: count(kernels, layout, family, k, 8) for k in (8, 16)}
        counts += many.values()
        cost = {k: (many[k].issued - few[k].issued) / (many[k].elements - few[k].elements) for k in few}
    component, whole, block = (cost[16] - cost[8]) / 8, few[8], few[8].block
    column = {
        "a component": f"{component[0]:.1f}",
        "of these MUFU": f"{component[1]:.1f}",
        "of these memory": f"{component[2]:.1f}",
        "an element": f"{cost[8][0] - 8 * component[0]:.0f}",
        "whole, K = 8": f"{whole.issued[0] / whole.elements:.0f}",
        "warp, K = 8": f"{whole.warps / whole.elements:.0f}",
        "registers": str(block.launch.kernel.registers),
        "shared bytes, K = 8": str(block.launch.shared_bytes),
        "spills": str(sum(i.name in ("LDL", "STL") for i in block.program.instructions)),
    }
    return column, max(c.error for c in counts)


def table(kernels: Kernels) -> tuple[str, float]:
    """The table in Markdown, and the largest error of all kernels."""
    lines = [f"| kernel | | {' | '.join(FAMILIES)} |", "|---|---|" + "---:|" * len(FAMILIES)]
    errors: list[float] = []
    for layout in ("forward rows", "forward shared", "backward rows", "backward shared"):
        columns, own_errors = zip(*(measure(kernels, layout, family) for family in FAMILIES), strict=True)
        lines += [f"| {layout} | {name} | {' | '.join(c[name] for c in columns)} |" for name in columns[0]]
        errors += own_errors
    return "\n".join(lines), float(np.max(errors))


def find_nvdisasm() -> Path:
    places = [
        Path(shutil.which("nvdisasm") or ""),
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/nvdisasm"),
    ]
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        places += sorted(Path(folder).glob("*/bin/nvdisasm"))
    for place in places:
        if place.is_file():
            return place
    raise ToolError("nvdisasm: not found; install it by: pip install nvidia-cuda-nvdisasm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=ROOT / "csrc", metavar="DIR", help="the folder csrc")
    parser.add_argument("--arch", default="sm_90", help="the architecture to compile for")
    parser.add_argument("--nvdisasm", type=Path, metavar="PATH", help="the disassembler")
    parser.add_argument("--cubin", type=Path, metavar="FILE", help="kernels that are compiled already, of --source")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the table, too")
    args = parser.parse_args()
    try:
        nvdisasm = args.nvdisasm or find_nvdisasm()
        with tempfile.TemporaryDirectory() as folder:
            library, cubin = compile_kernels(args.source, args.arch, Path(folder), args.cubin)
            text, error = table(Kernels(library, Cubin(cubin, nvdisasm)))
    except (ToolError, OSError) as e:
        sys.exit(f"gpu_instructions: {e}")
    print(text)
    if args.markdown:
        args.markdown.write_text(text + "\n")
    if not error < TOLERANCE:
        sys.exit(f"gpu_instructions: the results differ from those of mixflow on the CPU by {error:.2g}")
    print(f"The results agree with those of mixflow on the CPU within {error:.2g}.")


if __name__ == "__main__":
    main()
