"""Errors against high-precision truth, in eps: the bounds that `bench/accuracy.py` prints, on a smaller sample.

tests/truth/errors.py explains the scales on which errors count.
"""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from mpmath import mpf

import mixflow
import truth

OPS = {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}
FAMILY_AND_BASE = [(family, base) for family in truth.FAMILIES for base in truth.BASES]
MODERATE = ([0.3, -0.7, 0.1], [-1.0, 0.25, 1.5], [-0.5, 0.0, -1.0])


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize("family", truth.FAMILIES)
def test_bounds(family, dtype, device):
    cases = truth.sample(dtype, family, 192, seed=7)
    table = truth.measure(cases, {"mixflow": OPS}, seed=7, device=device)
    assert len(table) == 2 * len(truth.BASES)
    assert all(row.keys() == truth.BOUNDS.keys() for row in table.values())
    failures = truth.broken(table)
    assert not failures, "\n".join(f"{what}\n  {note}" for what, note in failures)


# -- seams -----------------------------------------------------------------------------------------------------


def seam_levels(dtype, log_scale):
    """(name, sign of the tail in which the seam lies, function of a mixture that passes through 0 at the seam)."""
    core = truth.CONSTANTS[dtype]
    smallest = math.log(core["linear_smallest"])
    floor = smallest + max(0.0, -min(log_scale))

    # F, S and f are normalised in the truth. The core compares sums with weights relative to the largest one.
    def compared(name, limit):
        return lambda mix: mp.log(getattr(mix, name)) - mp.log(max(mix.omega)) - limit

    yield "F", -1, compared("F", smallest)
    yield "S", 1, compared("S", smallest)
    for sign in (-1, 1):
        yield "f", sign, compared("f", floor)
        for w in sorted({core["probit_split"], core["probit_far"], core["probit_limit"]}):
            yield f"probit w={w}", sign, lambda mix, w=w: -mp.log(4 * mix.F * mix.S) - w


def find_seam(level, sign, parameters, family):
    """x where level(mixture at x) is 0, by bisection outwards from the centre."""
    with mp.workdps(30):

        def is_positive(x):
            return level(truth.mixture(x, *parameters, family)) > 0

        start = is_positive(0.0)
        far = 4 + truth.FAMILIES[family].quantile(1e3)  # in scales of at most 1
        return truth.bisect(lambda x: is_positive(x) == start, 0.0, sign * far)


