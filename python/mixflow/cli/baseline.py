"""One Gaussian as a baseline: fitted to the training rows of a flow and scored on its held-out rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ..fitting.parallel import Group
from ..fitting.sources import CHUNK, Subset
from ..fitting.split import open_split
from ..flows import Flow, like
from ..start.gaussian import gaussian

__all__ = ["one_gaussian"]

_MOST_COLUMNS = 200  # with more columns, the Gaussian takes seconds


def one_gaussian(
    flow: Flow, data: Any, context: Any, weights: Any, validation: float | None, seed: int
) -> float | None:
    """The mean log_prob in nats of one Gaussian on the rows that :func:`mixflow.fit` holds out of ``data``.

    With a context, a Gaussian is fitted to columns and contexts together, and conditioned on the contexts. Its mean is
    linear in them, and its covariance does not depend on them.

    Args:
        flow: the fitted flow.
        data: (N, D), as for ``fit``.
        context: (N, C) or None, as for ``fit``.
        weights: (N,) or None, as for ``fit``.
        validation: the fraction of rows that is held out.
        seed: the seed that chooses these rows.

    Returns:
        The mean log_prob. None if it cannot be compared with that of the flow: without held-out rows, for a flow with a
        support, whose score leaves rows out, for images, and for more than 200 columns.

    """
    columns = flow.features + flow.context
    if (
        flow.data_to_base.is_limited
        or len(flow.event_shape) > 1
        or flow.embedding is not None
        or columns > _MOST_COLUMNS
    ):
        return None
    own = torch.empty(0, dtype=like(flow).dtype)
    split = open_split(flow, data, context, weights, validation, seed, own, None)
    if not isinstance(split.valid, Subset):
        return None
    _, x, given = split.first(Group())
    loc, covariance = gaussian(_joined(x, given))
    total = weight = 0.0
    for batch in split.valid.batches(CHUNK, Group()):
        rows = _joined(batch.x, batch.context)
        log_prob = _normal(loc, covariance).log_prob(rows)
        if given is not None:
            inner = slice(flow.features, None)
            log_prob = log_prob - _normal(loc[inner], covariance[inner, inner]).log_prob(rows[:, inner])
        weighted = log_prob if batch.weight is None else log_prob * batch.weight
        total, weight = total + weighted.sum().item(), weight + batch.total
    return total / weight


def _joined(x: Tensor, context: Tensor | None) -> Tensor:
    return x.double() if context is None else torch.cat([x.double(), context.double()], dim=-1)


def _normal(loc: Tensor, covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal(loc, covariance, validate_args=False)
