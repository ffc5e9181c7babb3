"""Flows as other code calls them: shapes of samples and contexts, gradients of samples, numpy, modules of one's own."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import constraints, kl_divergence

import mixflow
from mixflow import flows, transforms
from mixflow.flows import Flow
from mixflow.flows.distribution import FlowDistribution
from mixflow.transforms import Affine, Compose, MixtureCDF

D, C = 3, 2
RECIPES = {
    "univariate": lambda **more: flows.univariate(3, seed=0, **more),
    "gaussianization": lambda **more: flows.gaussianization(D, 3, 3, seed=0, **more),
    "coupling": lambda **more: flows.coupling(D, 2, 3, marginal_components=3, seed=0, **more),
    "autoregressive": lambda **more: flows.autoregressive(D, 2, 3, marginal_components=3, seed=0, **more),
    "gaussian_mixture": lambda **more: flows.gaussian_mixture(D, 3, seed=0, **more),
}


@pytest.fixture(params=RECIPES)
def name(request):
    return request.param


def made(name, device="cpu", **more):
    """A flow with parameters at random, so that nothing holds by symmetry."""
    flow = RECIPES[name](**more).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return flow.to(device)


def draw(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


# -- shapes --------------------------------------------------------------------------------------------------

SHAPES = {
    "a number": (5, (), (5,)),
    "a shape": ((2, 3), (), (2, 3)),
    "one": ((), (), ()),
    "none": (0, (), (0,)),
    "a batch of contexts": (5, (4,), (5, 4)),
    "one for each context": ((), (4,), (4,)),
    "contexts with several axes": ((2, 3), (4, 1), (2, 3, 4, 1)),
    "no contexts": (5, (0,), (5, 0)),
}


@pytest.mark.parametrize("case", SHAPES)
def test_samples_have_the_shape_of_n_then_that_of_the_contexts(name, case, device):
    n, batch, expected = SHAPES[case]
    flow = made(name, device, context=C)
    context = draw(*batch, C, device=device)
    event = (flow.features,)
    assert flow.sample(n, context).shape == expected + event
    for x, log_prob in (flow.sample_and_log_prob(n, context, seed=1), flow.rsample_and_log_prob(n, context, seed=1)):
        assert (x.shape, log_prob.shape) == (expected + event, expected)
        # Of one feature, (1,) counts as one value of (N,).
        torch.testing.assert_close(log_prob, flow.log_prob(x, context).reshape(expected))
        torch.testing.assert_close(x, flow.sample(n, context, seed=1))
        assert torch.equal(x, flow.rsample(n, context, seed=1))


def test_samples_without_a_context_have_the_shape_of_n(name, device):
    flow = made(name, device)
    for n, expected in ((5, (5,)), ((2, 3), (2, 3)), ([2], (2,)), ((), ()), (torch.Size([1, 2]), (1, 2))):
        assert flow.sample(n).shape == (*expected, flow.features)
    assert flow.sample().shape == (flow.features,)


def test_x_and_context_broadcast_against_each_other_both_ways(name, device):
    flow = made(name, device, context=C)
    features = flow.features
    x, context = draw(5, features, device=device), draw(4, 1, C, seed=1, device=device)
    whole = x.expand(4, 5, features), context.expand(4, 5, C)
    for call in (flow.log_prob, flow.transform, flow.inverse, flow):
        torch.testing.assert_close(call(x, context), call(*whole))
        torch.testing.assert_close(call(x[:1], context[:, 0]), call(x[:1].expand(4, -1), context[:, 0]))
        torch.testing.assert_close(call(x, context[0, 0]), call(x, context[0].expand(5, C)))
    with pytest.raises(ValueError, match=r"context: expected a batch shape that broadcasts against \(5,\), that of x"):
        flow.log_prob(x, draw(3, C, device=device))


def test_each_context_has_samples_of_its_own(name, device):
    flow = made(name, device, context=C)
    context = draw(2, C, device=device)
    x = flow.sample(4000, context, seed=0)
    for index in range(2):
        # The two-sample energy distance is not needed: the samples' own density is the sharpest test of a context.
        own, other = flow.log_prob(x[:, index], context[index]), flow.log_prob(x[:, index], context[1 - index])
        difference = own - other
        assert difference.mean() > 4.0 * difference.std() / math.sqrt(len(difference))


def test_calling_a_flow_is_its_log_prob(name, device):
    flow = made(name, device)
    x = draw(5, flow.features, device=device)
    assert torch.equal(flow(x), flow.log_prob(x))


# -- gradients of samples ------------------------------------------------------------------------------------


def test_gradients_of_samples_are_those_of_finite_differences(name):
    flow = made(name, context=C)
    names, values = zip(*flow.named_parameters(), strict=True)
    context = draw(2, C)

    def sampled(context, *parameters):
        with torch.nn.utils.stateless._reparametrize_module(flow, dict(zip(names, parameters, strict=True))):
            x, log_prob = flow.rsample_and_log_prob(2, context, seed=3)
        return torch.cat([x.flatten(), log_prob.flatten()])

    arguments = [value.detach().requires_grad_() for value in (context, *values)]
    assert torch.autograd.gradcheck(sampled, arguments, fast_mode=True, atol=1e-6)


def test_gradients_of_samples_lead_to_the_target(device):
    """The reverse KL divergence to a known normal falls to zero, as in variational inference."""
    target = torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0], device=device), torch.tensor([[1.0, 0.6], [0.6, 0.5]], device=device)
    )
    flow = flows.gaussian_mixture(2, 1, seed=0).to(device)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(300):
        x, log_prob = flow.rsample_and_log_prob(256, generator=generator)
        loss = (log_prob - target.log_prob(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fitted = flow.distribution().component_distribution
    single = torch.distributions.MultivariateNormal(fitted.loc[0], scale_tril=fitted.scale_tril[0])
    assert kl_divergence(single, target) < 1e-3


def test_samples_of_a_gaussian_mixture_follow_its_density(device):
    flow = made("gaussian_mixture", device)
    x = flow.sample(200_000, seed=0)
    expected = flow.distribution()
    error = expected.variance.sqrt() / math.sqrt(len(x))
    assert ((x.mean(0) - expected.mean).abs() < 5.0 * error).all()
    # The density of the samples has the mean -entropy, which a grid of the same mixture's own components gives, too.
    by_component = expected.component_distribution.sample((100_000,))
    which = expected.mixture_distribution.sample((100_000,))
    other = by_component[torch.arange(len(which), device=device), which]
    scores, others = flow.log_prob(x), flow.log_prob(other)
    spread = math.sqrt(scores.var().item() / len(scores) + others.var().item() / len(others))
    assert abs(scores.mean() - others.mean()) < 5.0 * spread


# -- what was fitted -----------------------------------------------------------------------------------------


def in_units(loc, scale, dtype=torch.float64):
    flow = made("univariate").to(dtype)
    flow.data_to_base.each()[0].initialize(loc + scale * draw(100, 1))
    return flow


def test_one_feature_gives_a_mixture_in_the_units_of_the_data():
    flow = in_units(1000.0, 5.0)
    fitted = flow.distribution()
    assert isinstance(fitted, mixflow.Mixture)
    x = 1000.0 + 5.0 * draw(20)
    torch.testing.assert_close(fitted.log_prob(x), flow.log_prob(x))
    torch.testing.assert_close(fitted.cdf(x), torch.special.ndtr(flow.transform(x)[0]))
    assert abs(flow.sample(100_000, seed=0).mean() - fitted.mean) < 5.0 * fitted.stddev / math.sqrt(100_000)
    fitted.variance.backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_a_mixture_of_wide_offsets_is_in_a_dtype_that_can_hold_them():
    flow = in_units(1.7e9, 10.0).to(torch.float32)
    fitted = flow.distribution()
    assert fitted.loc.dtype == torch.float64
    x = 1.7e9 + 10.0 * draw(20)
    torch.testing.assert_close(fitted.log_prob(x).float(), flow.log_prob(x), rtol=1e-4, atol=1e-4)


def test_a_context_gives_a_batch_of_mixtures():
    flow = made("univariate", context=C)
    context, x = draw(4, C), draw(5, 1)
    fitted = flow.distribution(context)
    assert fitted.batch_shape == (4,)
    torch.testing.assert_close(fitted.log_prob(x), flow.log_prob(x.unsqueeze(-1), context))


@pytest.mark.parametrize("batch", [None, (), (4,)])
def test_a_gaussian_mixture_gives_torchs_own(batch):
    flow = made("gaussian_mixture", context=0 if batch is None else C)
    flow.data_to_base.initialize(100.0 + draw(50, D) * torch.tensor([1.0, 10.0, 0.1]))
    context = None if batch is None else draw(*batch, C)
    fitted = flow.distribution(context)
    assert isinstance(fitted, torch.distributions.MixtureSameFamily)
    assert fitted.batch_shape == (batch or ())
    x = flow.sample(20, context)
    torch.testing.assert_close(fitted.log_prob(x), flow.log_prob(x, context))


@pytest.mark.parametrize("name", ["gaussianization", "coupling", "autoregressive"])
def test_other_flows_give_a_distribution_that_torch_knows(name):
    flow = made(name, context=C)
    context = draw(4, C)
    fitted = flow.distribution(context)
    assert isinstance(fitted, FlowDistribution)
    assert (fitted.batch_shape, fitted.event_shape) == ((4,), (D,))
    x = fitted.rsample((5,))
    assert x.requires_grad
    assert not fitted.sample().requires_grad
    torch.testing.assert_close(fitted.log_prob(x), flow.log_prob(x, context))
    larger = fitted.expand((6, 4))
    assert (larger.sample((5,)).shape, larger.log_prob(x[0]).shape) == ((5, 6, 4, D), (6, 4))
    alone = made(name).distribution().expand((6,))
    assert (alone.sample((5,)).shape, alone.log_prob(x[0, 0]).shape) == ((5, 6, D), (6,))
    with pytest.raises(ValueError, match="batch_shape: expected one to which"):
        fitted.expand((3,))
    with pytest.raises(NotImplementedError, match="one feature"):
        fitted.cdf(x)
    with pytest.raises(ValueError, match="support"):
        FlowDistribution(flow, context, validate_args=True).log_prob(torch.full((4, D), math.nan))


def test_a_flow_on_an_interval_has_a_cdf_and_quantiles_there():
    flow = made("univariate", support=(2.0, 5.0))
    fitted = flow.distribution()
    u = torch.tensor([[1e-6], [0.3], [0.5], [0.99]], dtype=torch.float64)
    x = fitted.icdf(u)
    assert ((x > 2.0) & (x < 5.0)).all()
    torch.testing.assert_close(fitted.cdf(x), u)
    torch.testing.assert_close(fitted.icdf(0.5), x[2])
    # The slope of the CDF is the density.
    leaf = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(fitted.cdf(leaf).sum(), leaf)
    torch.testing.assert_close(slope.log().squeeze(-1), flow.log_prob(x))
    assert fitted.support.check(torch.tensor([[1.0], [3.0]])).tolist() == [False, True]
    beyond = torch.tensor([[-math.inf], [1.0], [2.0], [5.0], [9.0], [math.inf], [math.nan]])
    assert fitted.cdf(beyond).flatten().tolist()[:-1] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert fitted.cdf(beyond)[-1].isnan()
    assert made("coupling").distribution().support.check(torch.zeros(D))
    assert isinstance(made("coupling").distribution().support, type(constraints.independent(constraints.real, 1)))


def test_a_decreasing_flow_has_an_increasing_cdf():
    turned = Compose(transforms.Rotation(1, start=-torch.ones(1, 1)), Affine(1, loc=1.0), MixtureCDF(1, 3))
    fitted = Flow(turned.double()).distribution()
    x = torch.tensor([[-2.0], [-1.0], [0.5]], dtype=torch.float64)
    assert (fitted.cdf(x).diff(dim=0) > 0.0).all()
    torch.testing.assert_close(fitted.icdf(fitted.cdf(x)), x)


# -- numpy, dtypes, autocast ---------------------------------------------------------------------------------


def test_numpy_arrays_give_numpy_arrays(name, device):
    flow = made(name, device, context=C)
    x, context = draw(5, flow.features).numpy(), draw(5, C).numpy()
    tensors = [torch.from_numpy(values).to(device) for values in (x, context)]
    for call in (flow.log_prob, flow.transform, flow.inverse, flow):
        found, expected = call(x, context), call(*tensors)
        for array, tensor in zip(*((v if isinstance(v, tuple) else (v,)) for v in (found, expected)), strict=True):
            assert isinstance(array, np.ndarray)
            np.testing.assert_array_equal(array, tensor.detach().cpu().numpy())
    np.testing.assert_array_equal(flow.supports(x), np.ones(5, dtype=bool))
    np.testing.assert_array_equal(flow.sample(3, context, seed=0), flow.sample(3, tensors[1], seed=0).cpu().numpy())
    reversed_rows = x[::-1].astype(">f8")
    np.testing.assert_allclose(flow.log_prob(reversed_rows, context[::-1]), flow.log_prob(x, context)[::-1], rtol=1e-12)


BAD_ARRAYS = {
    "integers": (TypeError, "x: expected a float16, float32 or float64 array, got int64", np.zeros((5, D), int)),
    "masked": (TypeError, "x: expected a numpy array, like the others, got MaskedArray", np.ma.zeros((5, D))),
    "features": (ValueError, r"x: expected shape \(\.\.\., 3\), got \(5, 2\)", np.zeros((5, 2))),
    "a list": (TypeError, r"x: expected a torch\.Tensor or a numpy array, got list", [[0.0] * D]),
    "integer tensor": (TypeError, r"x: expected floating-point numbers, got torch\.int64", torch.zeros(5, D).long()),
}


@pytest.mark.parametrize("bad", BAD_ARRAYS)
def test_bad_values_are_named(bad):
    error, message, x = BAD_ARRAYS[bad]
    with pytest.raises(error, match=message):
        made("coupling").log_prob(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_dtype_is_taken(name, dtype, device):
    flow = made(name, device).float()
    x = draw(5, flow.features, device=device).to(dtype)
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x.float()))
    torch.testing.assert_close(flow.inverse(x), flow.inverse(x.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_networks_alone(name, dtype, device):
    flow = RECIPES[name]()
    x = draw(300, flow.features).float()
    flow.initialize(x)
    flow, x = flow.to(device), x.to(device)
    expected = flow.log_prob(x)
    with torch.autocast(device.type, dtype=dtype):
        log_prob, (z, _) = flow.log_prob(x), flow.transform(x)
        back = flow.inverse(z)[0]
        assert flow.sample(3).dtype == torch.float32
        mixflow.fit(flow, x, epochs=1, progress=False)
    if not any(isinstance(module, nn.Linear) for module in flow.modules()):
        torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


# -- seeds ---------------------------------------------------------------------------------------------------


def weights_of(flow):
    return torch.cat([value.flatten() for value in flow.state_dict().values()])


def test_the_seed_of_a_recipe_names_its_weights_and_leaves_the_global_generator(name):
    assert "seed" in inspect.signature(getattr(flows, name)).parameters
    build = lambda seed: RECIPES[name](context=C) if seed == 0 else _reseeded(name, seed)  # noqa: E731
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = build(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(weights_of(first), weights_of(build(0)))
    assert not torch.equal(weights_of(first), weights_of(build(1)))
    assert "seed" not in first.recipe.arguments


def _reseeded(name, seed):
    recipe = RECIPES[name](context=C).recipe
    return getattr(flows, name)(**recipe.arguments, seed=seed)


def test_without_a_seed_weights_come_from_the_global_generator():
    torch.manual_seed(7)
    first = flows.coupling(2, 1)
    torch.manual_seed(7)
    assert torch.equal(weights_of(first), weights_of(flows.coupling(2, 1)))
    assert not torch.equal(weights_of(first), weights_of(flows.coupling(2, 1)))
    with pytest.raises(ValueError, match="seed: expected an integer"):
        flows.coupling(2, 1, seed=0.5)


# -- rows left out of a loss ---------------------------------------------------------------------------------


def gradients_of(flow, loss):
    parameters = list(flow.parameters())
    return torch.autograd.grad(loss, parameters, allow_unused=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "context"])
def test_rows_left_out_of_a_loss_add_nothing_to_any_gradient(name, bad, where, device):
    flow = made(name, device, context=C)
    x, context = draw(8, flow.features, device=device), draw(8, C, seed=1, device=device)
    if where == "context" and not math.isnan(bad):
        return  # networks see bounded inputs: an infinite context is one like any other
    spoiled = {"x": x.clone(), "context": context.clone()}
    spoiled[where][3, 0] = bad
    spoiled[where][5] = bad
    seen = torch.ones(8, dtype=torch.bool, device=device)
    seen[[3, 5]] = False
    leaf = spoiled["x"].requires_grad_()
    log_prob = flow.log_prob(leaf, spoiled["context"])
    left = log_prob[~seen]
    assert (left.isnan() if math.isnan(bad) else left == -math.inf).all()
    loss = torch.where(seen, log_prob, 0.0).sum()
    expected = gradients_of(flow, flow.log_prob(x[seen], context[seen]).sum())
    torch.testing.assert_close(gradients_of(flow, loss), expected, rtol=1e-9, atol=1e-12)
    loss = torch.where(seen, flow.log_prob(leaf, spoiled["context"]), 0.0).sum()
    assert (torch.autograd.grad(loss, leaf)[0][~seen] == 0.0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_with_a_bad_context_before_an_embedding_add_nothing(name, bad):
    flow = made(name, context=C, embedding=nn.Linear(4, C))
    x, context = draw(8, flow.features), draw(8, 4, seed=1)
    seen = torch.arange(8) != 3
    expected = gradients_of(flow, flow.log_prob(x[seen], context[seen]).sum())
    context[3, 2] = bad
    log_prob = flow.log_prob(x, context)
    assert log_prob[3].isnan()
    torch.testing.assert_close(gradients_of(flow, torch.where(seen, log_prob, 0.0).sum()), expected)


def test_rows_of_nan_are_nan_in_both_directions_and_add_nothing(name, device):
    flow = made(name, device)
    z = draw(8, flow.features, device=device)
    z[2, 0] = math.nan
    seen = torch.arange(8, device=device) != 2
    for direction in (flow.transform, flow.inverse):
        value, ladj = direction(z)
        assert value[2].isnan().all()
        assert ladj[2].isnan()
        loss = torch.where(seen.unsqueeze(-1), value, 0.0).sum() + torch.where(seen, ladj, 0.0).sum()
        if not loss.requires_grad:
            continue
        value, ladj = direction(z[seen])
        torch.testing.assert_close(
            gradients_of(flow, loss), gradients_of(flow, value.sum() + ladj.sum()), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("far", [1e20, -1e34, 3e38])
@pytest.mark.parametrize("name", ["gaussianization", "coupling", "autoregressive", "gaussian_mixture"])
def test_a_fill_value_whose_square_overflows_adds_nothing(name, far):
    flow = RECIPES[name]()
    x = draw(200, D).float()
    flow.initialize(x)
    x = x[:4].clone()
    expected = gradients_of(flow, flow.log_prob(x[1:]).sum())
    x[0, 1] = far
    loss = flow.log_prob(x)[1:].sum()
    torch.testing.assert_close(gradients_of(flow, loss), expected)


@pytest.mark.parametrize("name", ["gaussianization", "coupling", "autoregressive"])
@pytest.mark.parametrize("bad", [math.inf, 0.0, -3.0, 4.0, 100.0])
def test_rows_without_a_finite_image_add_nothing(name, bad):
    flow = made(name, support=(0.0, 4.0))
    x = draw(4, D).sigmoid()
    expected = gradients_of(flow, sum(value[1:].sum() for value in flow.transform(x)))
    x[0, 1] = bad
    found = flow.transform(x)
    assert not found[1][0].isfinite()
    torch.testing.assert_close(gradients_of(flow, sum(value[1:].sum() for value in found)), expected)


def test_rows_outside_the_support_are_left_out_of_a_start():
    x = draw(200, 1).sigmoid()
    flow, other = (flows.univariate(3, support=(0.0, 1.0)).double() for _ in range(2))
    other.initialize(x)
    flow.initialize(torch.cat([x, torch.tensor([[0.0], [1.0]])]))
    assert torch.equal(flow.log_prob(x), other.log_prob(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_flow_can_be_traced():
    for support in (None, "positive"):
        flow = flows.coupling(D, 1, support=support, seed=0)
        x = draw(8, D).float().exp()
        traced = torch.jit.trace(flow, x)
        torch.testing.assert_close(traced(x[:3]), flow(x[:3]))


def test_a_row_whose_image_overflows_adds_nothing():
    flow = flows.univariate(3, seed=0)
    x = torch.tensor([0.3, 3e38, -0.2])
    with torch.no_grad():
        flow.data_to_base.each()[1].log_scale.sub_(5.0)
    log_prob = flow.log_prob(x)
    assert log_prob[1] == -math.inf
    seen = log_prob.isfinite()
    expected = gradients_of(flow, flow.log_prob(x[seen]).sum())
    torch.testing.assert_close(gradients_of(flow, torch.where(seen, flow.log_prob(x), 0.0).sum()), expected)


# -- modules of one's own ------------------------------------------------------------------------------------


def mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


OWN = {
    "coupling": lambda **more: transforms.Coupling(D, 3, network=mlp, **more),
    "autoregressive": lambda **more: transforms.Autoregressive(D, 3, network=mlp, **more),
    "mixture": lambda **more: transforms.MixtureCDF(D, 3, network=mlp, **{"context": C} | more),
}


def moved(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("context", [0, C])
def test_a_transform_takes_a_network_of_ones_own(own, context):
    if own == "mixture" and not context:
        return  # it has a network for a context alone
    torch.manual_seed(0)
    transform = OWN[own](context=context).double()
    assert any(isinstance(module, nn.ReLU) for module in transform.modules())
    x, given = draw(4, 2, D), draw(2, C, seed=1) if context else None
    start, _ = transform(x, given)
    if own != "mixture":
        torch.testing.assert_close(start, x, atol=0.05, rtol=0.0)
    moved(transform)
    z, ladj = transform(x, given)
    assert not torch.allclose(z, start, atol=1e-3)
    back, inverse_ladj = transform.inverse(z, given)
    torch.testing.assert_close((back, inverse_ladj), (x, -ladj))
    row = x[0, 0]
    jacobian = torch.autograd.functional.jacobian(
        lambda row: transform(row, None if given is None else given[0])[0], row
    )
    torch.testing.assert_close(jacobian.slogdet().logabsdet, ladj[0, 0])
    if own == "autoregressive":
        assert (jacobian.triu(1) == 0.0).all()


def test_any_network_makes_an_autoregressive_transform_that_uses_all_features_before():
    transform = moved(transforms.Autoregressive(D, 2, network=mlp).double())
    jacobian = torch.autograd.functional.jacobian(lambda row: transform(row)[0], draw(D))
    assert (jacobian.tril(-1)[torch.tril_indices(D, D, -1).unbind()] != 0.0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_fit_trains_a_network_and_an_embedding_of_ones_own(name):
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Flatten(-2), nn.Linear(6, C))
    flow = RECIPES[name](context=C, network=mlp, embedding=embedding)
    series = draw(600, 3, 2)
    x = draw(600, flow.features, seed=1) * 0.3 + series[:, 1, :1]
    before = embedding[1].weight.clone()
    history = mixflow.fit(flow, x, context=series, epochs=150, progress=False, validation=0.2)
    assert not torch.equal(before, embedding[1].weight)
    assert history.best_epoch is not None
    # Rows given another's series are much less likely.
    own, other = flow.log_prob(x, series).mean(), flow.log_prob(x, series.roll(1, 0)).mean()
    assert own > other + 1.0
    assert flow.sample(5, series[:4].float()).shape == (5, 4, flow.features)
    assert flow.sample((), series[:4].numpy()).shape == (4, flow.features)


def test_an_embedding_takes_labels():
    torch.manual_seed(0)
    flow = flows.coupling(D, 1, context=C, embedding=nn.Embedding(10, C), seed=0)
    label = torch.arange(20) % 10
    x = draw(20, D).float()
    mixflow.fit(flow, x, context=label, epochs=1, progress=False)
    assert flow.sample(5, label).shape == (5, 20, D)
    np.testing.assert_array_equal(flow.log_prob(x.numpy(), label.numpy()), flow.log_prob(x, label).detach())


BAD_MODULES = {
    "outputs": (
        ValueError,
        r"network: expected a module that maps \(N, 2\) to \(N, 11\), got \(5, 10\) for N = 5",
        lambda: transforms.Coupling(D, 3, network=lambda i, o: nn.Linear(i, o - 1))(torch.zeros(5, D)),
    ),
    "a module": (
        TypeError,
        r"network: expected a function of the numbers of inputs and outputs .*, got Linear",
        lambda: transforms.Coupling(D, network=nn.Linear(2, 26)),
    ),
    "no module": (
        TypeError,
        r"network: expected a function that returns a torch\.nn\.Module, got int",
        lambda: transforms.Autoregressive(D, network=lambda i, o: i + o),
    ),
    "hidden, too": (
        ValueError,
        r"hidden: expected None beside network, .*, got \(8,\)",
        lambda: transforms.Coupling(D, hidden=(8,), network=mlp),
    ),
    "hidden, too, in a recipe": (
        ValueError,
        r"hidden: expected None beside network, .*, got \(8,\)",
        lambda: flows.autoregressive(D, hidden=(8,), network=mlp),
    ),
    "no context": (
        ValueError,
        "network: expected None for a transform without a context",
        lambda: flows.univariate(network=mlp),
    ),
    "embedding without a context": (
        ValueError,
        "embedding: expected None for a flow without a context, got a module",
        lambda: flows.coupling(D, embedding=nn.Linear(3, 2)),
    ),
    "embedding": (
        TypeError,
        r"embedding: expected a torch\.nn\.Module, got function",
        lambda: flows.coupling(D, context=C, embedding=mlp),
    ),
    "embedding's outputs": (
        ValueError,
        r"embedding: expected a module that returns \(\.\.\., 2\), the flow's context, got a tensor of shape \(5, 4\)",
        lambda: flows.coupling(D, context=C, embedding=nn.Linear(3, 4)).log_prob(torch.zeros(D), torch.zeros(5, 3)),
    ),
    "context of a flow without": (
        ValueError,
        r"context: expected None, as this flow takes no context, got a tensor of shape \(5, 2\)",
        lambda: flows.coupling(D).log_prob(torch.zeros(5, D), torch.zeros(5, 2)),
    ),
    "no shape": (
        ValueError,
        "n: expected an integer of at least 0, got -1",
        lambda: flows.univariate().sample((2, -1)),
    ),
    "generator": (
        TypeError,
        r"generator: expected a torch\.Generator, got int",
        lambda: flows.univariate().sample(2, generator=3),
    ),
    "a word": (ValueError, "n: expected an integer of at least 0, got 'two'", lambda: flows.univariate().sample("two")),
}


@pytest.mark.parametrize("bad", BAD_MODULES)
def test_bad_modules_are_named(bad):
    error, message, call = BAD_MODULES[bad]
    with pytest.raises(error, match=message):
        call()


# -- what torch does with modules ----------------------------------------------------------------------------


def test_functional_call_takes_a_flow(name, device):
    flow = made(name, device)
    x = draw(5, flow.features, device=device)
    other = {key: value.detach() + 0.1 for key, value in flow.named_parameters()}
    again = copy.deepcopy(flow)
    again.load_state_dict(other, strict=False)
    torch.testing.assert_close(torch.func.functional_call(flow, other, (x,)), again.log_prob(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))])
def test_copies_are_the_same_flow(name, copied, device):
    flow = made(name, device, context=C)
    flow.notes["columns"] = ["a"]
    again = copied(flow)
    x, context = draw(5, flow.features, device=device), draw(5, C, device=device)
    assert torch.equal(again(x, context), flow(x, context))
    assert (again.recipe, again.notes, again.fitted) == (flow.recipe, flow.notes, flow.fitted)
    with torch.no_grad():
        list(again.parameters())[1].add_(1.0)
    assert not torch.equal(again(x, context), flow(x, context))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_takes_a_flow_whole(name):
    torch.compiler.reset()
    flow = made(name, context=C)
    x, context = draw(5, flow.features), draw(5, C)
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, context), flow(x, context))
    gradients = [gradients_of(flow, call(x, context).sum()) for call in (compiled, flow)]
    torch.testing.assert_close(*gradients)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_export_takes_a_flow_and_its_gradients(name):
    flow = made(name, context=C)
    x, context = draw(5, flow.features), draw(5, C)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(flow, (x, context), dynamic_shapes=({0: rows}, {0: rows})).module()
    x, context = draw(7, flow.features, seed=2), draw(7, C, seed=3)
    log_prob = program(x, context)
    torch.testing.assert_close(log_prob, flow(x, context))
    log_prob.sum().backward()
    expected = dict(zip(dict(flow.named_parameters()), gradients_of(flow, flow(x, context).sum()), strict=True))
    for key, parameter in program.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key])


def test_missing_values_do_not_reach_what_a_network_learns_of_its_inputs():
    def network(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4), nn.Linear(4, outputs))

    flow = flows.coupling(3, layers=2, network=network, seed=0).train()
    x = torch.randn(20, 3)
    x[0] = torch.nan
    assert flow.log_prob(x)[0].isnan()
    assert all(buffer.isfinite().all() for buffer in flow.buffers())


def test_a_flow_with_a_base_of_its_own_has_one_density():
    class Twice(flows.Flow):
        def _base_log_prob(self, z, context):
            return super()._base_log_prob(z, context) - 7.0

    flow = Twice(mixflow.transforms.MixtureCDF(1, 3))
    x, log_prob = flow.sample_and_log_prob(5, seed=0)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)
