"""From one distribution to another."""

from __future__ import annotations

from ..op import BASES
from ..transforms import Compose, Inverse, Rebase, Transform
from .base import Flow

__all__ = ["transport"]


def transport(source: Flow, target: Flow) -> Transform:
    r"""The transform that turns ``x`` distributed as ``source`` into ``y`` distributed as ``target``.

    .. math:: y = T_{target}^{-1}(R(T_{source}(x)))

    If the two flows have different bases, R maps one base to the other with equal probabilities
    (:class:`~mixflow.transforms.Rebase`). Otherwise R is the identity and left out. With one feature this is the
    increasing map :math:`F_{target}^{-1}(F_{source}(x))`, the optimal transport for every convex cost.

    Args:
        source: a flow with a map to one of ``mixflow.BASES``.
        target: another such flow, with as many features.

    Returns:
        A transform that shares its parameters with both flows; ``ladj`` is ``log |det dy/dx|``.

    Raises:
        TypeError: an argument is not a Flow.
        ValueError: features or contexts disagree, a flow has no map to one of ``mixflow.BASES``, or it has an
            embedding.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> source, target = flows.univariate(components=3), flows.univariate(components=5, base="logistic")
        >>> y, ladj = flows.transport(source, target)(torch.zeros(4, 1))
        >>> y.shape, ladj.shape
        (torch.Size([4, 1]), torch.Size([4]))

    """
    for name, flow in (("source", source), ("target", target)):
        if not isinstance(flow, Flow):
            raise TypeError(f"{name}: expected a Flow, got {type(flow).__name__}")
        if flow.base not in BASES:
            raise ValueError(
                f"{name}: expected a flow with a map to one of {', '.join(BASES)}, got a {type(flow).__name__}, "
                "whose base is a distribution of its own"
            )
        if flow.embedding is not None:
            raise ValueError(
                f"{name}: expected a flow without an embedding, as a transform has none, got one with a "
                f"{type(flow.embedding).__name__}"
            )
    if source.features != target.features:
        raise ValueError(f"target: expected {source.features} features, as many as source, got {target.features}")
    between = [] if source.base == target.base else [Rebase(source.features, source.base, target.base)]
    return Compose(source.data_to_base, *between, Inverse(target.data_to_base))
