"""The ops in standard operators, against the ops themselves, and ONNX files made of them, run by onnxruntime."""

from __future__ import annotations

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

import mixflow
import truth
from cases import EPSILON, FAMILY_AND_BASE, LAYOUTS, arguments
from mixflow import export, flows, standard, transforms
from mixflow.op import affine_transform

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float64]
# What mixflow.export promises, in eps.
BOUND = {torch.float32: 8.0, torch.float64: 64.0}

# Logits, locations and log scales, each with another way to lose digits.
MIXTURES = {
    "one component": ([0.0], [0.0], [0.0]),
    "moderate": ([0.3, -0.7, 0.1], [-1.0, 0.25, 1.5], [-0.5, 0.0, -1.0]),
    "far apart": ([0.0, 0.0], [-100.0, 100.0], [0.0, 0.0]),
    "narrow": ([0.0, 0.0, 0.0], [-1.0, 0.0, 1.0], [-8.0, -8.0, -8.0]),
    "scales far apart": ([0.0, -20.0], [0.0, 0.0], [-10.0, 5.0]),
    "tiny weight": ([0.0, -60.0], [-3.0, 3.0], [0.0, 0.0]),
    "no weight": ([0.0, -INF], [0.0, 1.0], [0.0, 0.0]),
    "far from 0": ([0.0, 1.0], [1000.0, 1001.0], [0.0, -1.0]),
}


def parameters_of(mixture, dtype):
    return tuple(torch.tensor(values, dtype=dtype) for values in MIXTURES[mixture])


def points(loc, log_scale):
    """Around every component out to 40 scales, between the components, and far out."""
    near = loc + torch.linspace(-40, 40, 801, dtype=loc.dtype).unsqueeze(-1) * log_scale.exp()
    between = torch.linspace(-120, 120, 801, dtype=loc.dtype)
    return torch.cat([near.flatten(), between, torch.tensor([-1e10, -1e4, 1e4, 1e10], dtype=loc.dtype)])


def close(actual, expected, scale, bound):
    """Whether the error is within ``bound`` eps of the scale; where it is not finite, the two are the same."""
    eps = EPSILON[actual.dtype]
    error = (actual.double() - expected.double()).abs()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    worst = torch.where(same, 0.0, error / (eps * scale.double())).max().item()
    assert worst <= bound, f"{worst} eps"


def check_map(actual, expected, logits, log_scale, dtype):
    (z, ladj), (true_z, true_ladj) = actual, expected
    close(z, true_z, true_z.abs().clamp(min=1.0), BOUND[dtype])
    # Logs of scales, weights and z are added in ladj, and may cancel there.
    log_weight = torch.log_softmax(logits, dim=-1)
    size = log_scale.abs().max().item() - log_weight.masked_fill(log_weight.isinf(), 0.0).min().item()
    close(ladj, true_ladj, 1.0 + true_ladj.abs() + size + true_z.abs().log1p(), BOUND[dtype])


# -------------------------------------------------------------------------------------------------------- the formulas


