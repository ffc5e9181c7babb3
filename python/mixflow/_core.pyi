"""The compiled core. Private: it trusts its caller; use mixflow.cdf_transform."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# (address, shape, strides in elements). A backward kernel does not compute a gradient whose address is 0.
_Operand: TypeAlias = tuple[int, Sequence[int], Sequence[int]]

FAMILIES: tuple[str, ...]
BASES: tuple[str, ...]
SPECIAL_FUNCTIONS: tuple[str, ...]
# For each kernel below the names of its operands, in their order. `map` of the inverse also takes those of
# `map_with_diagnostics`. In `rows`, a row is (logits, loc, log_scale, shift, log_slope).
OPERANDS: dict[str, tuple[str, ...]]
__version__: str
BUILD: str

# By dtype ("float32", "float64") and name: the numbers at which a formula gives way to another, for the tests.
def constants() -> dict[str, dict[str, float]]: ...

# The kernels. Arguments that they share:
# family, base: indices in FAMILIES and BASES
# device: the index of a CUDA device, or -1 for the CPU
# stream: the handle of a CUDA stream; ignored on the CPU
# threads: the largest number of threads on the CPU; ignored on a GPU
# allocate: takes a number of bytes, and returns the address of as much memory of the device; not called on the CPU
def map(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def map_with_slopes(
    family: int, base: int, is_double: bool, operands: Sequence[_Operand], device: int, stream: int, threads: int
) -> None: ...
def map_backward(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    threads: int,
    allocate: Callable[[int], int],
) -> None: ...
def packed_map(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    threads: int,
) -> None: ...
def packed_map_backward(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    threads: int,
    allocate: Callable[[int], int],
) -> None: ...
def interval(
    family: int, is_double: bool, operands: Sequence[_Operand], device: int, stream: int, threads: int
) -> None: ...
def interval_backward(
    family: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    threads: int,
    allocate: Callable[[int], int],
) -> None: ...

# How many of at most `threads` threads an op uses, for `sets` parameter sets that serve `elements` elements each.
# op: forward, forward_with_slopes, backward, inverse, inverse_backward, interval or interval_backward
def worthwhile_threads(op: str, is_double: bool, components: int, sets: int, elements: int, threads: int) -> int: ...

# Applies a special function of the core to contiguous numbers. The tests measure its error by this.
def special(name: str, is_double: bool, size: int, input: int, output: int) -> None: ...

# Writes to `result` where a permutation of range(count), which 12 keys of 32 bits choose, sends positions: an array,
# which may be `result`, or the first of consecutive positions. Raises IndexError for a position outside of the range.
def permute(keys: NDArray[Any], count: int, positions: NDArray[np.int64] | int, result: NDArray[np.int64]) -> None: ...

# Copies the rows of a table (n, columns) with these numbers to `result`, which has the dtype of the table. Raises
# IndexError for a number outside of the table, before it reads anything there.
def take_rows(table: NDArray[Any], rows: NDArray[np.int64], result: NDArray[Any]) -> None: ...

# Does the least arithmetic of a forward op, without access to memory, for benchmarks. The result has no meaning.
def bare_loop(is_double: bool, components: int, elements: int, threads: int) -> float: ...
def cpu_builds() -> tuple[str, ...]: ...
def cpu_capabilities() -> tuple[str, ...]: ...
def cpu_capability() -> str: ...
def has_openmp() -> bool: ...
def cuda_architectures() -> str: ...
