"""The parts of a flow as data: how a model file describes transforms that were put together by hand.

A part is described by the name of its class and the arguments of its constructor::

    {"part": "MixtureCDF", "arguments": {"features": 3, "components": 8, "family": "logistic", ...}}

An argument may be a part itself, or a list of parts. If a part occurs again, its description is the place where it
occurred first, ``{"same": "data_to_base.transforms.0"}``. Both occurrences are then one object, with one set of
weights. Places are written as in the names of the weights. An argument is left out if its value is among the weights of
its part, under the same name.

A description may come from a forged file. It can only name classes that :mod:`mixflow.transforms` and
:mod:`mixflow.networks` export. The size of the file bounds the memory and the work that a description can cause.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import networks, transforms
from ..transforms import Transform

__all__ = ["Builder", "describe", "describe_arguments", "own_weights", "plain", "sizes", "unsavable"]

LEVELS = 128  # lists and parts within each other; more would come close to Python's limit of recursion
PARTS = 10_000  # the most parts; one that occurs several times counts each time
FREE_SIZE = 2**20  # the largest size that the file needs no weights for, such as the features of a sigmoid
FREE_BYTES = 2**26  # the most bytes of buffers that are not weights, such as masks, without weights in the file

_NOT_SIZES = ("support", "loc", "scale", "levels")  # arguments in which an integer is a value


def plain(value: Any) -> Any:
    """``value`` as JSON returns it: numbers of numpy and torch become Python's, sequences lists, and infinity None.

    Example:
        >>> import torch
        >>> from mixflow.flows.parts import plain
        >>> plain((torch.tensor([1, 2]), "positive", (0.0, float("inf"))))
        [[1, 2], 'positive', [0.0, None]]

    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and math.isinf(value):
        return None  # an open end of a support
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return operator.index(value) if hasattr(value, "__index__") else value


def own_weights(module: nn.Module) -> dict[str, Tensor]:
    """The entries that ``module`` itself, without its submodules, adds to a ``state_dict``."""
    own = {**module._parameters, **module._buffers}
    return {
        name: value
        for name, value in own.items()
        if value is not None and name not in module._non_persistent_buffers_set
    }


def unsavable(name: str, expected: str, value: object) -> ValueError:
    """The error for an argument, at the place ``name``, that a file cannot describe."""
    given = value if isinstance(value, float) else getattr(value, "__name__", type(value).__name__)
    return ValueError(
        f"{name}: expected {expected}, which a file can describe, got {given}. Save the weights alone with "
        "torch.save(flow.state_dict(), path); to load them, build the flow again and call its load_state_dict"
    )


# -- from parts to a description -----------------------------------------------------------------------------


def describe(transform: Transform, name: str) -> dict[str, Any]:
    """The description of ``transform``, at the place ``name``, in JSON values.

    Raises:
        ValueError: a part is not one of mixflow's own.

    Example:
        >>> from mixflow.flows.parts import describe
        >>> from mixflow.transforms import Exp, Inverse
        >>> describe(Inverse(Exp(2)), "data_to_base")["arguments"]["transform"]
        {'part': 'Exp', 'arguments': {'features': 2}}

    """
    return _Describer().part(transform, name, 0)


def describe_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe in JSON values; ValueError if one is a part that is not mixflow's own."""
    describer = _Describer()
    return {name: describer.value(value, name, 0) for name, value in arguments.items()}


