"""Every transform through the same properties, then what is particular to each."""

import copy
import math
import pickle

import mpmath
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mixflow
from mixflow import transforms
from mixflow.networks.autoregressive import MaskedMLP
from mixflow.networks.inputs import Inputs
from mixflow.standard import FAMILIES

QUARTER = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

CASES = {
    "mixture": lambda: transforms.MixtureCDF(3, 4),
    "mixture-logistic": lambda: transforms.MixtureCDF(3, 4, family="logistic", base="logistic"),
    "mixture-to-uniform": lambda: transforms.MixtureCDF(3, 4, base="uniform"),
    "mixture-one-component": lambda: transforms.MixtureCDF(3, 1),
    "mixture-context": lambda: transforms.MixtureCDF(3, 4, context=2),
    "affine": lambda: transforms.Affine(3),
    "affine-fixed": lambda: transforms.Affine(3, trainable=False, loc=[0.1, -0.2, 0.3], scale=[0.5, 2.0, 1.5]),
    "rotation": lambda: transforms.Rotation(3),
    "rotation-started": lambda: transforms.Rotation(3, start=QUARTER),
    "permutation": lambda: transforms.Permutation([2, 0, 1]),
    "sigmoid": lambda: transforms.Sigmoid(3),
    "logit": lambda: transforms.Logit(3),
    "rebase": lambda: transforms.Rebase(3, "normal", "logistic"),
    "rebase-to-uniform": lambda: transforms.Rebase(3, "logistic", "uniform"),
    "rebase-from-uniform": lambda: transforms.Rebase(3, "uniform", "normal"),
    "deep-sigmoidal": lambda: transforms.Compose(
        *(transforms.MixtureCDF(3, 4, family="logistic", base="logistic") for _ in range(3))
    ),
    "coupling": lambda: transforms.Coupling(3, 4, (8,)),
    "coupling-gaussian-masked": lambda: transforms.Coupling(
        3, 4, (8, 8), mask=[False, True, True], family="gaussian", context=2
    ),
    "coupling-linear": lambda: transforms.Coupling(3, 1, ()),
    "autoregressive": lambda: transforms.Autoregressive(3, 4, (8, 8)),
    "autoregressive-context": lambda: transforms.Autoregressive(3, 4, (9, 8), family="gaussian", context=2),
    "autoregressive-one-feature": lambda: transforms.Autoregressive(1, 2, (8,), context=2),
    "compose": lambda: transforms.Compose(transforms.Affine(3), transforms.MixtureCDF(3, 4)),
    "compose-context": lambda: transforms.Compose(transforms.Affine(3), transforms.MixtureCDF(3, 4, context=2)),
    "inverse": lambda: transforms.Inverse(transforms.MixtureCDF(3, 4)),
}
IN_UNIT_INTERVAL = {"logit", "rebase-from-uniform"}


