"""The compiled core. Private: it trusts its caller; use mixflow.cdf_transform."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# (address, shape, strides in elements); of the gradients that a backward op writes, address 0 is one not wanted
_Operand: TypeAlias = tuple[int, Sequence[int], Sequence[int]]

FAMILIES: tuple[str, ...]
BASES: tuple[str, ...]
SPECIAL_FUNCTIONS: tuple[str, ...]
__version__: str
BUILD: str

# operands: input, logits, loc, log_scale, output, ladj
# device: -1 for the CPU, with stream the largest number of threads; else a CUDA device index and stream handle
def map(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
) -> None: ...

# operands: x, logits, loc, log_scale, z, ladj, dz/dx, dladj/dx
def map_with_slopes(
    family: int, base: int, is_double: bool, operands: Sequence[_Operand], device: int, stream: int
) -> None: ...

# operands: grad_value, grad_ladj, x, logits, loc, log_scale, grad_input, grad_logits, grad_loc, grad_log_scale
# allocate: from a number of bytes to the address of as much memory on the device; not called on the CPU
def map_backward(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    allocate: Callable[[int], int],
) -> None: ...

# operands: input, rows of (logits, loc, log_scale, shift, log_slope), output, ladj
def packed_map(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
) -> None: ...

# operands: grad_value, grad_ladj, x, rows, grad_input, grad_rows
def packed_map_backward(
    inverse: bool,
    family: int,
    base: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    allocate: Callable[[int], int],
) -> None: ...

# operands: lower, upper, logits, loc, log_scale, output
def interval(family: int, is_double: bool, operands: Sequence[_Operand], device: int, stream: int) -> None: ...

# operands: grad, lower, upper, logits, loc, log_scale, grad_lower, grad_upper, grad_logits, grad_loc, grad_log_scale
def interval_backward(
    family: int,
    is_double: bool,
    operands: Sequence[_Operand],
    device: int,
    stream: int,
    allocate: Callable[[int], int],
) -> None: ...

# How many of at most so many threads an op takes, for sets of parameters that serve so many elements each.
# op: forward, forward_with_slopes, backward, inverse, inverse_backward, interval or interval_backward
def worthwhile_threads(op: str, is_double: bool, components: int, sets: int, elements: int, threads: int) -> int: ...

# A special function of the core over contiguous numbers, for the tests that measure its error.
def special(name: str, is_double: bool, size: int, input: int, output: int) -> None: ...

# Where the permutation of range(count) that 12 keys of 32 bits name sends positions: an array, or the first of as many
# as result has places. result may be positions. IndexError for a position outside.
def permute(keys: NDArray[Any], count: int, positions: NDArray[np.int64] | int, result: NDArray[np.int64]) -> None: ...

# The rows of a table (n, columns) with these numbers; any dtype, the same in both. IndexError for a number outside,
# which is found before anything is read there.
def take_rows(table: NDArray[Any], rows: NDArray[np.int64], result: NDArray[Any]) -> None: ...

# The least arithmetic of a forward op, touching no memory, for benchmarks; the result has no meaning.
def bare_loop(is_double: bool, components: int, elements: int, threads: int) -> float: ...
def cpu_builds() -> tuple[str, ...]: ...
def cpu_capabilities() -> tuple[str, ...]: ...
def cpu_capability() -> str: ...
def has_openmp() -> bool: ...
def cuda_architectures() -> str: ...
