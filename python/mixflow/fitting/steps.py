"""The steps of a training: the gradients of a batch, clipped, and what AdamW makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..flows import Flow
from ..transforms import MixtureCDF
from ..transforms.base import spread
from .captured import Graphs, can_capture
from .checkpoint import Run
from .parallel import Group

__all__ = ["Parameters", "Steps", "optimizer_for", "own_stream", "trained", "trained_alone"]

NARROW = 0.135  # standard deviations: the scale below which a component's location moves in shorter steps
PRIOR_ROWS = 0.1  # the weight of the prior on a component's scale
KINDS = "logits", "loc", "log_scale"  # the parameters of a mixture


def optimizer_for(parameters: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW in one call for all parameters (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Where steps are captured, the learning rate is a tensor: a number would be recorded as it is.
    """
    device = parameters[0].device
    if not can_capture(device):
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    rate = torch.tensor(lr, dtype=torch.float32, device=device)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=True)


class _OneCall:
    """Steps of AdamW by the one call that does the work; the optimizer holds the state.

    ``Optimizer.step`` finds out anew each time what it is to work on. For a few small tensors that takes five times as
    long as the work.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        (self._options,) = optimizer.param_groups
        # Parameters, gradients, first and second moments, nothing for the largest second moments, and counts of steps.
        self._tensors: list[list[Tensor]] = []

    def step(self) -> None:
        """As ``Optimizer.step``; the first step is that, and makes the state."""
        if not self._tensors:
            self._optimizer.step()
            parameters = self._options["params"]
            states = [self._optimizer.state[parameter] for parameter in parameters]
            gradients = [parameter.grad for parameter in parameters]
            moments = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")]
            self._tensors = [parameters, gradients, *moments, [], [state["step"] for state in states]]
            return
        with torch.no_grad():
            torch._foreach_add_(self._tensors[-1], 1)
            torch._fused_adamw_(
                *self._tensors,
                lr=self._options["lr"],
                beta1=self._options["betas"][0],
                beta2=self._options["betas"][1],
                weight_decay=self._options["weight_decay"],
                eps=self._options["eps"],
                amsgrad=False,
                maximize=False,
            )


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of the block's own on a CUDA device: a graph cannot be captured on the default one."""
    if device.type != "cuda":
        yield
        return
    before, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    own.wait_stream(before)
    try:
        with torch.cuda.stream(own):
            yield
    finally:
        before.wait_stream(own)