def test_every_family_base_and_op_has_a_formula():
    assert tuple(standard.FAMILIES) == mixflow.FAMILIES
    assert tuple(standard.BASES) == mixflow.BASES
    assert all(family.decay and family.interval for family in standard.FAMILIES.values())
    table = export.decompositions()
    for op in ("map", "affine_map", "interval"):
        assert getattr(torch.ops.mixflow, op).default in table


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_the_formula_is_as_accurate_as_promised(family, base, mixture, dtype):
    """Against the op in float64, whose error is a few eps by the tests against mpmath."""
    logits, loc, log_scale = parameters_of(mixture, dtype)
    x = points(loc, log_scale)
    actual = export.cdf_map(x, logits, loc, log_scale, family, base, False)
    exact = [t.double() for t in (x, logits, loc, log_scale)]
    expected = mixflow.cdf_transform(*exact, family=family, base=base)
    check_map(actual, expected, logits, log_scale, dtype)


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_the_formula_in_float64_is_right_by_mpmath(family, base):
    parameters = MIXTURES["moderate"]
    x = [-1e6, -300.0, -38.0, -5.0, -0.9, 0.1, 2.0, 9.0, 120.0, 1e4]
    exact = [truth.forward(v, *parameters, family, base) for v in x]
    expected = [torch.tensor([float(e[name]) for e in exact], dtype=torch.float64) for name in ("z", "ladj")]
    tensors = [torch.tensor(values, dtype=torch.float64) for values in (x, *parameters)]
    check_map(export.cdf_map(*tensors, family, base, False), expected, tensors[1], tensors[3], torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_infinity_nan_and_overflow_are_those_of_the_op(family, base, dtype):
    x = torch.tensor([INF, -INF, NAN, 1e30, -1e30, 1e19, -1e18, 0.5], dtype=dtype)
    parameters = parameters_of("moderate", dtype)
    actual = export.cdf_map(x, *parameters, family, base, False)
    expected = mixflow.cdf_transform(x, *parameters, family=family, base=base)
    check_map(actual, expected, parameters[0], parameters[2], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_formula_broadcasts_as_the_op_does(layout):
    tensors = arguments(layout, torch.float64)
    actual = export.cdf_map(*tensors, "gaussian", "normal", False)
    torch.testing.assert_close(actual, mixflow.cdf_transform(*tensors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_the_affine_map(family):
    generator = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(7, 3), (7, 3, 14)])
    expected = affine_transform(x, rows, family=family, base="logistic")
    torch.testing.assert_close(export.affine_map(x, rows, family, "logistic", False), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1e-6, 1e-3, 0.05, 0.99, 1.1, 2.1, 30.0])
@pytest.mark.parametrize("mixture", ["one component", "moderate"])
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_intervals_are_as_accurate_as_promised(family, mixture, width, dtype):
    parameters = parameters_of(mixture, dtype)
    lower = torch.linspace(-40, 40, 1601, dtype=dtype)
    edges = lower, lower + width
    expected = mixflow.discretized_log_prob(*(t.double() for t in (*edges, *parameters)), family=family)
    close(export.interval(*edges, *parameters, family), expected, 1.0 + expected.abs(), BOUND[dtype])


EDGES = [(-INF, -20.0), (-INF, 0.0), (-INF, INF), (1.0, INF), (30.0, INF), (2.0, 2.0), (INF, INF), (-INF, -INF)]
WRONG_EDGES = [(3.0, 2.0), (NAN, 1.0), (-INF, NAN), (INF, -INF)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_open_empty_and_wrong_intervals_are_those_of_the_op(family, dtype):
    lower, upper = torch.tensor(EDGES + WRONG_EDGES, dtype=dtype).T
    parameters = parameters_of("moderate", dtype)
    expected = mixflow.discretized_log_prob(lower, upper, *parameters, family=family)
    close(export.interval(lower, upper, *parameters, family), expected, 1.0 + expected.abs(), BOUND[dtype])


@pytest.mark.parametrize("size", [0.1, 1.0, 300.0])
def test_a_rotation_by_products_is_that_of_the_solver(size):
    """Turned by a small angle in most directions, and by up to nearly 180 degrees in one plane: the worst condition."""
    square = 0.1 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square[4, 1] += size
    half, one = square - square.T, torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(one - half, one + half)
    torch.testing.assert_close(export.cayley(half), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tail_of_the_normal(dtype):
    t = torch.tensor([0.0, 0.1, 0.7, 1.5, 2.5, 4.0, 7.0, 13.0, 40.0, 1e3, 1e6], dtype=dtype)
    mills = truth.precise(truth.normal_mills)
    exact = [float(mills(truth.mpf(v))) / math.sqrt(2.0 * math.pi) for v in t.tolist()]
    expected = torch.tensor(exact, dtype=torch.float64)
    close(standard.normal.scaled_tail(t), expected, expected, 0.5 * BOUND[dtype])


def test_what_has_no_formula_is_said():
    tensors = torch.zeros(3), *[torch.zeros(2)] * 3
    with pytest.raises(NotImplementedError, match=r"inverse: expected False.*Export log_prob"):
        export.cdf_map(*tensors, "gaussian", "normal", True)
    with pytest.raises(NotImplementedError, match=r"family: expected one with a formula.*gaussian.*got 'laplace'"):
        export.cdf_map(*tensors, "laplace", "normal", False)
    with pytest.raises(NotImplementedError, match=r"base: expected one with a formula.*uniform.*got 'cauchy'"):
        export.cdf_map(*tensors, "gaussian", "cauchy", False)


# What ONNX has, and torch exports without a loss of digits.
ACCURATE = {"add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "tanh", "reciprocal"}
ACCURATE |= {"where", "lt", "le", "gt", "ge", "eq", "bitwise_and", "amax", "sum", "_log_softmax"}
ACCURATE |= {"unsqueeze", "squeeze", "select", "slice", "unbind", "view", "scalar_tensor", "detach"}


def operators_of(family, base):
    x, rows, parameters = torch.zeros(3), torch.zeros(8), [torch.zeros(2)] * 3

    def formulas(x, rows):
        return export.affine_map(x, rows, family, base, False), export.interval(x, x + 1.0, *parameters, family)

    graph = make_fx(formulas)(x, rows).graph
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    return {target.overloadpacket.__name__ for target in called if isinstance(target, torch._ops.OpOverload)}


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_the_formulas_use_no_operator_that_loses_digits_in_onnx(family, base):
    assert operators_of(family, base) - ACCURATE == set()


# ------------------------------------------------------------------------------------------------------------ programs


def data(features):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(200, features, generator=generator) @ torch.randn(features, features, generator=generator)


class LogProb(torch.nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow.log_prob(x, context)


class Bins(torch.nn.Module):
    def forward(self, x):
        return mixflow.discretized_log_prob(x, x + 0.1, *parameters_of("moderate", torch.float32), family="logistic")


FLOWS = {
    "univariate": lambda: flows.univariate(components=4),
    "univariate to a logistic": lambda: flows.univariate(components=4, base="logistic"),
    "univariate to a uniform": lambda: flows.univariate(components=4, base="uniform", family="logistic"),
    "positive": lambda: flows.univariate(components=4, support="positive"),
    "gaussianization": lambda: flows.gaussianization(3, layers=1, components=4),
    "coupling": lambda: flows.coupling(3, layers=1, components=4, hidden=(8,)),
    "autoregressive": lambda: flows.autoregressive(3, layers=1, components=4, hidden=(8,)),
    "Gaussian mixture": lambda: flows.gaussian_mixture(3, components=4),
}


def model_and_data(name):
    """A module of one input, and more rows than an export sees: some far out, infinite and NaN."""
    if name == "bins":
        return Bins(), data(1)
    flow = FLOWS[name]()
    x = data(flow.features)
    x = x.abs() + 0.1 if name == "positive" else x
    with torch.no_grad():
        flow.initialize(x)
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return LogProb(flow).eval(), torch.cat([x, 30.0 * x[:20], x[:1] - 1e4, x[:1] * INF, x[:1] * NAN])


def same_density(actual, expected):
    """Rounding in front of a map is multiplied by its slope, which is moderate here."""
    close(actual, expected, 1.0 + expected.abs(), 4.0 * BOUND[torch.float32])


ROWS = ({0: torch.export.Dim.DYNAMIC},)
dynamo_warnings = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning"),
]


def marked(marks):
    def mark(function):
        for each in marks:
            function = each(function)
        return function

    return mark


@marked(dynamo_warnings)
@pytest.mark.parametrize("name", [*FLOWS, "bins"])
def test_a_decomposed_program_has_no_op_of_ours(name):
    model, x = model_and_data(name)
    program = torch.export.export(model, (x[:5],), dynamic_shapes=ROWS)
    program = program.run_decompositions(export.decompositions())
    assert not [n for n in program.graph.nodes if "mixflow" in str(n.target)]
    with torch.no_grad():
        same_density(program.module()(x), model(x))


@marked(dynamo_warnings)
def test_a_program_of_the_inverse_says_what_to_do():
    mixture = transforms.Inverse(transforms.MixtureCDF(1, components=3))
    program = torch.export.export(mixture, (torch.zeros(5, 1),))
    with pytest.raises(NotImplementedError, match="Export log_prob"):
        program.run_decompositions(export.decompositions())


# ---------------------------------------------------------------------------------------------------------- onnxruntime


def onnx_file(model, inputs, path, **options):
    torch.onnx.export(model, inputs, path, dynamo=True, verbose=False, external_data=False, **options)
    return path


def run(path, *inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    results = session.run(None, dict(zip(names, [t.numpy() for t in inputs], strict=True)))
    return tree_map(torch.from_numpy, results)


onnx_warnings = [*dynamo_warnings, pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode")]


@marked(onnx_warnings)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("coupling", "bins") else pytest.param(name, marks=pytest.mark.slow)
        for name in [*FLOWS, "bins"]
        if name != "univariate"
    ],
)
def test_onnxruntime_gives_the_log_density(name, tmp_path):
    model, x = model_and_data(name)
    path = onnx_file(model, (x[:5],), tmp_path / "flow.onnx", dynamic_shapes=ROWS)
    (log_prob,) = run(path, x)
    with torch.no_grad():
        same_density(log_prob, model(x))


@marked(onnx_warnings)
def test_onnxruntime_gives_both_results_of_a_transform_with_a_context(tmp_path):
    coupling = transforms.Coupling(3, components=4, hidden=(8,), context=2).eval()
    x, context = data(3), data(2)
    path = onnx_file(coupling, (x[:5], context[:5]), tmp_path / "flow.onnx", dynamic_shapes=ROWS * 2)
    with torch.no_grad():
        for actual, expected in zip(run(path, x, context), coupling(x, context), strict=True):
            same_density(actual, expected)


@marked(onnx_warnings)
def test_a_decomposed_program_goes_to_onnx_too(tmp_path):
    model, x = model_and_data("univariate")
    program = torch.export.export(model, (x[:5],), dynamic_shapes=ROWS)
    path = onnx_file(program.run_decompositions(export.decompositions()), (), tmp_path / "flow.onnx")
    with torch.no_grad():
        same_density(run(path, x)[0], model(x))


@marked(onnx_warnings)
def test_onnx_export_of_the_inverse_says_what_to_do(tmp_path):
    mixture = transforms.Inverse(transforms.MixtureCDF(1, components=3)).eval()
    with pytest.raises(Exception, match="Export log_prob or the forward direction"):
        onnx_file(mixture, (torch.zeros(5, 1),), tmp_path / "flow.onnx")
