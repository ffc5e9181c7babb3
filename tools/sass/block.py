"""A block of threads: its registers, predicates and memory. A register is a row of integers, one for each thread."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sass.assembly import TRUE, UNIFORM_TRUE, UNIFORM_ZERO, Instruction, Operand
from sass.cubin import Kernel
from sass.toolkit import ToolError

Values = npt.NDArray[Any]  # a number for each thread of a block, or one for all

WORD = 0xFFFFFFFF
SHARED_RESERVED = 1024  # bytes that the driver keeps in front of a block's shared memory
LOCAL_BYTES = 8192  # of a thread


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


@dataclass
class Launch:
    name: str
    kernel: Kernel
    blocks: int
    threads: int
    shared_bytes: int
    arguments: list[bytes]


def signed(value: Values) -> Values:
    """32 bits as a number with a sign."""
    result: Values = (value ^ 1 << 31) - (1 << 31)
    return result


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
        self.registers = np.zeros((UNIFORM_ZERO + 1, self.threads), np.int64)
        self.predicates = np.zeros((UNIFORM_TRUE + 1, self.threads), bool)
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
        for (offset, size), data in zip(kernel.parameters, self.launch.arguments, strict=True):
            bank[kernel.first_parameter + offset :][:size] = np.frombuffer(data, np.uint8)
        return bank

    # Operands

    def bits(self, operand: Operand, size: int = 4) -> Values:
        """An integer of 32 or 64 bits, whose sign is left out. An integer of 64 bits may be negative."""
        if operand.kind == "register":
            low: Values = self.registers[operand.index]
            return low if size == 4 or operand.is_zero else low | self.registers[operand.index + 1] << 32
        if operand.kind == "constant":
            everyone = np.ones(self.threads, bool)
            words = self.banks[operand.index].load(self.address(operand), size, everyone)
            value: Values = words.view(np.uint32 if size == 4 else np.int64)[:, 0].astype(np.int64)
            return value
        return np.array([self.number(operand) & (WORD if size == 4 else -1)])

    def number(self, operand: Operand) -> int:
        """An integer that stands in the instruction."""
        if operand.kind != "number":
            raise ToolError(f"{operand.text}: expected a number")
        return int(operand.text, 0)

    def u32(self, operand: Operand) -> Values:
        value = self.bits(operand)
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


Handler = Callable[[Block, Instruction], Any]


class Opcodes(dict[str, Handler]):
    """What instructions do, by their names."""

    def add(self, *names: str) -> Callable[[Handler], Handler]:
        def added(handler: Handler) -> Handler:
            self.update(dict.fromkeys(names, handler))
            return handler

        return added
