"""Count the instructions that the compiled CUDA kernels execute, and check their results, without a GPU.

    python tools/gpu_instructions.py [--source DIR] [--arch sm_90] [--nvdisasm PATH] [--cubin FILE] [--markdown FILE]

The tool compiles `cuda/kernels.cu` with nvcc, disassembles it with nvdisasm, and runs a block of threads in an
interpreter, which is in tools/sass. The project's own host code makes the launch. The tool links it with a CUDA runtime
that hands over the kernel, the size of the block and the bytes of the arguments. So a new member of an argument needs
no change here. The results are compared with those of mixflow on the CPU in float64.

An instruction counts when a thread issues it. So do instructions whose predicate is false, and those that only steer
threads (BSSY, BSYNC, NOP). Counts are averages over the threads of a block, for float32, the normal base and ordinary
values: components that overlap, and elements among them. The lines of the table:

- a component: what another component of an element costs, (count at K = 16 - count at K = 8) / 8. For the layout
  `common` this is taken between blocks of 8 and of 4 elements a thread, which leaves out the preparation of the
  components. In `backward common` a thread works first on an element and then on a component; the line holds both;
- of these MUFU, memory: special functions of the hardware; loads and stores of global, shared and local memory;
- an element: what is left at no components;
- whole: all instructions of a block at K = 8, the preparation too, for an element (with 4 elements a thread in the
  layout `common`);
- warp: the same as the warp issues it. It is larger where the threads of a warp take different paths;
- registers, shared bytes: of a thread, and of the block at K = 8; spills: loads and stores of local memory in the code.

MUFU functions are computed in float64 and rounded: the hardware has errors of an ULP or two. FCHK, which chooses the
slow path of a division, is approximate. Instructions across the threads of a warp (SHFL, VOTE) are not interpreted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixflow import FAMILIES
from sass.block import Block
from sass.cubin import Cubin
from sass.launch import FILLED, Case, Kernels, compile_kernels
from sass.toolkit import ToolError, disassembler

SOURCE = Path(__file__).resolve().parent.parent / "csrc"
MEMORY = ("LD", "LDG", "LDS", "LDL", "ST", "STG", "STS", "STL")
SETS = 4096  # so many that the layout `common` has a block for each: then a thread has several elements
TOLERANCE = 1e-5


@dataclass
class Count:
    """What one block did."""

    block: Block
    elements: int
    error: float

    def __post_init__(self) -> None:
        threads, warps = self.block.issued
        names = np.array([i.name for i in self.block.program.instructions])
        self.issued = np.array([threads[kind].sum() for kind in (..., names == "MUFU", np.isin(names, MEMORY))])
        self.warps = int(32 * warps.sum())


def count(kernels: Kernels, layout: str, family: str, components: int, elements: int) -> Count:
    """Counts a block; `elements` are those of a thread, in the layout `common`."""
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
    if "common" in layout:
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
    for layout in ("forward rows", "forward common", "backward rows", "backward common"):
        columns, own_errors = zip(*(measure(kernels, layout, family) for family in FAMILIES), strict=True)
        lines += [f"| {layout} | {name} | {' | '.join(c[name] for c in columns)} |" for name in columns[0]]
        errors += own_errors
    return "\n".join(lines), float(np.max(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, metavar="DIR", help="the folder csrc")
    parser.add_argument("--arch", default="sm_90", help="the architecture to compile for")
    parser.add_argument("--nvdisasm", type=Path, metavar="PATH", help="the disassembler")
    parser.add_argument("--cubin", type=Path, metavar="FILE", help="kernels that are compiled already, of --source")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the table, too")
    args = parser.parse_args()
    try:
        nvdisasm = args.nvdisasm or disassembler()
        if not nvdisasm:
            raise ToolError("nvdisasm: not found; install it by: pip install nvidia-cuda-nvdisasm")
        with tempfile.TemporaryDirectory() as folder:
            library, cubin = compile_kernels(args.source, args.arch, Path(folder), args.cubin)
            text, error = table(Kernels(library, Cubin(cubin, Path(nvdisasm))))
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
