"""The recipes: functions that build a flow. Model files and the command line refer to them by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..checks import check_integer
from ..networks.conditioners import Network
from ..op import BASES
from ..standard import FAMILIES
from ..transforms import (
    Affine,
    Autoregressive,
    Compose,
    Coupling,
    MixtureCDF,
    Permutation,
    Rebase,
    Rotation,
    Support,
    Transform,
    Whitening,
)
from ..transforms.base import check_name
from .base import Flow
from .gaussian_mixture import GaussianMixture
from .register import recipe

__all__ = ["autoregressive", "coupling", "gaussian_mixture", "gaussianization", "univariate"]


@recipe
def univariate(
    components: int = 16,
    family: str = "gaussian",
    base: str = "normal",
    context: int = 0,
    support: str | Sequence[Any] | None = None,
    network: Network | None = None,
    embedding: nn.Module | None = None,
    seed: int | None = None,
) -> Flow:
    """Flow for one variable: a standardisation and a mixture CDF. Its density is a mixture of ``family``.

    Args:
        components: the number of mixture components.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the base distribution, one of ``mixflow.BASES``; the density does not depend on it.
        context: the size of the context that the density depends on; 0 for none.
        support: where values can lie: "positive", a pair (low, high), or None for all numbers; or one of these for each
            feature. The density is zero outside and at the ends.
        network: builds the network of the context in place of a multilayer perceptron: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).
        embedding: a module that the context passes first, (..., anything) to (..., context); ``fit`` trains it as well.
        seed: for the networks' weights at the start. torch's global generator is then neither read nor changed.

    Raises:
        ValueError: a size is out of range, the family or base is unknown, or the support is invalid.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> flow = flows.univariate(components=4, family="logistic")
        >>> x = torch.linspace(-3, 3, 5)
        >>> z, ladj = flow.transform(x)
        >>> torch.allclose(flow.inverse(z)[0], x, atol=1e-4)
        True

    """
    mixture = MixtureCDF(1, components, family, base, context, network)
    return Flow(Compose(*_standardised(1, support), mixture), base, embedding)


@recipe
def gaussianization(
    features: int,
    layers: int = 12,
    components: int = 16,
    family: str = "gaussian",
    base: str = "normal",
    context: int = 0,
    support: str | Sequence[Any] | None = None,
    network: Network | None = None,
    embedding: nn.Module | None = None,
    seed: int | None = None,
) -> Flow:
    """Flow of marginal mixture CDFs and rotations in turn, which make any data normal step by step.

    The method is that of Chen and Gopinath, "Gaussianization" (2000), trained as in Meng et al., "Gaussianization
    Flows" (2020, arXiv:2003.01941). ``fit`` first calls ``initialize``, which sets one layer after the other from the
    data as the layers before it return them: marginals from quantiles, rotations by
    :func:`~mixflow.start.directions.interesting_directions`. That alone is already a density. Maximum likelihood then
    improves all layers together. Both directions are fast. Without a context there is no network.

    Args:
        features: D.
        layers: the number of marginal transforms; there is a rotation between any two.
        components: the number of components of each marginal mixture.
        family: the components' distribution, one of ``mixflow.FAMILIES``. If its variance is infinite, only the first
            layer, which sees the data, has it; the layers behind it are Gaussian.
        base: the base distribution, one of ``mixflow.BASES``; the density does not depend on it.
        context: the size of the context that the density depends on; 0 for none.
        support: where values can lie: "positive", a pair (low, high), or None for all numbers; or one of these for each
            feature. The density is zero outside and at the ends.
        network: builds the network of the context in place of a multilayer perceptron: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).
        embedding: a module that the context passes first, (..., anything) to (..., context); ``fit`` trains it as well.
        seed: for the networks' weights at the start. torch's global generator is then neither read nor changed.

    Raises:
        ValueError: a size is out of range, the family or base is unknown, or the support is invalid.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> x = torch.cat([x, x**2], dim=1)
        >>> flow = flows.gaussianization(features=2)
        >>> flow.initialize(x)
        >>> flow.sample(5, seed=0).shape
        torch.Size([5, 2])

    """
    parts = _standardised(features, support)
    of_layer = [family] + [_inner_family(family)] * (_check_layers(layers) - 1)
    for layer, own in enumerate(of_layer[:-1]):
        parts.append(MixtureCDF(features, components, own, "normal", context, network))
        parts += [Rotation(features)] if layer else [Whitening(features), Rotation(features)]
    last = MixtureCDF(features, components, of_layer[-1], base, context, network)
    return Flow(Compose(*parts, last), base, embedding)


@recipe
def coupling(
    features: int,
    layers: int = 6,
    components: int = 8,
    hidden: Sequence[int] | None = None,
    family: str = "logistic",
    base: str = "normal",
    context: int = 0,
    marginal_components: int | None = None,
    support: str | Sequence[Any] | None = None,
    network: Network | None = None,
    embedding: nn.Module | None = None,
    seed: int | None = None,
) -> Flow:
    """Flow of mixture-CDF couplings, as in Ho et al., "Flow++" (2019, arXiv:1902.00275). Both directions are fast.

    A coupling splits the features by a binary digit of their index. The digit and its value change from layer to layer,
    so that any two features are in different halves in some layer. A marginal mixture CDF comes before the couplings;
    ``initialize`` sets it from the data.

    Args:
        features: D, at least 2.
        layers: the number of couplings.
        components: the number of components of each mixture.
        hidden: widths of the hidden layers of each coupling's network, by default (64, 64).
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the base distribution, one of ``mixflow.BASES``; the density does not depend on it.
        context: the size of the context that the density depends on; 0 for none.
        marginal_components: the number of components of the marginal mixtures. By default ``fit`` takes as many as
            left-out rows support: at most one for 30 rows, and at most 256.
        support: where values can lie: "positive", a pair (low, high), or None for all numbers; or one of these for each
            feature. The density is zero outside and at the ends.
        network: builds each layer's network in place of the one that ``hidden`` describes: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).
        embedding: a module that the context passes first, (..., anything) to (..., context); ``fit`` trains it as well.
        seed: for the networks' weights at the start. torch's global generator is then neither read nor changed.

    Raises:
        TypeError: ``network`` does not build a module, or the embedding is not a module.
        ValueError: a size is out of range, the family or base is unknown, the support is invalid, or both ``hidden``
            and ``network`` are given.

    Example:
        >>> from mixflow import flows
        >>> flow = flows.coupling(features=5, layers=2, hidden=(16,))
        >>> flow.sample(3, seed=0).shape
        torch.Size([3, 5])

    """
    parts = _marginals(features, marginal_components, support)
    digits = max(1, (parts[0].features - 1).bit_length())
    for layer in range(_check_layers(layers)):
        mask = [(index >> layer // 2 % digits) % 2 == layer % 2 for index in range(parts[0].features)]
        parts.append(Coupling(features, components, hidden, mask=mask, family=family, context=context, network=network))
    return _from_normal(parts, base, embedding)


@recipe
def autoregressive(
    features: int,
    layers: int = 2,
    components: int = 16,
    hidden: Sequence[int] | None = None,
    family: str = "logistic",
    base: str = "normal",
    context: int = 0,
    marginal_components: int | None = None,
    support: str | Sequence[Any] | None = None,
    network: Network | None = None,
    embedding: nn.Module | None = None,
    seed: int | None = None,
) -> Flow:
    """Flow of autoregressive mixture CDFs. The order of the features is reversed from layer to layer.

    The method is that of Huang et al., "Neural Autoregressive Flows" (2018, arXiv:1804.00779). ``log_prob`` takes one
    pass of each network. Samples take the same work, in D parts. A marginal mixture CDF comes before the layers;
    ``initialize`` sets it from the data.

    Args:
        features: D.
        layers: the number of autoregressive transforms.
        components: the number of components of each mixture.
        hidden: widths of the hidden layers of each transform's network, by default (64, 64).
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the base distribution, one of ``mixflow.BASES``; the density does not depend on it.
        context: the size of the context that the density depends on; 0 for none.
        marginal_components: the number of components of the marginal mixtures. By default ``fit`` takes as many as
            left-out rows support: at most one for 30 rows, and at most 256.
        support: where values can lie: "positive", a pair (low, high), or None for all numbers; or one of these for each
            feature. The density is zero outside and at the ends.
        network: builds each layer's network in place of the one that ``hidden`` describes: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).
        embedding: a module that the context passes first, (..., anything) to (..., context); ``fit`` trains it as well.
        seed: for the networks' weights at the start. torch's global generator is then neither read nor changed.

    Raises:
        TypeError: ``network`` does not build a module, or the embedding is not a module.
        ValueError: a size is out of range, the family or base is unknown, the support is invalid, or both ``hidden``
            and ``network`` are given.

    Example:
        >>> from mixflow import flows
        >>> flow = flows.autoregressive(features=5, layers=2, hidden=(16,))
        >>> flow.sample(3, seed=0).shape
        torch.Size([3, 5])

    """
    parts = _marginals(features, marginal_components, support)
    for layer in range(_check_layers(layers)):
        if layer:
            parts.append(Permutation(range(features - 1, -1, -1)))
        parts.append(Autoregressive(features, components, hidden, family=family, context=context, network=network))
    return _from_normal(parts, base, embedding)


def _check_layers(layers: int) -> int:
    # The bound keeps a forged model file from making the loader work for ever.
    return check_integer("layers", layers, 1, 1000)


def _inner_family(family: str) -> str:
    """The family of layers behind the first one, whose data are about normal.

    Heavy tails there would be put on heavy tails: a sample in which one layer draws 20 asks the next one for the
    quantile at 20 standard deviations, which overflows.
    """
    return family if family not in FAMILIES or math.isfinite(FAMILIES[family].variance) else "gaussian"


def _standardised(features: int, support: str | Sequence[Any] | None) -> list[Transform]:
    """A map from the data's support to the real line, if there is a support, and the standardisation."""
    standardise = Affine(features, trainable=False)
    return [standardise] if support is None else [Support(features, support), standardise]


