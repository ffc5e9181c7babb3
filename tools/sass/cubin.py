"""The kernels of a cubin: their parameters and constants, from the ELF file, and their programs, from nvdisasm."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sass.assembly import Program, parse_programs, plain_name
from sass.toolkit import ToolError


@dataclass
class Kernel:
    registers: int
    program: Callable[[], Program]
    first_parameter: int = 0  # where the parameters begin in constant bank 0
    parameters: list[tuple[int, int]] = field(default_factory=list)  # offset and size, in their order
    banks: dict[int, bytes] = field(default_factory=dict)  # the other constant banks


# Attributes of a kernel in its section .nv.info
REGISTERS, PARAMETER, PARAMETER_BANK = 0x2F, 0x17, 0x0A


class Cubin:
    """The kernels of a cubin, by their plain names."""

    def __init__(self, path: Path, nvdisasm: Path):
        self.path, self.nvdisasm, self.data = path, nvdisasm, path.read_bytes()
        if self.data[:4] != b"\x7fELF":
            raise ToolError(f"--cubin: expected an ELF file with kernels, got {path}")
        (start,), (count, names) = struct.unpack_from("<Q", self.data, 40), struct.unpack_from("<HH", self.data, 60)
        headers = [struct.unpack_from("<IIQQQQIIQQ", self.data, start + 64 * i) for i in range(count)]
        self.sections = {self._text(headers[names][4] + header[0]): header[4:6] for header in headers}
        registers = dict(struct.unpack("<II", payload) for payload in self._attributes(".nv.info", REGISTERS))
        (symbols, size), (texts, _) = self.sections[".symtab"], self.sections[".strtab"]
        self.kernels: dict[str, Kernel] = {}
        for i in range(size // 24):
            name = self._text(texts + struct.unpack_from("<I", self.data, symbols + 24 * i)[0])
            if f".nv.info.{name}" in self.sections and i in registers:
                self.kernels[plain_name(name)] = self._kernel(name, i, registers[i])

    def _text(self, place: int) -> str:
        return self.data[place : self.data.index(b"\0", place)].decode()

    def _attributes(self, section: str, wanted: int) -> Iterator[bytes]:
        place, size = self.sections[section]
        end = place + size
        while place < end:
            form, attribute, size = struct.unpack_from("<BBH", self.data, place)
            place += 4
            if form != 4:  # a value stands in place of the size
                continue
            if attribute == wanted:
                yield self.data[place : place + size]
            place += size

    def _kernel(self, name: str, symbol: int, registers: int) -> Kernel:
        info = f".nv.info.{name}"
        kernel = Kernel(registers, lambda: self._program(plain_name(name), symbol))
        parameters = sorted(struct.unpack_from("<HHI", payload, 4) for payload in self._attributes(info, PARAMETER))
        kernel.parameters = [(offset, size >> 18) for _, offset, size in parameters]
        for payload in self._attributes(info, PARAMETER_BANK):
            kernel.first_parameter = struct.unpack_from("<H", payload, 4)[0]
        for bank in range(1, 5):
            place, size = self.sections.get(f".nv.constant{bank}.{name}", (0, 0))
            kernel.banks[bank] = self.data[place : place + size]
        return kernel

    def _program(self, name: str, symbol: int) -> Program:
        command = [str(self.nvdisasm), "-c", "-fun", str(symbol), str(self.path)]
        return parse_programs(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[name]
