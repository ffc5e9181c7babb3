"""Model files: one safetensors file with the weights and a description that rebuilds the flow.

A file is data and no program. If a recipe built the flow, the description is the recipe's name and arguments. If the
flow was put together by hand, the description lists its parts, as in :mod:`mixflow.flows.parts`. Loading looks these
names up among mixflow's own, and calls the recipe or the classes with the recorded numbers and strings. First it does
so on torch's meta device, without memory, and checks that all shapes fit the weights in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..flows import RECIPES, Flow
from ..flows.parts import Builder, describe, describe_arguments, own_weights, sizes, unsavable
from ..precise import KeepsPrecision
from . import tensor_file
from .atomic import PathLike

__all__ = ["load", "save"]

FORMAT = "mixflow"
VERSION = "2"
_READABLE = ("1", VERSION)  # files of version 1 have recipes alone

_LAYOUTS = (  # the layouts that a description can have
    {"recipe": str, "arguments": dict, "notes": dict},
    {"transform": dict, "base": str, "notes": dict},
)
_SMALL = 1 << 24  # a flow of fewer numbers is built at once, without a check on the meta device
_PLACE = "data_to_base"  # the place of a flow's transform, in the names of its weights


def save(flow: Flow, path: PathLike) -> None:
    """Write ``flow`` to ``path``: weights, description and notes. The file appears whole or not at all.

    Args:
        flow: a flow that a recipe of :mod:`mixflow.flows` built, or one that was put together from transforms of
            :mod:`mixflow.transforms`. A transform that occurs several times is saved once. In the loaded flow, its
            occurrences share their weights again.
        path: conventionally ends in ``.safetensors``.

    Raises:
        TypeError: flow is not a Flow.
        ValueError: the flow has a part that is not mixflow's own, such as your own network or transform; it was changed
            by hand, so that its description no longer builds it; or its notes are not JSON values with strings as keys.
        OSError: the file cannot be written.

    Example:
        >>> import mixflow, os, tempfile
        >>> from mixflow.transforms import Affine, Compose, MixtureCDF
        >>> flow = mixflow.flows.Flow(Compose(Affine(3), MixtureCDF(3, components=8)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     mixflow.save(flow, path)
        ...     mixflow.load(path)
        Flow(
          (data_to_base): Compose(
            (transforms): ModuleList(
              (0): Affine(features=3, trainable=True)
              (1): MixtureCDF(features=3, components=8, family='gaussian', base='normal', context=0)
            )
          )
        )

    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow: expected a Flow, got {type(flow).__name__}")
    try:
        description = _describe(flow)
        weights = _weights(flow)
        _check_same(flow, _rebuilt(description, weights))
    except ValueError as error:
        raise ValueError(f"flow: {error}") from error
    metadata = {"format": FORMAT, "version": VERSION, "flow": json.dumps(description | {"notes": _notes(flow)})}
    tensor_file.write(path, metadata, weights)


def load(path: PathLike) -> Flow:
    """Read a flow that :func:`save` wrote. It is on the CPU, in the dtype in which it was saved, in evaluation mode.

    Args:
        path: the model file. Nothing in it is ever executed.

    Raises:
        ValueError: the file is truncated, damaged, not a mixflow model or of another format version, or it names a
            recipe, a part or tensors that this version does not have.
        OSError: the file cannot be read.

    """
    try:
        metadata, tensors = contents = tensor_file.read(path)
        if metadata.get("format") != FORMAT:
            raise ValueError("expected a mixflow model, got another safetensors file")
        if metadata.get("version") not in _READABLE:
            raise ValueError(
                f"expected format version {' or '.join(_READABLE)}, got {metadata.get('version')!r}; "
                "it was written by another version of mixflow"
            )
        if not tensor_file.is_intact(contents):
            raise ValueError("damaged, its contents do not match its checksum")
        description = _parsed(metadata.get("flow", ""))
        flow = _rebuilt(description, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # This is not strict, because a transform that occurs several times has its weights in the file once. All shapes
    # have been checked.
    flow.load_state_dict(tensors, strict=False, assign=True)
    flow.notes = description["notes"]
    return flow.eval()


# -- from a flow to a description ----------------------------------------------------------------------------


def _describe(flow: Flow) -> dict[str, Any]:
    if flow.recipe is not None:
        return {"recipe": flow.recipe.name, "arguments": describe_arguments(flow.recipe.arguments)}
    if type(flow) is not Flow:
        raise unsavable("its class", "Flow, or the class of what a recipe of mixflow.flows builds", flow)
    if flow.embedding is not None:
        raise unsavable("embedding", "None", flow.embedding)
    return {"transform": describe(flow.data_to_base, _PLACE), "base": flow.base}


def _notes(flow: Flow) -> dict[str, Any]:
    try:
        same = json.loads(json.dumps(flow.notes, allow_nan=False)) == flow.notes
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"flow: expected notes of finite JSON values, got others ({error})") from error
    if not same:
        raise ValueError(
            "flow: expected notes that come back from JSON as they are, with strings for keys and lists for sequences, "
            f"got {flow.notes!r}"
        )
    return flow.notes


def _weights(flow: Flow) -> dict[str, Tensor]:
    """The parameters and buffers by name. A transform that occurs several times appears under its first name alone."""
    weights: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    for place, module in flow.named_modules():
        for key, value in own_weights(module).items():
            name = f"{place}.{key}" if place else key
            if names.setdefault(id(value), name) != name:
                raise ValueError(
                    f"{name} is the same tensor as {names[id(value)]}: only whole transforms can be shared"
                )
            weights[name] = value
    return weights


def _check_same(flow: Flow, rebuilt: Flow) -> None:
    """ValueError if ``rebuilt`` differs from ``flow``: a part was changed after its constructor returned."""
    shown, expected = (
        [*repr(one).splitlines(), f"base={one.base!r}, context={one.context}"] for one in (flow, rebuilt)
    )
    if shown == expected:
        return
    differ = next((pair for pair in zip(shown, expected, strict=False) if pair[0] != pair[1]), ("more parts", "fewer"))
    by = "its parts" if flow.recipe is None else f"its recipe {flow.recipe.name!r}"
    raise ValueError(
        f"expected one as the arguments of {by} build it, {differ[1].strip()}, got a later change of it, "
        f"{differ[0].strip()}"
    )


# -- from a description to a flow ----------------------------------------------------------------------------


def _parsed(text: str) -> dict[str, Any]:
    try:
        description: dict[str, Any] = dict(json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("damaged, its description of the flow cannot be read") from error
    if {key: type(value) for key, value in description.items()} not in _LAYOUTS:
        raise ValueError("damaged, its description of the flow has the wrong types")
    return description


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected JSON, got {name}")


def _rebuilt(description: Mapping[str, Any], tensors: dict[str, Tensor]) -> Flow:
    """The flow of ``description``, still with the weights of its constructor; ValueError unless ``tensors`` fit."""
    with torch.random.fork_rng(devices=[]):
        if not _is_small(description):
            # Sizes are checked without memory first. The meta device makes torch import its compiler, which takes half
            # a second, so small flows skip this.
            with torch.device("meta"):
                _check_tensors(_built(description, tensors), tensors)
        with torch.device("cpu"):
            flow = _built(description, tensors)
        _check_tensors(flow, tensors)
        return flow


def _is_small(description: Mapping[str, Any]) -> bool:
    """Whether a flow with the sizes in ``description`` has at most ``_SMALL`` numbers.

    The axes of a layer's largest tensor are up to three of the sizes: units of a network, features, and components,
    which have three or four numbers each.
    """
    arguments = description.get("arguments", {})
    found = [abs(size) for _, size in sizes(arguments)]
    layers = arguments.get("layers", 1)
    if "recipe" not in description or not isinstance(layers, int):
        return False
    return 4 * abs(layers) * len(found) * math.prod(sorted(found)[-3:]) <= _SMALL


def _built(description: Mapping[str, Any], tensors: dict[str, Tensor]) -> Flow:
    builder = Builder(tensors)
    if "recipe" not in description:
        return Flow(builder.part(description["transform"], _PLACE), description["base"])
    name, arguments = description["recipe"], description["arguments"]
    if name not in RECIPES:
        raise ValueError(f"expected a flow among {', '.join(RECIPES)}, got {name!r}")
    try:
        _check_sizes(arguments, sum(tensor.numel() for tensor in tensors.values()))
    except ValueError as error:
        raise ValueError(f"{name}: cannot be built from its arguments ({error})") from error
    flow: Flow = builder.call(RECIPES[name], arguments, name)
    return flow


def _check_sizes(arguments: Mapping[str, Any], numbers: int) -> None:
    """ValueError for a size that no flow of so many ``numbers`` has. A recipe makes lists of such a length.

    Every layer has at least one number for each feature, and any flow has at least one for each component and each
    hidden unit.
    """
    features, layers = arguments.get("features"), arguments.get("layers")
    together = features * layers if isinstance(features, int) and isinstance(layers, int) else 0
    for name, size in [*sizes(arguments), ("features, in all layers", together)]:
        if size > numbers:
            raise ValueError(f"{name}: expected at most {numbers}, the numbers in the file, got {size}")


def _check_tensors(flow: Flow, tensors: dict[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in _weights(flow).items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"tensor {name!r}: expected shape {expected.get(name, 'none')}, got {found.get(name, 'none')}"
            )
    # An offset has the precision of the data, which may differ from that of the other tensors.
    keepers = [name for name, module in flow.named_modules() if isinstance(module, KeepsPrecision)]
    offsets = {f"{name}.loc" for name in keepers if "loc" in dict(flow.get_submodule(name).named_buffers())}
    dtypes = {value.dtype for name, value in tensors.items() if name not in offsets}
    wide = {value.dtype for name, value in tensors.items() if name in offsets}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes | wide):
        found_dtypes = ", ".join(sorted(str(dtype) for dtype in dtypes | wide))
        raise ValueError(f"expected tensors of one floating-point dtype, got {found_dtypes}")