def neighbours(x, count, number):
    """`count` consecutive numbers of the dtype around x != 0, in order."""
    kind = np.int32 if number is np.float32 else np.int64
    bits = np.array([x], dtype=number).view(kind)[0]
    steps = np.arange(-(count // 2), count - count // 2, dtype=kind)
    return np.sort((bits + steps).view(number))


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("components", [1, 3])
def test_no_seams(components, family, base, dtype, device):
    """Over consecutive numbers around every switch, z rises as it should, up to its error bound."""
    number, eps = truth.NUMBER[dtype], truth.EPSILON[dtype]
    parameters = [[float(number(v)) for v in p[:components]] for p in MODERATE]
    tensors = [torch.tensor(p, dtype=truth.DTYPES[dtype], device=device) for p in parameters]
    seen = set()
    for name, sign, level in seam_levels(dtype, parameters[2]):
        centre = find_seam(level, sign, parameters, family)
        # By rounding, the core switches a few numbers earlier or later.
        x = neighbours(number(centre), 256, number)
        results = mixflow.cdf_transform(torch.tensor(x, device=device), *tensors, family=family, base=base)
        z, ladj = (t.cpu().numpy() for t in results)
        at = truth.to_base(truth.mixture(float(x[128]), *parameters, family), base)
        if not truth.in_reach(at, base) or (base == "uniform" and at.z < truth.MIN_NORMAL[dtype]):
            continue
        seen.add(name)
        unit = float(eps * truth.value_scale(at, base))
        bound = truth.bounds(dtype, device)["z"] * unit
        rise = np.diff(z.astype(np.float64))
        expected = float(at.slope) * np.diff(x.astype(np.float64))
        assert (rise >= -bound).all(), f"{name} at {centre}: z falls by {-rise.min() / unit:.2f} eps"
        assert (rise <= bound + expected).all(), f"{name} at {centre}: jump of {rise.max() / unit:.2f} eps"
        jumps = np.abs(np.diff(ladj.astype(np.float64))).max() / float(eps * at.L)
        # One step of x changes ladj by far less than its error.
        assert jumps <= 2 * truth.bounds(dtype, device)["ladj"], f"{name} at {centre}: ladj jumps by {jumps:.2f} eps"
        # Where the truth rises by more than twice the bound, z rises strictly.
        if 2 * bound < 127 * expected[128]:
            stride = int(2 * bound / expected[128]) + 1
            assert (z[stride:] > z[:-stride]).all(), f"{name} at {centre}: not monotone over {stride} steps"
    assert {"F", "S", "f"} <= seen


# -- gradients at extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_gradients_are_finite_in_far_tails(family, base, dtype, device):
    kind = truth.DTYPES[dtype]
    x = torch.tensor([s * v for v in (10.0, 40.0, 1e2, 1e3, 1e4, 1e6) for s in (-1, 1)], dtype=kind, device=device)
    parameters = [torch.tensor(p, dtype=kind, device=device) for p in MODERATE]
    out = truth.evaluate(lambda *t: mixflow.cdf_transform(*t, family=family, base=base), (x, *parameters))
    flat = [v for grads in out.gradients for g in grads for v in np.ravel(g)]
    assert np.isfinite(flat).all()
    if base == "uniform":
        return  # dx/du is infinite where u is 0 or 1
    ends = truth.largest_target(base, family, dtype)
    z = torch.tensor([-ends, -0.1 * ends, -1.0, 0.0, 1.0, 0.1 * ends, ends], dtype=kind, device=device)
    out = truth.evaluate(lambda *t: mixflow.cdf_transform_inverse(*t, family=family, base=base), (z, *parameters))
    flat = [v for grads in out.gradients for g in grads for v in np.ravel(g)]
    assert np.isfinite(flat).all()


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_gradients_of_a_dead_component_are_exactly_zero(family, base, dtype, direction, device):
    kind = truth.DTYPES[dtype]
    x = torch.tensor([-300.0, -5.0, 0.5, 5.0, 300.0], dtype=kind)
    if direction == "inverse" and base == "uniform":
        # The first is below what linear sums hold in float32. Its dx/du is a number, even where tails are powers.
        x = torch.tensor([1e-20, 1e-3, 0.5, 0.75, 0.999], dtype=kind)
    if direction == "inverse" and base == "normal":
        x = x / 10
    if direction == "inverse":
        largest = truth.largest_target(base, family, dtype)
        x = x.clamp(-largest, largest)
    # Alone at the far left, inside the others, and far narrower than them.
    parameters = [
        torch.tensor([-math.inf, 0.2, -math.inf, -0.3, -math.inf], dtype=kind),
        torch.tensor([-290.0, -1.0, 0.5, 1.0, 1e6], dtype=kind),
        torch.tensor([0.0, 0.0, -10.0, 0.5, 10.0], dtype=kind),
    ]
    out = truth.evaluate(
        lambda *t: OPS[direction](*t, family=family, base=base),
        (x.to(device), *(p.to(device).expand(5, 5) for p in parameters)),
    )
    for grads in out.gradients:
        assert np.isfinite(grads[0]).all()
        for g in grads[1:]:
            array = np.array(g)
            assert np.isfinite(array).all()
            assert (array[:, [0, 2, 4]] == 0).all()
            assert (array[:, [1, 3]] != 0).any()


# -- derivatives along lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [0.4, -3.0, 12.0])
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_hessian_vector_products(family, base, x, device):
    """Double backward in float64, on the scale of the terms that a row of the Hessian adds up, times L."""
    rng = np.random.default_rng(5)
    point = [x, *MODERATE[0], *MODERATE[1], *MODERATE[2]]
    direction = rng.normal(size=len(point))
    weights = (1.0, 0.5)

    def loss(vector):
        z, ladj = mixflow.cdf_transform(vector[0], vector[1:4], vector[4:7], vector[7:], family=family, base=base)
        return weights[0] * z + weights[1] * ladj

    vector = torch.tensor(point, dtype=torch.float64, device=device)
    _, got = torch.autograd.functional.hvp(loss, vector, torch.tensor(direction, device=device))
    exact = truth.hessian_vector_product(point, direction, family, base, weights)
    columns = [
        truth.hessian_vector_product(point, np.eye(len(point))[j] * direction[j], family, base, weights)
        for j in range(len(point))
    ]
    L = truth.to_base(truth.mixture(point[0], *MODERATE, family), base).L
    scale = max(sum(abs(c[i]) for c in columns) for i in range(len(point))) * L
    error = max(abs(mpf(g) - e) for g, e in zip(got.tolist(), exact, strict=True)) / (scale * 2.0**-52)
    assert error <= 64, f"off by {float(error):.1f} eps"


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_jvp(family, base, dtype, direction, device):
    """Forward mode, on the sum of the scales of the partial derivatives."""
    number, kind = truth.NUMBER[dtype], truth.DTYPES[dtype]
    rng = np.random.default_rng(6)
    parameters = [[float(number(v)) for v in p] for p in MODERATE]
    for start in (0.4, -3.0, 12.0):
        x = float(number(start))
        if direction == "inverse":
            x = float(number(truth.forward(x, *parameters, family, base)["z"]))
            if base == "uniform" and x == 1.0:
                continue
        tangent = [float(number(v)) for v in rng.normal(size=10)]
        pieces = (tangent[0], tangent[1:4], tangent[4:7], tangent[7:])
        primals = tuple(torch.tensor(v, dtype=kind, device=device) for v in (x, *parameters))
        (value, _), tangents = torch.func.jvp(
            lambda *t: OPS[direction](*t, family=family, base=base),
            primals,
            tuple(torch.tensor(v, dtype=kind, device=device) for v in pieces),
        )
        mix = truth.mixture(x if direction == "forward" else value.item(), *parameters, family)
        exact = truth.gradients(mix, truth.to_base(mix, base), truth.EPSILON[dtype])
        names = ("z", "ladj") if direction == "forward" else ("x", "inverse ladj")
        for name, got in zip(names, tangents, strict=True):
            entries = list(exact[name].entries())
            with mp.workdps(truth.DIGITS):
                expected = mp.fdot([e[2] for e in entries], tangent)
                scale = mp.fsum(e[3] * abs(t) for e, t in zip(entries, tangent, strict=True))
            error = truth.relative_error(got.item(), expected, scale, dtype)
            assert error <= truth.BOUNDS["grad z"], f"{name} at {start}: {error:.1f} eps"


@pytest.mark.parametrize(("dtype", "log_scale"), [(torch.float32, -88.5), (torch.float64, -709.5)], ids=str)
def test_the_centre_of_a_component_near_the_narrowest_is_a_number(dtype, log_scale, device):
    parameters = [torch.tensor(p, dtype=dtype, device=device) for p in ([0.0, 0.0], [0.25, 0.0], [0.0, log_scale])]
    x = torch.zeros((), dtype=dtype, device=device)
    _, ladj = mixflow.cdf_transform(x, *parameters, family="logistic", base="uniform")
    assert ladj.item() == pytest.approx(math.log(1 / 8) - log_scale, rel=1e-6)


def test_a_light_component_has_its_weight_to_the_last_digit():
    # on its flank log f is about 0 and lets an error of the weight show; float64, in which no unit computes
    at = truth.Case(
        "extreme",
        "flank",
        "float64",
        "gaussian",
        1.4006628230834256e-115,
        (0.0, -263.0),
        (-2.0, 0.0),
        (0.0, -264.47296729894987),
    )
    table = truth.measure([at], {"mixflow": {"forward": mixflow.cdf_transform}}, ("uniform",))
    assert not truth.broken(table)