def _marginals(features: int, components: int | None, support: str | Sequence[Any] | None) -> list[Transform]:
    """Standardisation, marginal mixture CDFs and a whitening; :mod:`mixflow.flows.initialize` sets them from the data.

    So edges and peaks of the density are there before any training. ``fit`` may choose the number of components. The
    components are Gaussian, like the base: a single component is then an affine map, which does not change linear
    dependence between features.
    """
    count = 32 if components is None else check_integer("marginal_components", components, 1)
    marginals = MixtureCDF(features, count)
    marginals.follows_rows, marginals.is_marginal = components is None, True
    return [*_standardised(features, support), marginals, Whitening(features)]


def _from_normal(parts: list[Transform], base: str, embedding: nn.Module | None) -> Flow:
    """The flow of ``parts``, which map to the normal, with another ``base``. The density does not depend on it."""
    if check_name("base", base, BASES) != "normal":
        parts = [*parts, Rebase(parts[0].features, "normal", base)]
    return Flow(Compose(*parts), base, embedding)


@recipe
def gaussian_mixture(
    features: int,
    components: int = 8,
    context: int = 0,
    support: str | Sequence[Any] | None = None,
    network: Network | None = None,
    embedding: nn.Module | None = None,
    seed: int | None = None,
) -> Flow:
    """The Gaussian mixture with full covariances, as a baseline: expectation maximisation, then training as usual.

    Args:
        features: D.
        components: the number of components.
        context: the size of the context that the density depends on; 0 for none.
        support: where values can lie: "positive", a pair (low, high), or None for all numbers; or one of these for each
            feature. The density is zero outside and at the ends.
        network: builds the network of the context in place of a multilayer perceptron: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).
        embedding: a module that the context passes first, (..., anything) to (..., context); ``fit`` trains it as well.
        seed: for the networks' weights at the start. torch's global generator is then neither read nor changed.

    Raises:
        ValueError: a size is out of range.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> flow = flows.gaussian_mixture(features=2, components=3)
        >>> flow.log_prob(torch.zeros(1, 2)).exp()
        tensor([0.1592], grad_fn=<ExpBackward0>)

    """
    return GaussianMixture(features, components, context, support, network, embedding)
