"""Instructions and operands, read from the text of nvdisasm."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from sass.toolkit import ToolError

ZERO, UNIFORM_ZERO = 255, 319  # rows of Block.registers: RZ, and URZ; uniform registers follow the others
TRUE, UNIFORM_TRUE = 7, 15  # rows of Block.predicates: PT, UPT


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
    if match := re.match(r"[~!|]|-(?=[|URc])", text):
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
    guard: Operand | None  # only threads for which this predicate is true execute the instruction
    opcode: str
    operands: list[Operand]

    def __post_init__(self) -> None:
        self.name, *self.options = self.opcode.split(".")

    def has(self, *options: str) -> bool:
        return any(option in self.options for option in options)

    def expect(self, option: str) -> None:
        if option not in self.options:
            raise ToolError(f"expected {self.name}.{option}")

    def choose(self, table: dict[str, Any]) -> Any:
        """The entry of a table that an option names."""
        for option in self.options:
            if option in table:
                return table[option]
        raise ToolError(f"expected one of {', '.join(table)} in its name")

    @property
    def parts(self) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """The predicates that are written, the other operands (the result first), the predicates that are read."""
        own = [j for j, operand in enumerate(self.operands) if operand.kind != "predicate"]
        written = [operand for operand in self.operands[: own[-1]] if operand.kind == "predicate"]
        return written, [self.operands[j] for j in own], self.operands[own[-1] + 1 :]


@dataclass
class Program:
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # indices of instructions


LINE = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][\w.]*)\s*(.*?)\s*(\(\*.*)?;?\s*(/\*.*)?$")


def parse_programs(text: str) -> dict[str, Program]:
    """The functions in the text of nvdisasm, by their plain names."""
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
    """A mangled name without the part that names the source file, which differs between two compilations."""
    return re.sub(r"\d+_GLOBAL__N__\w+?_cu_[0-9a-f]{8}", "", name)