class Steps:
    """Steps of gradient descent on the mean negative log_prob of batches.

    Args:
        run: whose flow and optimizer they move.
        parameters: of the flow and of the optimizer.
        group: the processes that share each batch.
        rows: the sum of the weights of all rows.
        max_grad_norm: the norm that gradients are clipped to.
        limited: whether the density has a support that rows can lie outside of.

    """

    def __init__(
        self, run: Run, parameters: Parameters, group: Group, rows: float, max_grad_norm: float, limited: bool
    ) -> None:
        self.flow, self.group = run.flow, group
        self.optimizer, self.options = _OneCall(run.optimizer), run.optimizer.param_groups[0]
        self.max_grad_norm, self.limited = max_grad_norm, limited
        self.gradients = parameters.gradients()
        self.mixtures = _Mixtures(parameters, run.start, rows) if parameters.mixtures else None
        device = self.gradients.flat.device
        # Half precision would overflow in sums.
        self.dtype = torch.promote_types(self.gradients.flat.dtype, torch.float32)
        self.minus_part = torch.zeros((), dtype=self.dtype, device=device)  # of a row in the loss
        self.run: Any = self._step
        if can_capture(device):
            several = "several processes share each batch" if group.size > 1 else ""
            self.run = Graphs(self._step, why_not=several)

    @property
    def note(self) -> str:
        """What the history says about how steps are taken; "" if there is nothing to say."""
        return self.run.note if isinstance(self.run, Graphs) else ""

    def take(self, x: Tensor, context: Tensor | None, weight: Tensor | None, total: float, rate: float) -> Tensor:
        """One step on this process's events ``x`` (n, *event) of a batch whose weights sum to ``total``.

        Args:
            x: the events.
            context: theirs, (n, ...); None for a flow without.
            weight: theirs, (n,); None where all count alike.
            total: the sum of the weights in all processes.
            rate: the learning rate.

        Returns:
            (4,): the loss, which is the batch's mean negative log_prob; the part of its weight outside the support; 1
            if the training is to stop; and the norm of the gradient before it was clipped.

        """
        self.minus_part.fill_(-1.0 / total if total else 0.0)
        if isinstance(self.options["lr"], Tensor):
            self.options["lr"].fill_(rate)
        else:
            self.options["lr"] = rate
        self.run(x, context, weight)
        return self.gradients.outcome.clone()

    def _step(self, x: Tensor, context: Tensor | None, weight: Tensor | None) -> None:
        """The step. All it reads and writes are tensors that stay where they are, so that it can be captured."""
        gradients = self.gradients
        gradients.flat.zero_()
        if len(x):
            log_prob, outside = self._log_prob(x, context, weight)
            torch.autograd.backward(log_prob, self.minus_part)
            torch.mul(log_prob.detach(), self.minus_part, out=gradients.loss)
            if outside is not None:
                torch.mul(outside, -self.minus_part, out=gradients.outside)
        if self.mixtures is not None and self.group.rank == 0:
            self.mixtures.add_prior()
        if self.group.interrupted:
            gradients.stop.fill_(1.0)
        self.group.sum_(gradients.flat)
        gradients.clip_(self.max_grad_norm)
        with nullcontext() if self.mixtures is None else self.mixtures.careful():
            self.optimizer.step()

    def _log_prob(self, x: Tensor, context: Tensor | None, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weighted sum of log_prob over the rows of this process, and the weight of those outside the support."""
        if weight is not None:  # rows that do not count may hold anything
            counts = spread(weight != 0.0, self.flow.event_shape)
            x = torch.where(counts, x, self.flow.data_to_base.inside(x))
        log_prob = self.flow.log_prob(x, context)
        if weight is not None:
            weight = weight.to(self.dtype)
        outside = None
        if self.limited:  # the density is 0 there, whatever the weights
            beyond = ~self.flow.supports(x)
            log_prob = log_prob.masked_fill(beyond, 0.0)
            outside = (beyond if weight is None else beyond * weight).sum(dtype=self.dtype)
        if weight is None:
            return log_prob.sum(dtype=self.dtype), outside
        return (log_prob.to(self.dtype) * weight).sum(), outside


class _Gradients:
    """The gradients of ``parameters`` in one flat tensor, and four numbers after them, ``outcome``.

    These are the loss, the part of the batch's weight that lies outside the support, a call to stop, and the norm of
    the gradients. One tensor is zeroed, summed over the processes, measured and scaled at once; the parameters'
    ``grad`` are views.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        self.flat = torch.zeros(sum(sizes) + 4, dtype=parameters[0].dtype, device=parameters[0].device)
        self.gradients, self.outcome = self.flat[:-4], self.flat[-4:]
        self.loss, self.outside, self.stop, self.norm = self.outcome
        for parameter, part in zip(parameters, self.gradients.split(sizes), strict=True):
            # AdamW walks the memory of both side by side, so a gradient must lie as its parameter does.
            like = torch.empty_like(parameter)
            parameter.grad = part.as_strided(like.shape, like.stride())

    def clip_(self, most: float) -> None:
        """Scale the gradients to a norm of ``most`` if theirs is larger, and note the norm before."""
        torch.linalg.vector_norm(self.gradients, out=self.norm)
        if most < math.inf:
            self.gradients.div_((self.norm / most).clamp_(min=1.0))


class Parameters:
    """What the steps of a training move: the parameters of all mixtures as one tensor, and those of networks.

    Mixtures are many small tensors. As one, they take one operation where they would take one each. The modules'
    parameters are views of it until :meth:`release`.

    Args:
        flow: whose parameters they are.
        moved: those that are trained.
        held: the columns whose marginal mixtures are not moved.

    Attributes:
        all: the parameters for an optimizer.
        left_out: the names of mixtures that are trained as networks are, without a prior and with steps of any length:
            those that share a parameter with another one, or that compute one from others.

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
            # Two views of one tensor cannot be of two places, and a parameter that is computed is no tensor to view.
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
        """What ``weights``, a flow's state_dict, has of this kind for all mixtures, (M,)."""
        return torch.cat([weights[f"{name}.{kind}"].reshape(-1) for name, _ in self.mixtures])

    def gradients(self) -> _Gradients:
        """Memory for the gradients, which the modules' parameters then add to."""
        found = _Gradients(self.all)
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
        """The tensor (3, M), of which the modules' parameters become views."""
        values = torch.cat([parameter.detach().reshape(-1) for parameter in self._flat()]).reshape(len(KINDS), -1)
        for parameter, view in zip(self._flat(), self._views(values), strict=True):
            parameter.data = view
        return values

    def _views(self, values: Tensor) -> list[Tensor]:
        """The parts of ``values`` (3, M) of the shapes of the modules' parameters."""
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


class _Mixtures:
    r"""What is special in the steps of mixtures' own parameters: a prior, and shorter steps.

    The prior on the scales is one-sided: the narrower a component gets, the less it is worth.

    .. math:: -\frac{w}{2 N} \sum \exp(2 (p - log\_scale))

    is added to the mean log_prob, p the log scale at the start of the training and w = 0.1. A normal component with a
    variance s^2, to whose rows w rows at a distance of e^p are added, has just this term. Without it, a component on a
    value that repeats itself shrinks for ever, and the likelihood has no limit; a component of n rows now stops at
    e^p sqrt(w / n).

    The steps must not throw narrow components off what they sit on. Adam's steps are as long as the learning rate,
    whatever a component's width: one that is a thousandth of a standard deviation wide, on a value that repeats itself,
    would be thrown off that value by the first step. A location therefore moves in proportion to its component's scale
    where that is less than ``NARROW`` standard deviations. Marginal mixtures of columns that repeat their values,
    beside networks that need long steps, are not moved at all: an autoregressive flow learns 0.2 nats more of the power
    plant table for it, and 8 more of the concrete table.
    """

    def __init__(self, parameters: Parameters, start: dict[str, Tensor], rows: float) -> None:
        self.moving = parameters.moving
        self.weight = PRIOR_ROWS / max(rows, 1.0)
        self.values = parameters.all[0].detach()
        assert parameters.all[0].grad is not None
        _, self.loc, self.log_scale = self.values
        self.grad_log_scale = parameters.all[0].grad[2]
        self.scale_at_start = parameters.values_of(start, "log_scale").to(self.values).exp()
        # Where the scale is not trained, it has no prior.
        self.scale_moves = None if self.moving is None else self.moving[2]

    def add_prior(self) -> None:
        """Add the prior's part to the gradients of the loss, the negative of the mean log_prob."""
        ratio = self.scale_at_start / self.log_scale.exp()
        if self.scale_moves is not None:
            ratio *= self.scale_moves
        self.grad_log_scale.addcmul_(ratio, ratio, value=-self.weight)

    @contextmanager
    def careful(self) -> Iterator[None]:
        """Shorten the steps that the block takes."""
        part = self.log_scale.exp().div_(NARROW).clamp_(max=1.0)
        if self.moving is None:
            before = self.loc.clone()
            yield
            torch.lerp(before, self.loc, part, out=self.loc)
            return
        before = self.values.clone()
        yield
        # A number that is not moved must be what it was, whatever the optimizer made of it.
        moved = torch.where(self.moving > 0.0, self.values, before)
        torch.lerp(before[1], moved[1], part, out=moved[1])
        self.values.copy_(moved)


def trained(flow: Flow, held: Sequence[bool]) -> list[nn.Parameter]:
    """The parameters that the steps move: not those of marginal mixtures if all columns are ``held``."""
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
