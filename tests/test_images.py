"""Transforms of images: shapes, masks, log-determinants, dequantisation, and flows made of them."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mixflow
from mixflow import networks
from mixflow.flows import Flow
from mixflow.transforms import (
    Affine,
    Autoregressive,
    Compose,
    Dequantize,
    ImageCoupling,
    Inverse,
    Logit,
    MixtureCDF,
    Pixelwise,
    Reshape,
    Rotation,
    Squeeze,
)

TINY = networks.ConvNet(channels=4, blocks=1)
COUPLINGS = {
    "checkerboard": lambda: ImageCoupling((1, 4, 4), 3, network=TINY),
    "checkerboard-swapped": lambda: ImageCoupling((1, 4, 2), 3, swap=True, network=TINY),
    "checkerboard-gaussian": lambda: ImageCoupling((2, 2, 4), 2, family="gaussian", network=TINY),
    "channels": lambda: ImageCoupling((3, 2, 3), 3, mask="channels", network=TINY),
    "channels-swapped": lambda: ImageCoupling((3, 2, 3), 3, mask="channels", swap=True, network=TINY),
    "coupling-context": lambda: ImageCoupling((1, 4, 4), 3, context=2, network=TINY),
    "coupling-image-context": lambda: ImageCoupling((1, 4, 4), 3, context=(2, 4, 4), network=TINY),
    "channels-image-context": lambda: ImageCoupling((2, 3, 3), 3, mask="channels", context=(1, 3, 3), network=TINY),
}
CASES = COUPLINGS | {
    "reshape": lambda: Reshape((1, 4, 3), (12,)),
    "reshape-back": lambda: Reshape(12, (3, 2, 2)),
    "squeeze": lambda: Squeeze((2, 4, 6)),
    "squeeze-by-3": lambda: Squeeze((1, 3, 6), factor=3),
    "unsqueeze": lambda: Inverse(Squeeze((1, 4, 4))),
    "pixelwise-affine": lambda: Pixelwise(Affine(3), (2, 3)),
    "pixelwise-rotation": lambda: Pixelwise(Rotation(3), (2, 3)),
    "pixelwise-mixture-context": lambda: Pixelwise(MixtureCDF(2, 3, context=2), (2, 3)),
    "pixelwise-autoregressive": lambda: Pixelwise(Autoregressive(3, 2, (8,)), (2, 2)),
    "vectors-between-reshapes": lambda: Compose(
        Reshape((1, 2, 4), 8), MixtureCDF(8, 3), Affine(8), Reshape(8, (1, 2, 4))
    ),
    "flow++": lambda: Compose(
        ImageCoupling((1, 4, 4), 3, network=TINY, context=2),
        Squeeze((1, 4, 4)),
        Pixelwise(Rotation(4), (2, 2)),
        ImageCoupling((4, 2, 2), 3, mask="channels", network=TINY, context=2),
    ),
}


def jittered(transform, size=0.2):
    """The transform with random parameters, so that nothing holds by symmetry or because a gain is 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in transform.parameters():
            value.add_(size * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return transform


def build(case):
    torch.manual_seed(0)
    return jittered(CASES[case]().double())


def inputs(transform, *batch, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, *transform.event_shape, generator=generator, dtype=torch.float64)
    if not transform.context:
        return x, None
    return x, torch.randn(*batch, transform.context, generator=generator, dtype=torch.float64)


# -- every transform ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("case", CASES)
def test_any_batch_of_images_goes_through_both_directions(case, batch, dtype):
    transform = build(case).to(dtype)
    x, context = inputs(transform, *batch)
    x, context = x.to(dtype), None if context is None else context.to(dtype)
    z, ladj = transform(x, context)
    back, inverse_ladj = transform.inverse(z, context)
    assert z.shape == torch.Size([*batch, *transform.output_shape])
    assert ladj.shape == inverse_ladj.shape == torch.Size(batch)
    assert z.dtype == ladj.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_ladj_is_the_log_determinant_of_the_jacobian(case):
    transform = build(case)
    x, context = inputs(transform)
    z, _ = transform(x, context)
    for direction, values in ((transform, x), (transform.inverse, z.detach())):
        jacobian = torch.autograd.functional.jacobian(lambda t, d=direction: d(t, context)[0], values)
        _, ladj = direction(values, context)
        square = jacobian.reshape(transform.features, transform.features)
        torch.testing.assert_close(torch.linalg.slogdet(square).logabsdet, ladj.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_layout_of_memory_changes_nothing(case):
    transform = build(case)
    x, context = inputs(transform, 4)
    expected = transform(x, context)
    spread_out = torch.empty(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    others = [spread_out] + ([x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else [])
    for other in others:
        torch.testing.assert_close(transform(other, context), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in CASES if build(case).context])
def test_a_context_counts_and_broadcasts(case):
    transform = build(case)
    x, context = inputs(transform, 5)
    one, other = (transform(x[:1], part) for part in (context[0], context[1]))
    assert not torch.allclose(one[1], other[1])
    together = transform(x[:1], context[:2])
    torch.testing.assert_close(together[0], torch.cat([one[0], other[0]]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together[1], torch.cat([one[1], other[1]]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", COUPLINGS)
def test_every_parameter_of_a_coupling_gets_a_gradient(case):
    transform = build(case)
    x, context = inputs(transform, 6)
    z, ladj = transform(x, context)
    (z.square().sum() + ladj.sum()).backward()
    for name, parameter in transform.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0.0, name


# -- couplings ------------------------------------------------------------------------------------------------


def passing(transform):
    """Which pixels (C, H, W) pass, by the definition of the masks."""
    channel, row, column = torch.meshgrid(*(torch.arange(size) for size in transform.event_shape), indexing="ij")
    if transform.mask == "checkerboard":
        passes = (row + column) % 2 == 0
    else:
        passes = channel < (transform.event_shape[0] + 1) // 2
    return ~passes if transform.swap else passes


@pytest.mark.parametrize("case", COUPLINGS)
def test_what_passes_is_unchanged_and_conditions_the_rest_pixel_by_pixel(case):
    transform = build(case)
    x, context = inputs(transform)
    passes = passing(transform)
    z, _ = transform(x, context)
    assert torch.equal(z[passes], x[passes])
    assert (z[~passes] != x[~passes]).all()
    jacobian = torch.autograd.functional.jacobian(lambda t: transform(t, context)[0], x)
    square = jacobian.reshape(transform.features, transform.features)
    flat = passes.flatten()
    assert torch.equal(square[flat][:, flat], torch.eye(int(flat.sum()), dtype=x.dtype))
    assert (square[flat][:, ~flat] == 0.0).all()
    own = square[~flat][:, ~flat]
    assert torch.equal(own, torch.diag(own.diagonal()))
    assert (own.diagonal() > 0.0).all()
    assert (square[~flat][:, flat] != 0.0).any(0).all()  # every pixel that passes is of use


@pytest.mark.parametrize("case", COUPLINGS)
def test_a_coupling_starts_close_to_the_identity(case):
    transform = CASES[case]()
    x, context = inputs(transform, 50)
    z, ladj = transform(x.float(), None if context is None else context.float())
    torch.testing.assert_close(z, x.float(), rtol=0.0, atol=0.3)
    assert ladj.abs().mean() < 0.05 * transform.features
    raw = transform._raw(transform._split(x.float())[0], None if context is None else context.float())
    assert torch.equal(raw, transform.elementwise.start().expand_as(raw))  # components that differ, to be trained apart


def test_the_networks_inputs_are_standardised_by_channel_and_bounded():
    seen = []

    class Spy(nn.Conv2d):
        def forward(self, input):
            seen.append(input)
            return super().forward(input)

    transform = ImageCoupling((2, 2, 2), 2, mask="channels", network=lambda i, o: Spy(i, o, 1), context=1)
    generator = torch.Generator().manual_seed(0)
    x, context = 100.0 + 7.0 * torch.randn(500, 2, 2, 2, generator=generator), torch.full((500, 1), 3.0)
    transform.initialize(x, context)
    transform(x, context)
    transform(x + 1e20, context)
    assert seen[0].shape == (500, 2, 2, 2)
    assert abs(seen[0][:, 0].mean()) < 0.01
    assert abs(seen[0][:, 0].std() - 1.0) < 0.05
    assert (seen[0][:, 1] == 0.0).all()  # a constant context
    assert (seen[1][:, 0] == 8.0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ImageCoupling((1, 3, 4), 2), ValueError, "shape: expected an even height and width"),
        (lambda: ImageCoupling((1, 4, 4), 2, mask="channels"), ValueError, "shape: expected at least 2 channels"),
        (lambda: ImageCoupling((4, 4), 2), ValueError, r"shape: expected \(C, H, W\), got \(4, 4\)"),
        (lambda: ImageCoupling((1, 4, 4), 2, mask="rows"), ValueError, "mask: expected one of checkerboard, channels"),
        (lambda: ImageCoupling((1, 4, 4), 2, context=(1, 2, 2)), ValueError, "context: expected an image of 4 x 4"),
        (lambda: ImageCoupling((1, 4, 4), 2, network=3), TypeError, "network: expected a function"),
        (lambda: ImageCoupling((1, 4, 4), 2, network=lambda i, o: o), TypeError, "network: expected a function that"),
        (lambda: Squeeze((1, 4, 6), 4), ValueError, "factor: expected one that divides 4 and 6, got 4"),
        (lambda: Reshape((1, 4, 6), 23), ValueError, r"after: expected a shape of 24 numbers, .* got \(23,\)"),
        (lambda: Pixelwise(Squeeze((1, 2, 2)), (2, 2)), ValueError, "transform: expected one of vectors"),
        (lambda: Pixelwise(nn.Linear(2, 2), (2, 2)), TypeError, "transform: expected a Transform"),
        (lambda: Pixelwise(Affine(2), 2), ValueError, r"size: expected \(H, W\), got 2"),
        (lambda: Dequantize((1, 2, 2), 1), ValueError, "levels: expected an integer of at least 2, got 1"),
        (lambda: Dequantize((1, 2, 2), 4, noise=Affine(4)), ValueError, "noise: expected a transform of events"),
        (
            lambda: Dequantize((1, 2, 2), 4, noise=ImageCoupling((1, 2, 2), 2, context=3)),
            ValueError,
            "noise: expected a context of 4 numbers or none, got 3",
        ),
        (lambda: networks.ConvNet(kernel=2), ValueError, "kernel: expected an odd size"),
        (lambda: networks.ConvNet(dropout=1.0), ValueError, "dropout: expected a probability"),
        (
            lambda: Compose(Squeeze((1, 4, 4)), ImageCoupling((1, 4, 4), 2)),
            ValueError,
            r"events of shape \(4, 2, 2\) and then events of shape \(1, 4, 4\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


class TwoTensors(nn.Conv2d):
    def forward(self, input):
        return super().forward(input), input


@pytest.mark.parametrize(
    ("network", "got"),
    [
        (lambda inputs, outputs: nn.Conv2d(inputs, outputs + 1, 1), r"\(3, 17, 4, 4\)"),
        (lambda inputs, outputs: nn.Conv2d(inputs, outputs, 2), r"\(3, 16, 3, 3\)"),  # without padding
        (lambda inputs, outputs: TwoTensors(inputs, outputs, 1), "tuple"),
    ],
)
def test_a_network_that_returns_another_shape_is_told_what_was_expected(network, got):
    transform = ImageCoupling((1, 8, 8), 2, network=network)
    expected = rf"network: expected a module that maps \(N, 2, 4, 4\) to \(N, 16, 4, 4\), got {got} for N = 3"
    with pytest.raises(ValueError, match=expected):
        transform(torch.zeros(3, 1, 8, 8))


# -- squeezing and single pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "factor"), [((1, 4, 6), 2), ((3, 6, 3), 3), ((2, 2, 2), 1)])
def test_squeeze_is_torchs_pixel_unshuffle(shape, factor):
    x = torch.arange(float(5 * math.prod(shape))).reshape(5, *shape)
    squeeze = Squeeze(shape, factor)
    assert torch.equal(squeeze(x)[0], nn.functional.pixel_unshuffle(x, factor))
    assert torch.equal(squeeze.inverse(squeeze(x)[0])[0], x)


def test_pixelwise_is_the_transform_at_each_pixel():
    inner = jittered(Affine(3).double())
    x = inputs(transform := Pixelwise(inner, (2, 5)), 4)[0]
    z, ladj = transform(x)
    rows, row_ladj = inner(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(z, rows.permute(0, 3, 1, 2))
    torch.testing.assert_close(ladj, row_ladj.sum((1, 2)))


def test_pixelwise_is_initialised_on_all_pixels_and_has_the_domain_of_its_transform():
    generator = torch.Generator().manual_seed(0)
    x = 5.0 + torch.tensor([1.0, 10.0]).reshape(2, 1, 1) * torch.randn(200, 2, 3, 3, generator=generator)
    transform = Pixelwise(Affine(2), (3, 3))
    transform.initialize(x)
    z = transform(x)[0].movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(z.std(0), torch.ones(2), rtol=0.0, atol=1e-4)
    logit = Pixelwise(Logit(2), (3, 3))
    assert torch.equal(logit.outside(x), (x <= 0.0) | (x >= 1.0))
    assert logit.inside(x).shape == (2, 3, 3)


# -- dequantisation -------------------------------------------------------------------------------------------


def learned_noise(shape=(1, 2, 2)):
    return Compose(*(ImageCoupling(shape, 3, swap=swap, context=shape, network=TINY) for swap in (False, True)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_dequantised_integers_lie_in_their_interval_and_come_back(levels, dtype):
    dequantize = Dequantize((1, 2, 2), levels)
    torch.manual_seed(0)
    x = torch.randint(levels, (20_000, 1, 2, 2)).to(dtype)
    x[0], x[1] = 0.0, levels - 1.0
    z, ladj = dequantize(x)
    assert z.dtype == dtype
    assert not dequantize.outside(x).any()
    assert not dequantize.outside_image(z).any()
    back, inverse_ladj = dequantize.inverse(z)
    assert torch.equal(back, x)
    torch.testing.assert_close(ladj, torch.full((20_000,), -4.0 * math.log(levels), dtype=dtype))
    assert torch.equal(inverse_ladj, -ladj)


def test_uniform_noise_is_uniform_and_new_in_every_call():
    dequantize = Dequantize(1, 17)
    x = torch.full((20_000, 1), 3.0)
    torch.manual_seed(0)
    first, second = (dequantize(x)[0].sort(0).values * 17.0 - 3.0 for _ in range(2))
    assert not torch.equal(first, second)
    steps = torch.linspace(0.0, 1.0, 20_000).unsqueeze(-1)
    assert (first - steps).abs().max() < 1.63 / math.sqrt(20_000)  # Kolmogorov and Smirnov, 1 in 100
    torch.manual_seed(0)
    assert torch.equal(dequantize(x)[0].sort(0).values * 17.0 - 3.0, first)
    torch.manual_seed(0)
    assert torch.equal(dequantize.eval()(x)[0].sort(0).values * 17.0 - 3.0, first)


def test_a_sample_from_beyond_the_last_level_becomes_the_level_next_to_it():
    x, _ = Dequantize(1, 4).inverse(torch.tensor([[-0.3], [0.0], [0.6], [1.0], [1.2]]))
    assert x.flatten().tolist() == [0.0, 0.0, 2.0, 3.0, 3.0]


def test_levels_need_digits():
    with pytest.raises(ValueError, match=r"x: expected a dtype with digits for 256 levels and noise, got torch.bf"):
        Dequantize(1, 256)(torch.zeros(1, 1, dtype=torch.bfloat16))


@pytest.mark.parametrize("noise", [None, learned_noise])
def test_the_mean_of_exp_log_prob_is_the_probability_of_the_integers(noise):
    """Of a known distribution: independent pixels of a discretised logit-normal mixture."""
    levels, shape = 4, (1, 2, 2)
    torch.manual_seed(0)
    dequantize = Dequantize(shape, levels, noise=None if noise is None else jittered(noise(), 0.1))
    marginal = MixtureCDF(1, 2)
    with torch.no_grad():
        marginal.loc.copy_(torch.tensor([[-1.0, 1.5]]))
        marginal.log_scale.copy_(torch.tensor([[-0.5, 0.3]]))
    flow = Flow(Compose(dequantize, Pixelwise(Compose(Logit(1), marginal), (2, 2)))).double()
    edges = torch.logit(torch.linspace(0.0, 1.0, levels + 1, dtype=torch.float64))
    exact = mixflow.discretized_log_prob(
        edges[:-1], edges[1:], marginal.logits[0], marginal.loc[0], marginal.log_scale[0]
    )
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64).reshape(shape)
    with torch.no_grad():
        draws = flow.log_prob(x.expand(40_000, *shape))
    truth = exact.sum()
    weights = torch.exp(draws - truth)
    assert abs(weights.mean() - 1.0) < 4.0 * weights.std() / math.sqrt(len(weights))
    assert weights.std() < 2.0
    assert draws.mean() < truth


def test_learned_noise_starts_nearly_uniform_and_gives_both_directions_one_density():
    torch.manual_seed(0)
    dequantize = Dequantize((1, 2, 2), 17, noise=learned_noise()).double()
    x = torch.randint(17, (2000, 1, 2, 2)).double()
    dequantize.initialize(x)
    seen = dequantize.noise.transforms[0].conditioner.inputs  # two places of pixels with noise, four with the context
    torch.testing.assert_close(seen.scale[2:], torch.full((4,), 1.0 / math.sqrt(12.0)).double(), rtol=0.05, atol=0.0)
    _, ladj = dequantize(x)
    assert abs((ladj + 4.0 * math.log(17.0)).mean()) < 0.02
    z, ladj = jittered(dequantize)(x)
    assert ladj.std() > 0.1
    back, inverse_ladj = dequantize.inverse(z)
    assert torch.equal(back, x)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-6, atol=1e-6)


# -- flows ----------------------------------------------------------------------------------------------------


def image_flow(noise=None):
    shape = (1, 4, 4)
    return Flow(
        Compose(
            Dequantize(shape, 5, noise=noise),
            Pixelwise(Logit(1), shape[1:]),
            Pixelwise(MixtureCDF(1, 3), shape[1:]),
            ImageCoupling(shape, 2, network=TINY),
            ImageCoupling(shape, 2, swap=True, network=TINY),
        )
    )


def stripes(n, seed=0):
    """Images of 0 and 4 in vertical stripes, some pixels off by one."""
    generator = np.random.default_rng(seed)
    image = np.tile([0, 4, 0, 4], (n, 1, 4, 1)).astype(np.uint8)
    off = generator.random(image.shape) < 0.2
    return np.where(off, np.where(image == 0, 1, 3), image).astype(np.uint8)


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(0)
    flow = image_flow()
    mixflow.fit(flow, stripes(600), epochs=10, batch_size=50, lr=0.02, progress=False)
    return flow


def test_a_flow_of_images_learns_from_integers_and_samples_integers(fitted):
    torch.manual_seed(1)
    images = torch.from_numpy(stripes(200, seed=1)).float()
    with torch.no_grad():
        learned, plain = fitted.log_prob(images), -16.0 * math.log(5.0)
    assert learned.shape == (200,)
    assert learned.mean() > plain + 5.0
    samples = fitted.sample(50, seed=0)
    assert samples.shape == (50, 1, 4, 4)
    assert samples.unique().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert torch.equal(samples, fitted.sample(50, seed=0))
    assert samples[..., 1::2].mean() > samples[..., ::2].mean() + 2.0
    assert fitted.sample((2, 3), seed=0).shape == (2, 3, 1, 4, 4)


@pytest.mark.parametrize("noise", [None, lambda: learned_noise((1, 4, 4))])
def test_images_may_have_another_dtype_than_the_flow(noise):
    flow = image_flow(None if noise is None else noise())
    images = stripes(5).astype(np.float64)
    log_prob = flow.log_prob(images)
    assert log_prob.dtype == np.float32
    torch.manual_seed(0)
    expected = flow.log_prob(torch.from_numpy(images).float())
    torch.manual_seed(0)
    torch.testing.assert_close(flow.log_prob(torch.from_numpy(images)), expected)


def test_an_image_that_is_not_made_of_the_integers_has_no_probability(fitted):
    images = torch.from_numpy(stripes(5, seed=1)).float()
    images[1, 0, 2, 2], images[2, 0, 0, 0], images[3, 0, 3, 1] = 0.5, 5.0, math.nan
    log_prob = fitted.log_prob(images)
    assert log_prob.isfinite().tolist() == [True, False, False, False, True]
    assert log_prob[1] == log_prob[2] == -math.inf
    assert log_prob[3].isnan()
    with pytest.raises(ValueError, match="inside the support"):
        mixflow.fit(image_flow(), images[:3], progress=False)


@pytest.mark.parametrize("noise", [None, lambda: learned_noise((1, 4, 4))])
def test_a_saved_flow_of_images_is_the_same_when_it_is_loaded(noise, fitted, tmp_path):
    flow = fitted if noise is None else image_flow(noise())
    mixflow.save(flow, tmp_path / "images.safetensors")
    loaded = mixflow.load(tmp_path / "images.safetensors")
    assert torch.equal(loaded.sample(5, seed=0), flow.sample(5, seed=0))
    images, scores = torch.from_numpy(stripes(5)).float(), []
    for one in (flow, loaded):
        torch.manual_seed(0)
        scores.append(one.log_prob(images))
    assert torch.equal(*scores)


def test_a_network_of_ones_own_makes_a_flow(tmp_path):
    flow = Flow(ImageCoupling((2, 4, 4), 2, mask="channels", network=lambda i, o: nn.Conv2d(i, o, 1)))
    assert flow.log_prob(torch.zeros(3, 2, 4, 4)).shape == (3,)
    with pytest.raises(ValueError, match="network: expected"):
        mixflow.save(flow, tmp_path / "own.safetensors")


def test_log_prob_compiles_to_one_graph(fitted):
    torch.compiler.reset()
    images = torch.from_numpy(stripes(6)).float()
    compiled = torch.compile(fitted.log_prob, backend="aot_eager", fullgraph=True)
    scores = []
    for log_prob in (compiled, fitted.log_prob):
        torch.manual_seed(0)
        with torch.no_grad():
            scores.append(log_prob(images))
    torch.testing.assert_close(*scores)
    torch.compiler.reset()


# -- networks -------------------------------------------------------------------------------------------------


def test_a_network_factory_is_known_by_its_arguments():
    factory = networks.ConvNet(8, kernel=5, dropout=0.1)
    assert factory.arguments == {"channels": 8, "blocks": 2, "kernel": 5, "dropout": 0.1}
    assert networks.ConvNet(**factory.arguments) == factory
    assert repr(factory) == "ConvNet(channels=8, blocks=2, kernel=5, dropout=0.1)"


@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolutional_network_keeps_the_size_of_images(blocks, kernel):
    assert networks.ConvNet(4, blocks, kernel)(3, 7)(torch.zeros(2, 3, 5, 6)).shape == (2, 7, 5, 6)


def test_dropout_is_active_in_training_mode_alone():
    torch.manual_seed(0)
    network, x = networks.ConvNet(8, 1, dropout=0.5)(1, 2), torch.randn(4, 1, 4, 4)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.release
@pytest.mark.parametrize("data", ["digits", "photograph"])
def test_the_example_runs(data, tmp_path):
    example = Path(__file__).parent.parent / "examples" / "images.py"
    command = [sys.executable, str(example), "--quick", "--data", data, "--out", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".safetensors"}


def noisy_flow():
    """A flow that draws numbers in training: noise and dropout."""
    torch.manual_seed(0)
    flow = image_flow(learned_noise((1, 4, 4)))
    dropping = networks.ConvNet(4, 1, dropout=0.5)
    return Flow(Compose(*flow.data_to_base.each(), ImageCoupling((1, 4, 4), 2, network=dropping)))


def test_a_fit_that_draws_noise_depends_on_its_seed_alone():
    options = {"epochs": 3, "batch_size": 50, "progress": False}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = noisy_flow(), noisy_flow(), noisy_flow()
    torch.set_rng_state(before)
    histories = [mixflow.fit(first, stripes(200), **options)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    mixflow.fit(second, stripes(200), **options)
    histories.append(mixflow.fit(other, stripes(200), **options, seed=1))
    assert histories[0].train_log_prob != histories[1].train_log_prob
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_fit_and_load_leave_a_flow_without_dropout(tmp_path):
    flow = noisy_flow()
    mixflow.fit(flow, stripes(200), epochs=2, batch_size=50, progress=False)
    assert not any(module.training for module in flow.modules())
    mixflow.save(flow, tmp_path / "flow.safetensors")
    assert not any(module.training for module in mixflow.load(tmp_path / "flow.safetensors").modules())


def test_notes_on_images_are_of_images():
    history = mixflow.fit(noisy_flow(), stripes(200), epochs=1, progress=False)
    assert history.notes[0] == "Data: 180 rows to learn from, 20 held out, each of shape (1, 4, 4)."
    assert not any("Repeated values" in note for note in history.notes)


def test_a_constant_column_that_was_rounded_is_no_constant():
    data = np.stack([np.zeros(200), np.arange(200.0) % 7], axis=1)
    flow = mixflow.flows.coupling(2, layers=1, hidden=(4,), seed=0)
    with pytest.raises(ValueError, match="expected columns that vary"):
        mixflow.fit(flow, data, epochs=1, progress=False)
    mixflow.fit(flow, data, epochs=1, resolution=1.0, progress=False)
    assert flow.log_prob(torch.zeros(1, 2)).isfinite()
