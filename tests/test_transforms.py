"""Every transform through the same properties, then what is particular to each."""

import math

import pytest
import torch

import mixflow
from mixflow import transforms


def jittered(transform, seed=0):
    """The transform with random parameters, so that nothing holds by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in transform.state_dict().values():
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return transform


CASES = {
    "mixture": lambda: transforms.MixtureCDF(3, 4),
    "mixture-logistic": lambda: transforms.MixtureCDF(3, 4, family="logistic", base="logistic"),
    "mixture-one-component": lambda: transforms.MixtureCDF(3, 1),
    "mixture-context": lambda: transforms.MixtureCDF(3, 4, context=2),
    "affine": lambda: transforms.Affine(3),
    "affine-fixed": lambda: transforms.Affine(3, trainable=False),
    "compose": lambda: transforms.Compose(transforms.Affine(3), transforms.MixtureCDF(3, 4)),
    "compose-context": lambda: transforms.Compose(transforms.Affine(3), transforms.MixtureCDF(3, 4, context=2)),
    "inverse": lambda: transforms.Inverse(transforms.MixtureCDF(3, 4)),
}


@pytest.fixture(params=CASES)
def transform(request):
    return jittered(CASES[request.param]().double())


def inputs(transform, *batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, transform.features, generator=generator, dtype=torch.float64)
    if not transform.context:
        return x, None
    return x, torch.randn(*batch, transform.context, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_shapes(transform, batch):
    x, context = inputs(transform, *batch)
    for direction in (transform, transform.inverse):
        y, ladj = direction(x, context)
        assert y.shape == x.shape
        assert ladj.shape == torch.Size(batch)
        assert y.dtype == ladj.dtype == torch.float64


def test_inverse_undoes_forward(transform):
    x, context = inputs(transform, 20)
    z, ladj = transform(x, context)
    back, inverse_ladj = transform.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-9, atol=1e-9)


def test_ladj_is_the_log_determinant_of_the_jacobian(transform):
    x, context = inputs(transform)
    for direction in (transform, transform.inverse):
        jacobian = torch.autograd.functional.jacobian(lambda t, d=direction: d(t, context)[0], x)
        _, ladj = direction(x, context)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj.detach(), rtol=1e-9, atol=1e-9)


def test_every_parameter_gets_a_gradient(transform):
    x, context = inputs(transform, 20)
    z, ladj = transform(x, context)
    if not list(transform.parameters()):
        assert not z.requires_grad
        return
    (z.square().sum() + ladj.sum()).backward()
    for name, parameter in transform.named_parameters():
        assert parameter.grad is not None, name
        if parameter.shape[-1] > 1 or "logits" not in name:  # the weight of a single component is always 1
            assert parameter.grad.abs().max() > 0, name


def test_context_broadcasts_and_matters():
    transform = jittered(CASES["mixture-context"]().double())
    x, _ = inputs(transform, 5)
    one = torch.tensor([0.5, -1.0], dtype=torch.float64)
    z, _ = transform(x, one)
    torch.testing.assert_close(z, transform(x, one.expand(5, 2))[0])
    assert not torch.allclose(z, transform(x, -one)[0])


def test_a_new_conditioned_transform_ignores_its_context():
    torch.manual_seed(0)
    conditioned, plain = transforms.MixtureCDF(2, 3, context=1), transforms.MixtureCDF(2, 3)
    x = torch.randn(10, 2)
    torch.testing.assert_close(conditioned(x, torch.randn(10, 1)), plain(x))


def test_mixture_starts_at_the_quantiles_of_the_data():
    transform = transforms.MixtureCDF(2, 4).double()
    x = torch.stack([torch.arange(100.0), 10.0 * torch.arange(100.0)], dim=-1).double()
    transform.initialize(x[torch.randperm(100, generator=torch.Generator().manual_seed(0))])
    assert transform.loc.tolist() == [[12.0, 37.0, 62.0, 87.0], [120.0, 370.0, 620.0, 870.0]]
    expected = torch.tensor([[25.0] * 4, [250.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(transform.log_scale.exp().detach(), expected)


def test_mixture_starts_at_finite_scales_on_tied_data():
    transform = transforms.MixtureCDF(1, 8)
    transform.initialize(torch.tensor([0.0] * 95 + [1.0] * 5).unsqueeze(-1))
    assert transform.log_scale.isfinite().all()


@pytest.mark.parametrize(
    ("message", "x"),
    [
        ("expected at least 2 rows, .*got 1", [[1.0, 2.0]]),
        (r"from 0.1 to 0.1 in column 1 \(", [[float(i), 0.1] for i in range(1000)]),
        ("torch.float32; got numbers from -3e.38 to 3e.38 in column 0", [[-3e38, 1.0], [3e38, 2.0]]),
        ("from nan to nan in column 1", [[1.0, math.nan], [2.0, 1.0]]),
    ],
)
@pytest.mark.parametrize(
    "transform", [transforms.Affine(2), transforms.Affine(2, trainable=False), transforms.MixtureCDF(2, 3)]
)
def test_data_without_a_spread_are_refused_and_change_nothing(transform, message, x):
    before = {name: value.clone() for name, value in transform.state_dict().items()}
    with pytest.raises(ValueError, match=f"x: .*{message}"):
        transform.initialize(torch.tensor(x))
    assert all(torch.equal(value, before[name]) for name, value in transform.state_dict().items())


def test_affine_standardises():
    transform = transforms.Affine(2, trainable=False)
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.1]) + 7.0
    transform.initialize(x)
    z, ladj = transform(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0.0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(2), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(ladj, -x.std(0).log().sum().expand(1000))
    assert not list(transform.parameters())


def test_compose_initialises_each_part_on_what_the_ones_before_make_of_the_data():
    affine, mixture = transforms.Affine(1), transforms.MixtureCDF(1, 2)
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)) * 100.0 + 1000.0
    transforms.Compose(affine, mixture).initialize(x)
    assert abs(affine.loc.item() - 1000.0) < 20.0
    assert mixture.loc.abs().max() < 2.0


def test_a_transform_whose_numbers_are_all_integers_takes_any_dtype():
    class Exchange(transforms.Transform):
        def __init__(self):
            super().__init__(2)
            self.register_buffer("order", torch.tensor([1, 0]))

        def _forward(self, x, context):
            return x[..., self.order], torch.zeros_like(x[..., 0])

    for dtype in (torch.float32, torch.float64):
        z, _ = Exchange()(torch.tensor([1.0, 2.0], dtype=dtype))
        assert z.tolist() == [2.0, 1.0]


BAD_CALLS = {
    "not a tensor": (TypeError, r"x: expected a torch.Tensor, got list", [[0.0, 0.0, 0.0]], None),
    "features": (ValueError, r"x: expected shape \(\.\.\., 3\), got \(5, 2\)", torch.zeros(5, 2), None),
    "scalar": (ValueError, r"x: expected shape \(\.\.\., 3\), got \(\)", torch.zeros(()), None),
    "dtype": (TypeError, r"x: expected torch.float32.*got torch.float64", torch.zeros(5, 3).double(), None),
    "integers": (TypeError, r"x: expected torch.float32.*got torch.int64", torch.zeros(5, 3).long(), None),
    "device": (ValueError, r"x: expected a tensor on cpu.*got meta", torch.zeros(5, 3, device="meta"), None),
    "missing context": (ValueError, r"context: expected .*\(\.\.\., 2\), got None", torch.zeros(5, 3), None),
    "context size": (
        ValueError,
        r"context: expected shape .*got \(5, 3\)",
        torch.zeros(5, 3),
        torch.zeros(5, 3),
    ),
    "context batch": (ValueError, r"context: .*broadcasts to \(5,\)", torch.zeros(5, 3), torch.zeros(4, 2)),
    "wide context": (ValueError, r"context: .*broadcasts to \(5,\)", torch.zeros(5, 3), torch.zeros(2, 5, 2)),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_calls_name_the_argument(bad):
    error, message, x, context = BAD_CALLS[bad]
    transform = CASES["compose-context"]()
    with pytest.raises(error, match=message):
        transform(x, context)
    with pytest.raises(error, match=message.replace("x:", "z:")):
        transform.inverse(x, context)


def test_unexpected_context_is_refused():
    with pytest.raises(ValueError, match="context: expected None, this Affine takes no context"):
        transforms.Affine(3)(torch.zeros(5, 3), torch.zeros(5, 2))


BAD_CONSTRUCTIONS = {
    "features": (ValueError, "features: .*at least 1, got 0", lambda: transforms.Affine(0)),
    "components": (ValueError, "components: .*at least 1, got 0", lambda: transforms.MixtureCDF(1, 0)),
    "components type": (ValueError, "components: .*got 2.5", lambda: transforms.MixtureCDF(1, 2.5)),
    "components bool": (ValueError, "components: .*got True", lambda: transforms.MixtureCDF(1, True)),
    "components beyond": (
        ValueError,
        f"components: .*at most {2**63 - 1}, got {2**63}",
        lambda: transforms.MixtureCDF(1, 2**63),
    ),
    "features bool": (ValueError, "features: .*got True", lambda: transforms.Affine(True)),
    "context": (ValueError, "context: .*got -1", lambda: transforms.MixtureCDF(1, 2, context=-1)),
    "family": (
        ValueError,
        f"family: expected one of {', '.join(mixflow.FAMILIES)}; got 'cauchyish'",
        lambda: transforms.MixtureCDF(1, 2, family="cauchyish"),
    ),
    "base": (
        ValueError,
        "base: expected one of .*'round'",
        lambda: transforms.MixtureCDF(1, 2, base="round"),
    ),
    "no transforms": (ValueError, "transforms: .*at least one", lambda: transforms.Compose()),
    "not a transform": (
        TypeError,
        "transforms: .*got Linear",
        lambda: transforms.Compose(torch.nn.Linear(2, 2)),
    ),
    "inverse of what": (TypeError, "transform: .*got int", lambda: transforms.Inverse(3)),
    "features differ": (
        ValueError,
        r"transforms: expected the same features in all, got \[1, 2\]",
        lambda: transforms.Compose(transforms.Affine(1), transforms.Affine(2)),
    ),
    "contexts differ": (
        ValueError,
        r"transforms: expected the same context in all, got \[2, 3\]",
        lambda: transforms.Compose(*(transforms.MixtureCDF(1, 2, context=c) for c in (3, 2))),
    ),
}


@pytest.mark.parametrize("bad", BAD_CONSTRUCTIONS)
def test_bad_constructions_name_the_argument(bad):
    error, message, construct = BAD_CONSTRUCTIONS[bad]
    with pytest.raises(error, match=message):
        construct()
