"""Model files: one safetensors file with the weights, and the recipe that rebuilds the flow.

A file is data. Loading looks the recipe's name up in ``flows.RECIPES`` and calls it with the recorded numbers
and strings, on torch's meta device, so that nothing is allocated before the shapes are known to fit the
weights in the file.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from . import tensor_file
from .files import PathLike
from .flows import RECIPES, Flow
from .precise import KeepsPrecision

__all__ = ["load", "save"]

FORMAT = "mixflow"
VERSION = "1"


def save(flow: Flow, path: PathLike) -> None:
    """Write ``flow`` to ``path``: weights, recipe and notes. The file appears whole or not at all.

    Args:
        flow: a flow that a recipe of :mod:`mixflow.flows` built.
        path: conventionally ends in ``.safetensors``.

    Raises:
        ValueError: the flow was not built by a recipe, or its notes are not JSON values, with strings for keys.
        OSError: the file cannot be written.

    Example:
        >>> import mixflow, os, tempfile
        >>> flow = mixflow.flows.univariate(components=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     mixflow.save(flow, path)
        ...     mixflow.load(path).recipe.arguments["components"]
        3

    """
    if flow.recipe is None:
        raise ValueError("flow: expected one built by a recipe of mixflow.flows, which a file can name")
    try:
        description = json.dumps(
            {"recipe": flow.recipe.name, "arguments": flow.recipe.arguments, "notes": flow.notes},
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"flow: expected a recipe and notes of finite JSON values ({error})") from error
    if json.loads(description)["notes"] != flow.notes:
        raise ValueError(
            "flow: expected notes that come back from JSON as they are, with strings for keys and lists for sequences; "
            f"got {flow.notes!r}"
        )
    metadata = {"format": FORMAT, "version": VERSION, "flow": description}
    tensor_file.write(path, metadata, flow.state_dict())


def load(path: PathLike) -> Flow:
    """Read a flow that :func:`save` wrote; it comes back on the CPU, in the dtype it was saved in.

    Args:
        path: the model file. Nothing in it is ever executed.

    Raises:
        ValueError: the file is truncated, damaged, not a mixflow model, of another format version, or names a
            recipe or tensors that this version does not have.
        OSError: the file cannot be read.

    """
    try:
        metadata, tensors = contents = tensor_file.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a mixflow model, this safetensors file is something else")
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path}: expected format version {VERSION}, got {metadata.get('version')!r}; "
            "it was written by another version of mixflow"
        )
    if not tensor_file.is_intact(contents):
        raise ValueError(f"{path}: damaged, its contents do not match its checksum")
    name, arguments, notes = _parse(path, metadata.get("flow", ""))
    if name not in RECIPES:
        raise ValueError(f"{path}: expected a flow among {', '.join(RECIPES)}; got {name!r}")
    try:
        _check_sizes(arguments, sum(tensor.numel() for tensor in tensors.values()))
        with torch.device("meta"):
            flow = RECIPES[name](**arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: cannot build the flow {name!r} from its arguments ({error})") from error
    _check_tensors(path, flow, tensors)
    # Once more, now that the sizes are known to be the file's: what is not a weight, such as a mask, needs its values.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        flow = RECIPES[name](**arguments)
    flow.load_state_dict(tensors, assign=True)
    flow.notes = notes
    return flow


def _parse(path: PathLike, description: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    try:
        parsed = json.loads(description)
        name, arguments, notes = parsed["recipe"], parsed["arguments"], parsed["notes"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, its description of the flow cannot be read") from error
    if not (isinstance(name, str) and isinstance(arguments, dict) and isinstance(notes, dict)):
        raise ValueError(f"{path}: damaged, its description of the flow has the wrong types")
    return name, arguments, notes


def _check_sizes(arguments: dict[str, Any], numbers: int) -> None:
    """ValueError for a size that no flow of so many numbers has: recipes make lists as long as some sizes are.

    Every layer has a number for each feature, and any flow one for each of another size: a component, a hidden unit.
    """
    sizes = [
        (name, size)
        for name, value in arguments.items()
        if name != "support"  # numbers there are ends of intervals
        for size in (value if isinstance(value, list) else [value])
    ]
    features, layers = arguments.get("features"), arguments.get("layers")
    if isinstance(features, int) and isinstance(layers, int):
        sizes.append(("features, in all layers", features * layers))
    for name, size in sizes:
        if isinstance(size, int) and size > numbers:
            raise ValueError(f"{name}: expected at most {numbers}, the numbers in the file; got {size}")


def _check_tensors(path: PathLike, flow: Flow, tensors: dict[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in flow.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path}: tensor {name!r}: expected shape {expected.get(name, 'none')}, got {found.get(name, 'none')}"
            )
    # Offsets keep the precision of the data that they are subtracted from.
    keepers = [name for name, module in flow.named_modules() if isinstance(module, KeepsPrecision)]
    offsets = {f"{name}.loc" for name in keepers if "loc" in dict(flow.get_submodule(name).named_buffers())}
    dtypes = {value.dtype for name, value in tensors.items() if name not in offsets}
    wide = {value.dtype for name, value in tensors.items() if name in offsets}
    if len(dtypes) != 1 or not all(dtype.is_floating_point for dtype in dtypes | wide):
        raise ValueError(f"{path}: expected tensors of one floating-point dtype")