def jittered(transform, seed=0):
    """The transform with random parameters, so that nothing holds by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in transform.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return transform


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def build(case):
    torch.manual_seed(0)
    return jittered(CASES[case]().double())


@pytest.fixture
def transform(case, device):
    return build(case).to(device)


def inputs(transform, *batch, seed=1, case="", device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, transform.features, generator=generator, dtype=torch.float64).to(device)
    if case in IN_UNIT_INTERVAL:
        x = torch.sigmoid(x)
    if not transform.context:
        return x, None
    return x, torch.randn(*batch, transform.context, generator=generator, dtype=torch.float64).to(device)


def both_directions(transform, x, context):
    z, _ = transform(x, context)
    return [(transform, x), (transform.inverse, z.detach())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_shapes_and_dtypes(case, transform, batch, dtype, device):
    x, context = inputs(transform, *batch, case=case, device=device)
    context = None if context is None else context.to(dtype)
    for direction, values in both_directions(transform.to(dtype), x.to(dtype), context):
        y, ladj = direction(values, context)
        assert y.shape == x.shape
        assert ladj.shape == torch.Size(batch)
        assert y.dtype == ladj.dtype == dtype
        assert y.device == ladj.device == x.device


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
def test_inverse_undoes_forward(case, transform, dtype, tolerance, device):
    x, context = inputs(transform, 50, case=case, device=device)
    x, context = x.to(dtype), None if context is None else context.to(dtype)
    transform = transform.to(dtype)
    z, ladj = transform(x, context)
    back, inverse_ladj = transform.inverse(z, context)
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=tolerance, atol=tolerance)


def test_ladj_is_the_log_determinant_of_the_jacobian(case, transform, device):
    x, context = inputs(transform, case=case, device=device)
    for direction, values in both_directions(transform, x, context):
        jacobian = torch.autograd.functional.jacobian(lambda t, d=direction: d(t, context)[0], values)
        _, ladj = direction(values, context)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj.detach(), rtol=1e-9, atol=1e-9)


def test_every_parameter_gets_a_gradient(case, transform, device):
    x, context = inputs(transform, 20, case=case, device=device)
    z, ladj = transform(x, context)
    if not list(transform.parameters()):
        assert not z.requires_grad
        return
    # Uneven weights: a rotation leaves the plain sum of squares as it is.
    (z.square() @ torch.arange(1.0, transform.features + 1.0).to(z) + ladj).sum().backward()
    for name, parameter in transform.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if parameter.shape[-1] > 1 or "logits" not in name:  # the weight of a single component is always 1
            assert parameter.grad.abs().max() > 0, name


def test_gradients_are_those_of_finite_differences(case, transform, device):
    x, context = inputs(transform, 2, case=case, device=device)
    names = [name for name, _ in transform.named_parameters()]
    given = [p.detach().requires_grad_() for p in (*([] if context is None else [context]), *transform.parameters())]

    class Call(torch.nn.Module):
        def __init__(self, direction):
            super().__init__()
            self.transform, self.direction = transform, direction

        def forward(self, *arguments):
            return getattr(self.transform, self.direction)(*arguments)

    for direction, values in zip(("forward", "inverse"), both_directions(transform, x, context), strict=True):
        module = Call(direction)

        def outputs(values, *rest, module=module):
            arguments = (values,) if context is None else (values, rest[0])
            parameters = rest[len(arguments) - 1 :]
            state = {f"transform.{name}": value for name, value in zip(names, parameters, strict=True)}
            return torch.func.functional_call(module, state, arguments)

        point = values[1].clone().requires_grad_()
        # A random projection of the Jacobian: the networks have many parameters.
        assert torch.autograd.gradcheck(outputs, (point, *given), fast_mode=True)


def test_copies_are_the_same_transform(case, transform, device):
    x, context = inputs(transform, 5, case=case, device=device)
    expected = transform(x, context)
    fresh = CASES[case]().double().to(device)
    fresh.load_state_dict(transform.state_dict())
    for copied in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform)), fresh):
        assert all(map(torch.equal, copied(x, context), expected))
        assert repr(copied) == repr(transform)


def test_initialize_leaves_a_transform_that_works(case, device):
    torch.manual_seed(0)
    transform = CASES[case]().double().to(device)
    x, context = inputs(transform, 200, case=case, device=device)
    transform.initialize(x, context)
    z, ladj = transform(x, context)
    assert z.isfinite().all()
    assert ladj.isfinite().all()
    torch.testing.assert_close(transform.inverse(z, context)[0], x, rtol=1e-9, atol=1e-9)


def test_context_broadcasts_and_matters():
    transform = build("mixture-context")
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


def mean_log_density(transform, x):
    with torch.no_grad():
        return transform(x)[1].mean().item()


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_mixture_starts_with_a_component_in_each_cluster(family, device):
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([-9.0, -1.0, 3.0, 7.0], dtype=torch.float64)
    x = centre.repeat(500)[:, None] + 0.1 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    transform = transforms.MixtureCDF(2, 4, family=family, base="uniform").double().to(device)
    transform.initialize(torch.cat([x, 10.0 * x], dim=1)[torch.randperm(2000, generator=generator)].to(device))
    expected = torch.stack([centre, 10.0 * centre]).to(device)
    torch.testing.assert_close(transform.loc.detach(), expected, rtol=0.0, atol=0.2)
    # A single component of another family is not normal: its likeliest scale leaves a divergence.
    z = torch.linspace(-8.0, 8.0, 4001, dtype=torch.float64)
    normal, scale = torch.distributions.Normal(0.0, 1.0).log_prob(z), torch.linspace(0.3, 1.2, 181).double()[:, None]
    divergence = torch.trapezoid(normal.exp() * (normal - FAMILIES[family].log_pdf(z / scale) + scale.log()), z).min()
    true = torch.distributions.Normal(0.0, 0.1).entropy().item() + math.log(4.0) + divergence.item()
    own = transforms.MixtureCDF(1, 4, family=family, base="uniform").double().to(device)
    own.initialize(x.to(device))
    assert mean_log_density(own, x.to(device)) == pytest.approx(-true, abs=0.05)


@pytest.mark.parametrize(("family", "loss"), [("gaussian", 1e-3), ("logistic", 0.02)])
@pytest.mark.parametrize("components", [1, 8, 30])
def test_mixture_leaves_normal_data_normal(family, loss, components):
    # Else the layers of a deep flow would take turns in spoiling what the ones before them achieved.
    x = torch.special.ndtri((torch.arange(5000, dtype=torch.float64) + 0.5) / 5000).unsqueeze(-1)
    transform = transforms.MixtureCDF(1, components, family=family, base="uniform").double()
    transform.initialize(3.0 * x + 7.0)
    entropy = 0.5 * math.log(2.0 * math.pi * math.e) + math.log(3.0)
    assert -entropy - loss < mean_log_density(transform, 3.0 * x + 7.0) < -entropy + 1e-3


def test_mixture_starts_where_it_is_constructed_without_data():
    transform = transforms.MixtureCDF(3, 8)
    x = torch.linspace(-2.0, 2.0, 5).unsqueeze(-1).expand(5, 3)
    z, _ = transform(x)
    torch.testing.assert_close(z, x, rtol=0.0, atol=0.1)


def test_mixture_starts_at_finite_scales_on_tied_data():
    transform = transforms.MixtureCDF(1, 8)
    transform.initialize(torch.tensor([0.0] * 95 + [1.0] * 5).unsqueeze(-1))
    assert transform.log_scale.isfinite().all()


@pytest.mark.parametrize(
    ("message", "x"),
    [
        ("expected at least 2 rows, .*got 1", [[1.0, 2.0]]),
        (r"from 0.1 to 0.1 in column 1 \(", [[float(i), 0.1] for i in range(1000)]),
        ("torch.float32, got numbers from -3e.38 to 3e.38 in column 0", [[-3e38, 1.0], [3e38, 2.0]]),
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


def test_affine_starts_where_it_is_told_and_actnorm_is_its_name_for_training():
    transform = transforms.Affine(2, loc=[1.0, -1.0], scale=2.0)
    z, ladj = transform(torch.tensor([[3.0, 3.0]]))
    torch.testing.assert_close(z, torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(ladj, torch.tensor([-2.0 * math.log(2.0)]))
    assert transforms.ActNorm is transforms.Affine
    assert all(parameter.requires_grad for parameter in transforms.ActNorm(2).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_is_orthogonal_and_its_ladj_exactly_zero(dtype, device):
    for scale in (0.1, 10.0):
        transform = transforms.Rotation(6).to(device, dtype)
        x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        transform.initialize(x @ torch.arange(36.0).reshape(6, 6).sin().to(x))
        with torch.no_grad():
            transform.skew.add_(scale * torch.randn(15, generator=torch.Generator().manual_seed(1)).to(x))
        matrix = transform.matrix
        tolerance = 100.0 * torch.finfo(dtype).eps
        identity = torch.eye(6, dtype=dtype, device=device)
        torch.testing.assert_close(matrix @ matrix.mT, identity, rtol=0.0, atol=tolerance)
        assert transform(x)[1].tolist() == [0.0] * 500


def test_rotation_starts_at_the_axes_of_correlated_data_and_at_independent_components():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    normal = torch.randn(5000, 3, generator=generator, dtype=torch.float64)
    uniform = 2.0 * torch.rand(5000, 3, generator=generator, dtype=torch.float64) - 1.0
    for sources in (normal * torch.tensor([3.0, 1.0, 0.2]), uniform):
        transform = transforms.Rotation(3).double()
        transform.initialize(sources @ turn.mT)
        # A permutation with signs, except for what the sample leaves open.
        found = (transform.matrix @ turn).abs()
        assert (found.amax(0) > 0.99).all()
        assert (found.amax(1) > 0.99).all()


def test_rotation_starts_orthogonal_on_data_that_span_less():
    x = torch.randn(100, 1, generator=torch.Generator().manual_seed(0)).repeat(1, 3)
    for rows in (x, x[:2], torch.eye(3)):
        transform = transforms.Rotation(3)
        transform.initialize(rows)
        torch.testing.assert_close(transform.matrix @ transform.matrix.mT, torch.eye(3), rtol=0.0, atol=1e-5)
    transform = transforms.Rotation(1)
    transform.initialize(x[:, :1])
    assert transform(torch.ones(1))[0].abs().item() == 1.0


def test_sigmoid_and_logit_keep_both_tails():
    x = torch.tensor([[-800.0], [-40.0], [0.0], [40.0], [800.0]], dtype=torch.float64)
    _, ladj = transforms.Sigmoid(1)(x)
    # log sigmoid(x) + log sigmoid(-x) = -|x| - 2 log(1 + exp(-|x|))
    expected = [-abs(v) - 2.0 * math.log1p(math.exp(-abs(v))) for v in x.squeeze(-1).tolist()]
    assert ladj.tolist() == pytest.approx(expected, rel=1e-15)
    u = torch.tensor([[1e-300], [1e-20], [0.5], [1.0 - 2.0**-53]], dtype=torch.float64)
    z, ladj = transforms.Logit(1)(u)
    expected = [math.log(v) - math.log1p(-v) for v in u.squeeze(-1).tolist()]
    assert z.squeeze(-1).tolist() == pytest.approx(expected, rel=1e-15)
    expected = [-math.log(v) - math.log1p(-v) for v in u.squeeze(-1).tolist()]
    assert ladj.tolist() == pytest.approx(expected, rel=1e-15)


def test_logit_of_numbers_outside_its_domain_is_nan_for_these_alone():
    u = torch.tensor([[-0.1, 0.5], [1.5, 0.5], [math.nan, 0.5], [0.0, 1.0]])
    for direction in (transforms.Logit(2), transforms.Sigmoid(2).inverse):
        z, ladj = direction(u)
        assert z[:3, 0].isnan().all()
        assert z[:3, 1].tolist() == [0.0] * 3
        assert z[3].tolist() == [-math.inf, math.inf]
        assert ladj.isnan().tolist() == [True, True, True, False]


def test_rebase_keeps_both_tails_between_unbounded_bases():
    x = torch.tensor([-300.0, -30.0, -1.0, 0.0, 2.0, 30.0, 300.0], dtype=torch.float64).unsqueeze(-1)
    transform = transforms.Rebase(1, "normal", "logistic")
    z, ladj = transform(x)
    expected = [float(mpmath.log(mpmath.ncdf(v) / mpmath.ncdf(-v))) for v in x[:, 0].tolist()]
    assert z[:, 0].tolist() == pytest.approx(expected, rel=1e-13, abs=1e-13)
    back, inverse_ladj = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("kind", [transforms.Coupling, transforms.Autoregressive])
@pytest.mark.parametrize("components", [1, 8])
def test_networks_start_near_the_identity(kind, family, components):
    transform = kind(4, components, family=family).double()
    quantiles = torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)
    x = quantiles.unsqueeze(-1).repeat(1, 4)
    z, _ = transform(x)
    torch.testing.assert_close(z.std(0), torch.ones(4, dtype=torch.float64), rtol=0.02, atol=0.0)
    bulk = quantiles.abs() < 2.0
    torch.testing.assert_close(z[bulk], x[bulk], rtol=0.0, atol=0.4)


@pytest.mark.parametrize("case", ["coupling", "coupling-gaussian-masked", "autoregressive", "autoregressive-context"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_leave_outliers_finite(case, dtype, device):
    transform = build(case).to(device, dtype)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(3.0)
    x, context = inputs(transform, 4, device=device)
    x = x.to(dtype)
    x[0, 0], x[1, 1], x[2, 2] = 1e6, -1e12, 1e15
    z, ladj = transform(x, None if context is None else context.to(dtype))
    assert z.isfinite().all()
    assert ladj.isfinite().all()


def test_coupling_lets_the_mask_pass_and_conditions_on_it_alone():
    transform = build("coupling")
    assert transform.mask == [True, False, True]
    x, _ = inputs(transform, 5)
    z, _ = transform(x)
    assert torch.equal(z[:, [0, 2]], x[:, [0, 2]])
    jacobian = torch.autograd.functional.jacobian(lambda t: transform(t)[0], x[0])
    assert (jacobian[1] != 0).all()


@pytest.mark.parametrize("hidden", [(), (2,), (7, 7), (32, 16)])
@pytest.mark.parametrize("context", [0, 2])
def test_masked_network_sees_the_features_before_and_all_of_the_context(hidden, context):
    torch.manual_seed(0)
    network = jittered(MaskedMLP(4, 3, hidden, context).double())
    x, c = torch.randn(4).double(), torch.randn(context).double() if context else None
    jacobian = torch.autograd.functional.jacobian(lambda t: network(t, c), x)
    reached = (jacobian != 0).any(1)
    assert not reached.triu().any()
    # A hidden layer of fewer units than degrees cannot carry them all.
    if not hidden or min(hidden) >= 4:
        assert torch.equal(reached, torch.ones(4, 4).tril(-1).bool())
    if context:
        jacobian = torch.autograd.functional.jacobian(lambda t: network(x, t), c)
        assert (jacobian != 0).any(1).all()
    values = network.one_by_one(x, c)
    for feature in range(4):
        torch.testing.assert_close(values(list(x[:feature])), network(x, c)[feature])


@pytest.mark.parametrize("context", [0, 2])
def test_the_inverse_of_an_autoregressive_transform_takes_the_work_of_one_pass(context):
    transform = transforms.Autoregressive(16, components=2, hidden=(32, 32), context=context)
    x, c = torch.randn(8, 16), torch.randn(8, context) if context else None
    counts = []
    for direction in (transform.forward, transform.inverse):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            direction(x, c)
        counts.append(counter.get_total_flops())
    # Less, in fact: the forward pass multiplies by the zeros of the masks.
    assert 0 < counts[1] < counts[0]


def test_networks_see_standardised_inputs_of_any_units():
    torch.manual_seed(0)
    context = 1e6 + 10.0 * torch.randn(500, 2)
    context[:, 1] = 3.0
    x = torch.randn(500, 3)
    for case in ("mixture-context", "coupling-gaussian-masked", "autoregressive-context"):
        transform = CASES[case]()
        transform.initialize(x, context)
        inputs_ = [module for module in transform.modules() if isinstance(module, Inputs)]
        seen = inputs_[0](
            context
            if case == "mixture-context"
            else torch.cat([x[:, -1:], x, context], 1)[:, -inputs_[0].loc.numel() :]
        )
        assert seen[:, -2].std().item() == pytest.approx(1.0, abs=0.05)
        assert seen[:, -1].tolist() == [0.0] * 500


BAD_CALLS = {
    "not a tensor": (TypeError, r"x: expected a torch.Tensor, got list", [[0.0, 0.0, 0.0]], None),
    "features": (ValueError, r"x: expected shape \(\.\.\., 3\), got \(5, 2\)", torch.zeros(5, 2), None),
    "scalar": (ValueError, r"x: expected shape \(\.\.\., 3\), got \(\)", torch.zeros(()), None),
    "integers": (TypeError, r"x: expected torch.float32.*got torch.int64", torch.zeros(5, 3).long(), None),
    "device": (ValueError, r"x: expected a tensor on cpu.*got meta", torch.zeros(5, 3, device="meta"), None),
    "missing context": (ValueError, r"context: expected .*\(\.\.\., 2\), got None", torch.zeros(5, 3), None),
    "context size": (
        ValueError,
        r"context: expected shape .*got \(5, 3\)",
        torch.zeros(5, 3),
        torch.zeros(5, 3),
    ),
    "context batch": (ValueError, r"context: .*broadcasts against \(5,\)", torch.zeros(5, 3), torch.zeros(4, 2)),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_calls_name_the_argument(bad):
    error, message, x, context = BAD_CALLS[bad]
    transform = CASES["compose-context"]()
    with pytest.raises(error, match=message):
        transform(x, context)
    with pytest.raises(error, match=message.replace("x:", "z:")):
        transform.inverse(x, context)


def test_only_a_transform_that_first_subtracts_takes_another_dtype():
    x = torch.zeros(5, 3).double()
    for transform in (transforms.MixtureCDF(3, 2), transforms.Rotation(3), transforms.Coupling(3, 2)):
        with pytest.raises(
            TypeError, match=r"x: expected torch\.float32, the dtype of the parameters, got torch\.float64"
        ):
            transform(x)
        with pytest.raises(TypeError, match=r"z: expected torch\.float32"):
            transforms.Compose(transforms.Affine(3), transform).inverse(x)
    z, ladj = transforms.Compose(transforms.Affine(3), transforms.MixtureCDF(3, 2))(x)
    assert z.dtype == ladj.dtype == torch.float32


def test_a_transform_without_a_context_ignores_one_that_is_handed_to_all():
    x, context = torch.randn(5, 3), torch.randn(4, 5, 2)
    transform = transforms.Affine(3, loc=1.0)
    for direction in (transform, transform.inverse):
        assert all(map(torch.equal, direction(x, context), direction(x)))


def test_x_and_context_broadcast_against_each_other():
    torch.manual_seed(0)
    for transform in (transforms.MixtureCDF(3, 2, context=2), transforms.Coupling(3, context=2)):
        jittered(transform)
        x, context = torch.randn(5, 3), torch.randn(4, 1, 2)
        for direction in (transform, transform.inverse):
            value, ladj = direction(x, context)
            assert (value.shape, ladj.shape) == ((4, 5, 3), (4, 5))
            rows = direction(x.expand(4, 5, 3), context.expand(4, 5, 2))
            torch.testing.assert_close((value, ladj), rows)


def test_integers_are_refused_where_no_parameter_tells_the_dtype():
    with pytest.raises(TypeError, match=r"x: expected floating-point numbers, got torch\.int64"):
        transforms.Permutation([1, 0])(torch.zeros(5, 2, dtype=torch.int64))


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
        f"family: expected one of {', '.join(mixflow.FAMILIES)}, got 'cauchyish'",
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
        "transforms: expected a Transform, a map whose inverse .*got ReLU, which is not one",
        lambda: transforms.Compose(transforms.Affine(2), torch.nn.ReLU()),
    ),
    "zero scale": (
        ValueError,
        "scale: expected finite positive numbers, for the map to be invertible, got 0.0",
        lambda: transforms.Affine(2, scale=[1.0, 0.0]),
    ),
    "infinite scale": (ValueError, "scale: .*got inf", lambda: transforms.Affine(2, scale=math.inf)),
    "scale of nan": (ValueError, "scale: .*got nan", lambda: transforms.Affine(2, scale=math.nan)),
    "too many scales": (
        ValueError,
        r"scale: .*2 numbers, got shape \(3,\)",
        lambda: transforms.Affine(2, scale=[1.0] * 3),
    ),
    "loc of nan": (ValueError, "loc: expected finite numbers.*got nan", lambda: transforms.Affine(2, loc=math.nan)),
    "permutation twice": (
        ValueError,
        r"order: expected each of 0 to D - 1 once, for the map to be invertible, got \[0, 1, 1\]",
        lambda: transforms.Permutation([0, 1, 1]),
    ),
    "no permutation": (ValueError, "order: .*got ", lambda: transforms.Permutation([])),
    "rotation shape": (ValueError, r"start: expected shape \(3, 3\)", lambda: transforms.Rotation(3, torch.eye(2))),
    "rotation stretched": (
        ValueError,
        "start: expected an orthogonal matrix.*off by 3",
        lambda: transforms.Rotation(2, 2.0 * torch.eye(2)),
    ),
    "rotation of nan": (
        ValueError,
        "start: .*off by nan",
        lambda: transforms.Rotation(1, torch.full((1, 1), math.nan)),
    ),
    "coupling of one": (ValueError, "features: .*at least 2, got 1", lambda: transforms.Coupling(1)),
    "coupling mask": (ValueError, "mask: expected 2 values, both", lambda: transforms.Coupling(2, mask=[True, True])),
    "coupling mask length": (ValueError, "mask: expected 2 values", lambda: transforms.Coupling(2, mask=[True])),
    "coupling family": (ValueError, "family: .*'round'", lambda: transforms.Coupling(2, family="round")),
    "hidden": (ValueError, "hidden: .*at least 1, got 0", lambda: transforms.Coupling(2, hidden=(8, 0))),
    "hidden number": (
        ValueError,
        "hidden: expected a sequence.*got 64",
        lambda: transforms.Autoregressive(2, hidden=64),
    ),
    "hidden text": (
        ValueError,
        "hidden: expected a sequence.*got '64'",
        lambda: transforms.Autoregressive(2, hidden="64"),
    ),
    "rebase": (ValueError, "target: .*'round'", lambda: transforms.Rebase(2, "normal", "round")),
    "inverse of what": (TypeError, "transform: .*got int", lambda: transforms.Inverse(3)),
    "features differ": (
        ValueError,
        "transforms: expected each to take what the one before it gives, got features = 1 and then features = 2",
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


class Shift:
    def _forward(self, x, context):
        return super()._forward(x + 1.0, context)


def test_a_map_of_another_class_has_the_density_of_its_own_map():
    class Shifted(transforms.MixtureCDF):
        def _forward(self, x, context):
            return super()._forward(x + 1.0, context)

    class Mixed(Shift, transforms.MixtureCDF):
        pass

    x, own = torch.randn(5, 1), transforms.MixtureCDF(1, 3)
    for kind in (Shifted, Mixed):
        shifted = kind(1, 3)
        torch.testing.assert_close(shifted.log_density(x), own.log_density(x + 1.0))
        torch.testing.assert_close(mixflow.flows.Flow(shifted).log_prob(x), own.log_density(x + 1.0))


@pytest.mark.parametrize("case", ["mixture", "compose"])
def test_forward_hooks_see_the_calls_of_a_log_density(case):
    transform, seen = build(case), []
    x, _ = inputs(transform, 5)
    expected = transform.log_density(x)
    for module in transform.modules():
        if isinstance(module, transforms.Transform):
            module.register_forward_hook(lambda module, arguments, results: seen.append(type(module).__name__))
    torch.testing.assert_close(transform.log_density(x), expected)
    assert seen == {"mixture": ["MixtureCDF"], "compose": ["Affine", "MixtureCDF", "Compose"]}[case]


@pytest.mark.parametrize("base", mixflow.BASES)
@pytest.mark.parametrize("case", ["mixture", "coupling", "autoregressive"])
def test_a_log_density_is_that_of_the_image_and_the_ladj(case, base):
    transform = build(case).double()
    x, context = inputs(transform, 20)
    if isinstance(transform, transforms.MixtureCDF):
        transform.base = base
    elif base == "uniform":
        transform = transforms.Compose(transform, transforms.Rebase(transform.features, "normal", "uniform"))
    z, ladj = transform(x, context)
    expected = mixflow.standard.BASES[base].log_prob(z).sum(-1) + ladj
    torch.testing.assert_close(transform.log_density(x, context, base), expected, rtol=1e-9, atol=1e-9)
