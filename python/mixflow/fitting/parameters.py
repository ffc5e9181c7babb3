"""What the steps of a training move: the parameters of a flow and their gradients, each in few tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..flows import Flow
from ..transforms import MixtureCDF

__all__ = ["Gradients", "Parameters", "trained", "trained_alone"]

KINDS = "logits", "loc", "log_scale"  # the parameters of a mixture


class Parameters:
    """The parameters that the steps of a training move: those of all mixtures as one tensor, and those of networks.

    Mixtures are many small tensors. Joined to one tensor, they need one operation instead of one each. Until
    :meth:`release`, the modules' parameters are views of this tensor.

    Args:
        flow: the flow.
        moved: those of its parameters that are trained.
        held: for each column, whether its marginal mixture stays as it is.

    Attributes:
        all: the parameters for an optimizer.
        moving: (3, M), 1 for each number of the mixtures that is trained and 0 for the others; None if all are trained.
        left_out: the names of mixtures that are not joined, because they share a parameter with another mixture or
            compute it from others. They are trained like networks, without a prior and with steps of any length.

    """

    def __init__(self, flow: Flow, moved: Sequence[nn.Parameter], held: Sequence[bool]) -> None:
        like, is_moved = moved[0], {id(parameter) for parameter in moved}
        own: dict[int, nn.Parameter] = {}
        self.mixtures: list[tuple[str, MixtureCDF]] = []
        self.left_out: list[str] = []
        for name, module in flow.named_modules():
            if not isinstance(module, MixtureCDF) or is_moved.isdisjoint(map(id, module.parameters())):
                continue
            three = [module._parameters.get(kind) for kind in KINDS]
            known = [p for p in three if p is not None and p.dtype == like.dtype and p.device == like.device]
            ids = {id(parameter) for parameter in known}
            # A shared parameter would need two places in the joined tensor. A computed one cannot be a view.
            if len(ids) < len(KINDS) or ids & own.keys():
                self.left_out.append(name)
            elif ids & is_moved:
                own |= {id(parameter): parameter for parameter in known}
                self.mixtures.append((name, module))
        others = [parameter for parameter in moved if id(parameter) not in own]
        self._modules = [tuple(_three(module)) for _, module in self.mixtures]
        self.all = [nn.Parameter(self._join()), *others] if self.mixtures else others
        self.moving = self._moving(is_moved, held) if self.mixtures else None

    def values_of(self, weights: dict[str, Tensor], kind: str) -> Tensor:
        """The numbers (M,) of one kind for all mixtures in ``weights``, a state_dict of the flow."""
        return torch.cat([weights[f"{name}.{kind}"].reshape(-1) for name, _ in self.mixtures])

    def gradients(self) -> Gradients:
        """Memory for the gradients, to which the backward pass then adds."""
        found = Gradients(self.all)
        if self.mixtures:
            assert self.all[0].grad is not None
            for parameter, grad in zip(self._flat(), self._views(self.all[0].grad), strict=True):
                parameter.grad = grad if parameter.requires_grad else None
        return found

    def release(self) -> None:
        """Give the modules' parameters memory of their own again."""
        for parameter in self._flat():
            parameter.data = parameter.data.clone()
            parameter.grad = None

    def _flat(self) -> list[nn.Parameter]:
        return [three[kind] for kind in range(len(KINDS)) for three in self._modules]

    def _join(self) -> Tensor:
        """The joined tensor (3, M); the modules' parameters become views of it."""
        values = torch.cat([parameter.detach().reshape(-1) for parameter in self._flat()]).reshape(len(KINDS), -1)
        for parameter, view in zip(self._flat(), self._views(values), strict=True):
            parameter.data = view
        return values

    def _views(self, values: Tensor) -> list[Tensor]:
        """The parts of ``values`` (3, M), in the shapes of the modules' parameters."""
        parameters = self._flat()
        parts = values.reshape(-1).split([parameter.numel() for parameter in parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]

    def _moving(self, moved: set[int], held: Sequence[bool]) -> Tensor | None:
        """1 for each number that is trained and 0 for the others, (3, M); None where all are trained."""
        moving = torch.ones_like(self.all[0], requires_grad=False)
        for parameter, part in zip(self._flat(), self._views(moving), strict=True):
            if id(parameter) not in moved:
                part.zero_()
        for (_, module), *parts in zip(self.mixtures, *self._by_kind(moving), strict=True):
            if module.is_marginal:
                for part in parts:
                    part[torch.tensor(held, device=part.device)] = 0.0
        return None if moving.all() else moving

    def _by_kind(self, values: Tensor) -> list[list[Tensor]]:
        views, count = self._views(values), len(self.mixtures)
        return [views[kind * count : (kind + 1) * count] for kind in range(len(KINDS))]


def _three(module: MixtureCDF) -> Iterator[nn.Parameter]:
    for kind in KINDS:
        parameter = module._parameters[kind]
        assert isinstance(parameter, nn.Parameter)
        yield parameter


class Gradients:
    """The gradients of ``parameters`` in one flat tensor, and after them four numbers, ``outcome``.

    The four numbers are the loss, the part of the batch's weight that lies outside the support, 1 if the training is to
    stop, and the norm of the gradients. A single tensor can be zeroed, summed over the processes, measured and scaled
    at once. The ``grad`` of the parameters are views of it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + 4, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients, self.outcome = self.flat[:-4], self.flat[-4:]
        self.loss, self.outside, self.stop, self.norm = self.outcome
        for parameter, part in zip(parameters, self.gradients.split(sizes), strict=True):
            # AdamW goes through the memory of both in parallel, so a gradient must have the layout of its parameter.
            like = torch.empty_like(parameter)
            parameter.grad = part.as_strided(like.shape, like.stride())

    def clip_(self, most: float) -> None:
        """Scale the gradients to the norm ``most`` if theirs is larger, and keep the norm from before."""
        torch.linalg.vector_norm(self.gradients, out=self.norm)
        if most < math.inf:
            self.gradients.div_((self.norm / most).clamp_(min=1.0))


def trained(flow: Flow, held: Sequence[bool]) -> list[nn.Parameter]:
    """The parameters that the steps move. Those of marginal mixtures are left out if all columns are ``held``."""
    still = {
        id(parameter)
        for module in flow.modules()
        if isinstance(module, MixtureCDF) and module.is_marginal and all(held)
        for parameter in module.parameters()
    }
    return [parameter for parameter in flow.parameters() if parameter.requires_grad and id(parameter) not in still]


@contextmanager
def trained_alone(flow: Flow, moved: list[nn.Parameter]) -> Iterator[None]:
    """Within the block, no parameter of ``flow`` requires a gradient except those that are ``moved``."""
    kept = {id(parameter) for parameter in moved}
    held = [parameter for parameter in flow.parameters() if parameter.requires_grad and id(parameter) not in kept]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