class _Describer:
    def __init__(self) -> None:
        self.places: dict[int, str] = {}  # where the part with an id occurred first

    def part(self, part: Any, name: str, level: int) -> dict[str, Any]:
        if id(part) in self.places:
            return {"same": self.places[id(part)]}
        kind = type(part).__name__
        is_own = _classes().get(kind) is type(part)
        if not is_own:
            raise unsavable(name, "a part of mixflow.transforms or mixflow.networks", part)
        self.places[id(part)] = name
        weights = own_weights(part) if isinstance(part, nn.Module) else {}
        arguments = {
            key: self.value(_live(part, key, value), f"{name}.{key}", level + 1)
            for key, value in part.arguments.items()
            if key not in weights
        }
        return {"part": kind, "arguments": arguments}

    def value(self, value: Any, name: str, level: int) -> Any:
        _check_level(name, level)
        value = plain(value)
        if isinstance(value, list):
            return [self.value(item, f"{name}.{index}", level + 1) for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise unsavable(name, "a number", value)
        return value if value is None or isinstance(value, bool | int | float | str) else self.part(value, name, level)


def _live(part: Any, key: str, value: Any) -> Any:
    """The argument ``key`` of ``part``. A transform is taken as it is now, because the user may have replaced it."""
    child = getattr(part, key, None)
    if isinstance(child, nn.ModuleList):
        return list(child)
    return child if isinstance(child, Transform) else value


def _classes() -> dict[str, type]:
    """The classes that a description can name."""
    exported = {name: getattr(module, name) for module in (transforms, networks) for name in module.__all__}
    return {name: value for name, value in exported.items() if isinstance(value, type)}


def _check_level(name: str, level: int) -> None:
    if level > LEVELS:
        raise ValueError(f"{name[:80]}...: expected at most {LEVELS} lists and parts within each other, got more")


# -- from a description to parts -----------------------------------------------------------------------------


class Builder:
    """Builds the parts that descriptions name, for one file.

    Args:
        weights: the tensors in the file. They bound the sizes in a description.

    Example:
        >>> from mixflow.flows.parts import Builder
        >>> sigmoid = {"part": "Sigmoid", "arguments": {"features": 2}}
        >>> Builder({}).part({"part": "Inverse", "arguments": {"transform": sigmoid}}, "data_to_base")
        Inverse(
          (transform): Sigmoid(features=2)
        )

    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._largest = max(FREE_SIZE, sum(value.numel() for value in weights.values()))
        self._bytes_left = FREE_BYTES + 4 * sum(value.nbytes for value in weights.values())
        self._counted: set[int] = set()  # buffers, by their ids
        self._made: dict[str, tuple[Any, int]] = {}  # what is built, by its place, and the number of parts in it
        self._parts = 0

    def part(self, description: Any, name: str, level: int = 0) -> Any:
        """The part that ``description``, at the place ``name``, stands for.

        Raises:
            ValueError: there is no such part.

        """
        _check_level(name, level)
        match description:
            case {"same": str(place), **rest} if not rest:
                return self._same(place, name)
            case {"part": str(kind), "arguments": dict(arguments), **rest} if not rest:
                pass
            case _:
                raise ValueError(f"{name}: expected a part and its arguments or an earlier part's place, got neither")
        if kind not in _classes():
            raise ValueError(f"{name}: expected a part among {', '.join(_classes())}, got {kind[:80]!r}")
        for key, size in sizes(arguments):
            self._check_size(f"{name}.{key}", size)
        before = self._parts
        part = self.call(_classes()[kind], arguments, name, level)
        if isinstance(part, Transform):
            self._check_size(f"{name}.features", part.features)  # of an image, the product of three sizes
        self._count(1)
        self._made[name] = part, self._parts - before
        return part

    def call(self, build: Callable[..., Any], arguments: Mapping[str, Any], name: str, level: int = 0) -> Any:
        """The result of ``build``, a class or a recipe, for described ``arguments``.

        Raises:
            ValueError: ``build`` takes other arguments, or its result is too large for the file.

        """
        values = {key: self._value(value, f"{name}.{key}", level + 1) for key, value in arguments.items()}
        positional = [key for key, one in inspect.signature(build).parameters.items() if one.kind is one.VAR_POSITIONAL]
        try:
            made = build(*[item for key in positional for item in values.pop(key, ())], **values)
        except Exception as error:  # forged arguments can make a constructor fail in any way
            raise ValueError(f"{name}: cannot be built from its arguments ({error})") from error
        for buffer in made.buffers() if isinstance(made, nn.Module) else ():
            if id(buffer) not in self._counted:
                self._counted.add(id(buffer))
                self._bytes_left -= buffer.nbytes
        if self._bytes_left < 0:
            raise ValueError(f"{name}: needs more memory than a file of this size accounts for")
        return made

    def _value(self, value: Any, name: str, level: int) -> Any:
        _check_level(name, level)
        if isinstance(value, dict):
            return self.part(value, name, level)
        if isinstance(value, list):
            return [self._value(item, f"{name}.{index}", level + 1) for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")
        return value

    def _check_size(self, name: str, size: int) -> None:
        if size > self._largest:
            raise ValueError(f"{name}: expected at most {self._largest} for a file of this size, got {size}")

    def _same(self, place: str, name: str) -> Any:
        if place not in self._made:  # a part that contains this one is not built yet, so it is not there either
            raise ValueError(f"{name}: expected the place of an earlier part, got {place[:80]!r}")
        part, parts = self._made[place]
        self._count(parts)
        return part

    def _count(self, parts: int) -> None:
        # This is checked before so many parts are put together: torch visits a part each time that it occurs.
        self._parts += parts
        if self._parts > PARTS:
            raise ValueError(f"transforms: expected at most {PARTS} parts, got more")


def sizes(arguments: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The sizes among described arguments, with their names: numbers of features, components, units.

    Example:
        >>> from mixflow.flows.parts import sizes
        >>> list(sizes({"features": 3, "hidden": [64, 32], "family": "logistic"}))
        [('features', 3), ('hidden', 64), ('hidden', 32)]

    """
    for name, value in arguments.items():
        given = [] if name in _NOT_SIZES else value if isinstance(value, list) else [value]
        yield from ((name, size) for size in given if isinstance(size, int))
