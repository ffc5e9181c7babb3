"""Model files: what was saved comes back, and whatever else is in a file gets one clear error."""

import inspect
import json
import stat
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mixflow
from mixflow import flows, transforms
from mixflow.files import tensor_file
from mixflow.files.tensor_file import sign
from mixflow.flows import RECIPES, parts
from mixflow.flows.gaussian_mixture import GaussianMixture
from mixflow.networks import ConvNet


@pytest.fixture
def flow():
    flow = flows.univariate(components=3, family="logistic", base="uniform")
    flow.initialize(torch.randn(100, 1, generator=torch.Generator().manual_seed(0)))
    flow.notes = {"columns": ["length"]}
    return flow


@pytest.fixture
def path(flow, tmp_path):
    path = tmp_path / "model.safetensors"
    mixflow.save(flow, path)
    return path


def rewrite(path, *, tensors=None, resign=True, **metadata):
    """Change tensors or metadata of a model file, by default with a checksum that fits the change."""
    with safe_open(path, framework="pt") as file:
        old = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() | metadata
    tensors = old | (tensors or {})
    tensors = {name: value for name, value in tensors.items() if value is not None}
    save_file(tensors, path, sign(metadata, tensors) if resign else metadata)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(flow, tmp_path, dtype):
    flow.to(dtype)
    mixflow.save(flow, tmp_path / "m.safetensors")
    loaded = mixflow.load(tmp_path / "m.safetensors")
    assert loaded.recipe == flow.recipe
    assert loaded.notes == flow.notes
    x = torch.linspace(-3.0, 3.0, 11, dtype=dtype)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert torch.equal(loaded.sample(9, seed=0), flow.sample(9, seed=0))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in flow.parameters()]
    mixflow.fit(loaded, x.repeat(10), epochs=1, progress=False)


def test_round_trip_with_a_context(tmp_path):
    torch.manual_seed(0)
    flow = flows.univariate(components=2, context=3)
    mixflow.save(flow, tmp_path / "m.safetensors")
    loaded = mixflow.load(tmp_path / "m.safetensors")
    context = torch.ones(5, 3)
    assert torch.equal(loaded.log_prob(torch.ones(5), context), flow.log_prob(torch.ones(5), context))


def test_saving_replaces_whole_files_and_leaves_nothing_else(flow, path):
    before = path.read_bytes()
    flow.notes["bad"] = object()
    with pytest.raises(ValueError, match="finite JSON values"):
        mixflow.save(flow, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize("notes", [{1: "one"}, {"inside": {2.5: 0}}, {None: 0}, {"shape": (3, 1)}])
def test_notes_that_json_would_change_are_refused(flow, tmp_path, notes):
    flow.notes = notes
    with pytest.raises(ValueError, match="flow: expected notes"):
        mixflow.save(flow, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_integers_of_other_kinds_are_saved_as_integers(tmp_path):
    for components in (np.int64(3), torch.tensor(3)):
        flow = flows.univariate(components, context=np.int32(0))
        mixflow.save(flow, tmp_path / "m.safetensors")
        assert mixflow.load(tmp_path / "m.safetensors").recipe == flow.recipe == flows.univariate(3).recipe


def test_saving_fails_before_anything_is_written(flow, tmp_path):
    with pytest.raises(OSError, match=r"missing.*cannot write here"):
        mixflow.save(flow, tmp_path / "missing" / "m.safetensors")
    with pytest.raises(IsADirectoryError, match="expected a file, got a directory"):
        mixflow.save(flow, tmp_path)
    with pytest.raises(TypeError, match="flow: expected a Flow, got Affine"):
        mixflow.save(transforms.Affine(1), tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        mixflow.load(tmp_path / "nothing.safetensors")


def test_every_truncation_is_noticed(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="truncated, damaged or not a safetensors file"):
            mixflow.load(path)


def test_every_flipped_bit_is_noticed_or_harmless(flow, path):
    whole = path.read_bytes()
    x = torch.linspace(-3.0, 3.0, 5)
    expected = flow.log_prob(x)
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        try:
            loaded = mixflow.load(path)
        except ValueError:
            noticed += 1
        else:
            # Padding of the header, for example. What loads is what was saved.
            assert torch.equal(loaded.log_prob(x), expected), position
            assert loaded.notes == flow.notes
    assert noticed > 0.95 * len(whole)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_text("not a model at all, but long enough to hold a header")
    with pytest.raises(ValueError, match="not a safetensors file"):
        mixflow.load(path)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="expected a mixflow model"):
        mixflow.load(path)


def description(**changes):
    arguments = {"components": 3, "family": "logistic", "base": "uniform", "context": 0}
    return json.dumps({"recipe": "univariate", "arguments": arguments, "notes": {}} | changes)


FORGED = {
    "version": ({"version": "3"}, "expected format version 1 or 2, got '3'; it was written by another version"),
    "recipe": (
        {"flow": description(recipe="os.system")},
        "expected a flow among univariate.*, got 'os.system'",
    ),
    "recipe type": ({"flow": description(recipe=["univariate"])}, "wrong types"),
    "no json": ({"flow": "{"}, "cannot be read"),
    "other json": ({"flow": "[1, 2]"}, "cannot be read"),
    "other keys": ({"flow": description(transform={})}, "wrong types"),
    "infinite": ({"flow": description().replace('"context": 0', '"context": Infinity')}, "cannot be read"),
    "overflowing": ({"flow": description().replace('"context": 0', '"context": 1e999')}, "expected a finite number"),
    "deep json": ({"flow": "[" * 100_000}, "cannot be read"),
    "unknown argument": (
        {"flow": description(arguments={"command": "rm"})},
        "univariate: cannot be built from its arguments",
    ),
    "negative": ({"flow": description(arguments={"components": -3})}, "univariate: cannot be built.*components"),
    "true": ({"flow": description(arguments={"components": True})}, "univariate: cannot be built.*components"),
    "wrong type": ({"flow": description(arguments={"family": ["gaussian"]})}, "univariate: cannot be built.*family"),
    "huge": (
        {"flow": description(arguments={"components": 10**13})},
        r"components: expected at most \d+, the numbers in the file, got 10000000000000",
    ),
    "beyond huge": ({"flow": description(arguments={"components": 10**30})}, "univariate: cannot be built.*components"),
    "other size": (
        {"flow": description(arguments={"components": 4})},
        r"expected shape \(1, 4\), got \(1, 3\)",
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_metadata_is_refused(path, forged):
    metadata, message = FORGED[forged]
    rewrite(path, **metadata)
    with pytest.raises(ValueError, match=message):
        mixflow.load(path)


SIZES = {"features": 2, "layers": 2, "components": 2, "hidden": [2], "marginal_components": 2, "context": 1}


@pytest.mark.parametrize("name", RECIPES)
def test_forged_sizes_are_refused_before_anything_is_made_of_them(tmp_path, name):
    known = inspect.signature(RECIPES[name]).parameters
    arguments = {size: value for size, value in SIZES.items() if size in known}
    path = tmp_path / "model"
    mixflow.save(RECIPES[name](**arguments), path)
    numbers = sum(value.numel() for value in mixflow.load(path).state_dict().values())
    forgeries = [{size: [10**9] if isinstance(value, list) else 10**9} for size, value in arguments.items()]
    if "layers" in arguments:
        forgeries.append({"features": numbers, "layers": 1000})
    for forgery in forgeries:
        rewrite(path, flow=description(recipe=name, arguments=arguments | forgery))
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=r"cannot be built .*the numbers in the file, got"):
                mixflow.load(path)
            assert tracemalloc.get_traced_memory()[1] < 2**18
        finally:
            tracemalloc.stop()


def test_forged_tensors_are_refused(path):
    name = "data_to_base.transforms.1.loc"
    for tensors, message in [
        ({name: None}, r"loc': expected shape \(1, 3\), got none"),
        ({"extra": torch.zeros(1)}, "'extra': expected shape none, got"),
        ({name: torch.zeros(3, 1)}, r"expected shape \(1, 3\), got \(3, 1\)"),
        ({name: torch.zeros(1, 3, dtype=torch.float64)}, "one floating-point dtype"),
    ]:
        original = path.read_bytes()
        rewrite(path, tensors=tensors)
        with pytest.raises(ValueError, match=message):
            mixflow.load(path)
        path.write_bytes(original)


def test_a_change_without_its_checksum_is_noticed(path):
    rewrite(path, tensors={"data_to_base.transforms.1.loc": torch.zeros(1, 3)}, resign=False)
    with pytest.raises(ValueError, match="do not match its checksum"):
        mixflow.load(path)


def test_loaded_weights_are_aligned_as_new_ones_are(path):
    assert all(value.data_ptr() % 64 == 0 for value in mixflow.load(path).state_dict().values())


# -- flows put together by hand ------------------------------------------------------------------------------


def tied():
    layer = transforms.MixtureCDF(2, 3, "logistic", "logistic")
    return transforms.Compose(transforms.Affine(2), layer, transforms.Rotation(2), transforms.Inverse(layer), layer)


def exchanged():
    transform = transforms.Compose(transforms.Affine(2), transforms.Inverse(transforms.MixtureCDF(2, 3)))
    transform.transforms[0] = transforms.Permutation([1, 0])
    transform.transforms[1].transform = transforms.MixtureCDF(2, 5)
    return transform


def resized():
    mixture = transforms.MixtureCDF(2, 3)
    mixture.resize(4)
    return mixture


def whitened():
    whitening = transforms.Whitening(2)
    whitening.set_gaussian(torch.tensor([3.0, -1.0]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    return whitening


QUARTER = torch.tensor([[0.0, -1.0], [1.0, 0.0]])

SMALL = ConvNet(channels=np.int64(3), blocks=1, dropout=0.25)

BY_HAND = {
    "affine": lambda: transforms.Affine(3, loc=[1.0, 2, 3], scale=np.array([0.5, 1.0, 2.0], dtype=np.float32)),
    "fixed": lambda: transforms.ActNorm(2, False, loc=10**9, scale=torch.tensor(3.0)),
    "marginals": lambda: transforms.MixtureCDF(np.int64(2), torch.tensor(3), "logistic", "logistic"),
    "mixtures of a context": lambda: transforms.MixtureCDF(2, 3, context=2),
    "rotation": lambda: transforms.Rotation(2),
    "rotation from a quarter": lambda: transforms.Rotation(2, QUARTER),
    "whitening": whitened,
    "permutation": lambda: transforms.Permutation(torch.tensor([2, 0, 1])),
    "coupling": lambda: transforms.Coupling(3, 4, (8, 5), mask=np.array([True, False, True]), family="gaussian"),
    "coupling of a context": lambda: transforms.Coupling(3, 2, [4], context=2),
    "autoregressive": lambda: transforms.Autoregressive(3, 2, hidden=torch.Size([7]), context=2),
    "support": lambda: transforms.Support(4, ["positive", (0, 10**9), None, (-float("inf"), np.float32(2.5))]),
    "to the line and back": lambda: transforms.Compose(
        transforms.Logit(2),
        transforms.Softplus(2),
        transforms.Log(2),
        transforms.Exp(2),
        transforms.Inverse(transforms.Softplus(2)),
        transforms.Inverse(tied()),
    ),
    "images": lambda: transforms.Compose(
        transforms.Dequantize((1, 4, 4), levels=16),
        transforms.Pixelwise(transforms.Logit(1), (4, 4)),
        transforms.Squeeze([1, 4, 4]),
        transforms.Pixelwise(transforms.Rotation(4), (2, 2)),
        transforms.ImageCoupling((4, 2, 2), 2, swap=True, context=2, network=SMALL),
        transforms.ImageCoupling((4, 2, 2), 2, mask="channels", context=2, network=SMALL),
        transforms.Reshape((4, 2, 2), 16),
    ),
    "learned noise": lambda: transforms.Dequantize(
        (1, 4, 4), 256, noise=transforms.ImageCoupling((1, 4, 4), 2, context=(1, 4, 4), network=SMALL)
    ),
    "no weights": lambda: transforms.Compose(transforms.Sigmoid(2), transforms.Rebase(2, "uniform", "normal")),
    "nested": lambda: transforms.Compose(transforms.Compose(tied()), transforms.Inverse(transforms.Inverse(tied()))),
    "tied": tied,
    "exchanged": exchanged,
    "resized": resized,
}


def by_hand(name, base="normal"):
    """The flow of that name, with weights as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    flow = flows.Flow(BY_HAND[name](), base)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return flow


def log_prob(flow, x, context):
    torch.manual_seed(0)  # of the noise that dequantises
    return flow.log_prob(x, context)


def saved_and_loaded(flow, tmp_path):
    mixflow.save(flow, tmp_path / "m.safetensors")
    return mixflow.load(tmp_path / "m.safetensors")


def test_every_transform_is_in_the_table_of_flows_put_together_by_hand():
    exported = {getattr(transforms, name) for name in transforms.__all__} - {transforms.Transform}
    assert {type(module) for build in BY_HAND.values() for module in build().modules()} >= exported


@pytest.mark.parametrize("name", BY_HAND)
def test_flows_put_together_by_hand_come_back(tmp_path, name):
    flow = by_hand(name, "logistic").eval()
    flow.notes = {"columns": ["length"]}
    loaded = saved_and_loaded(flow, tmp_path).eval()
    assert (repr(loaded), loaded.base, loaded.notes, loaded.recipe) == (repr(flow), "logistic", flow.notes, None)
    assert loaded.fitted
    context = torch.tensor([0.5, -1.0]) if flow.context else None
    x = flow.sample(9, context, seed=0)
    assert torch.equal(loaded.sample(9, context, seed=0), x)
    assert torch.equal(log_prob(loaded, x, context), log_prob(flow, x, context))
    assert flow.state_dict().keys() == loaded.state_dict().keys()
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in flow.parameters()]
    again = saved_and_loaded(loaded, tmp_path).eval()
    assert torch.equal(log_prob(again, x, context), log_prob(flow, x, context))


def test_large_integers_that_are_no_sizes_are_saved(tmp_path):
    for transform in (
        transforms.Dequantize(2, levels=2**40),
        transforms.Support(1, (-(10**12), 10**12)),
        transforms.Affine(1, loc=-(10**12), scale=[10**12]),
    ):
        flow = flows.Flow(transform)
        assert repr(saved_and_loaded(flow, tmp_path)) == repr(flow)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_flows_put_together_by_hand_keep_their_dtype(tmp_path, dtype):
    flow = by_hand("tied").to(dtype)
    loaded = saved_and_loaded(flow, tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_offsets_of_flows_put_together_by_hand_keep_the_precision_of_the_data(tmp_path):
    flow = flows.Flow(transforms.Compose(transforms.Affine(1, trainable=False), transforms.MixtureCDF(1, 2)))
    flow.initialize(1.7e9 + torch.linspace(0.0, 9.0, 50, dtype=torch.float64).unsqueeze(-1))
    loaded = saved_and_loaded(flow, tmp_path)
    assert loaded.data_to_base.transforms[0].loc.dtype == torch.float64
    assert torch.equal(loaded.sample(5, seed=0), flow.sample(5, seed=0))


def test_transforms_that_occur_twice_stay_one(tmp_path):
    flow = by_hand("tied")
    loaded = saved_and_loaded(flow, tmp_path)
    first, _, inverse, again = loaded.data_to_base.each()[1:]
    assert first is inverse.transform is again
    assert len(list(loaded.parameters())) == len(list(flow.parameters()))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert sum("log_scale" in name for name in file.keys()) == 2  # noqa: SIM118


def test_saving_and_loading_leave_the_random_numbers_alone(tmp_path):
    flow, before = by_hand("coupling"), torch.get_rng_state()
    saved_and_loaded(flow, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_that_mixflow_exports_come_back(tmp_path):
    loaded = saved_and_loaded(flows.Flow(BY_HAND["images"]()), tmp_path)
    assert [loaded.data_to_base.transforms[number].arguments["network"] for number in (4, 5)] == [SMALL, SMALL]
    assert "Dropout2d(p=0.25" in repr(loaded)
    flow = flows.coupling(3, layers=2, network=SMALL)
    loaded = saved_and_loaded(flow, tmp_path)
    assert loaded.recipe == flow.recipe
    assert repr(loaded) == repr(flow)
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in loaded.state_dict().items())


class Flip(transforms.Permutation):
    """A transform of the user's own."""

    def __init__(self, features):
        super().__init__(range(features)[::-1])


class OwnFlow(flows.Flow):
    """A flow of the user's own."""


def network(inputs, outputs):
    return torch.nn.Linear(inputs, outputs)


def infinite():
    transform = transforms.Affine(2)
    transform.arguments["scale"] = float("nan")
    return transform


def rebuilt_child():
    transform = transforms.Coupling(3, 2)
    transform.conditioner[1] = torch.nn.Linear(2, 64, bias=False)
    return transform


def changed():
    transform = transforms.MixtureCDF(2, 3)
    transform.base = "logistic"
    return transform


def other_base():
    flow = flows.univariate(3)
    flow.base = "uniform"
    return flow


def circle():
    transform = transforms.Compose(transforms.Affine(2))
    transform.transforms.append(transform)
    return transform


def deep():
    transform = transforms.Affine(2)
    for _ in range(200):
        transform = transforms.Inverse(transform)
    return transform


def tied_parameter():
    transform = transforms.Compose(transforms.Affine(2), transforms.Affine(2))
    transform.transforms[1].loc = transform.transforms[0].loc
    return transform


ADVICE = r"Save the weights alone with torch\.save\(flow\.state_dict\(\), path\)"

UNSAVABLE = {
    "own transform": (
        lambda: flows.Flow(transforms.Compose(transforms.Affine(3), Flip(3))),
        rf"flow: data_to_base\.transforms\.1: expected a part of mixflow\.transforms .*, got Flip\. {ADVICE}",
    ),
    "own network": (
        lambda: flows.Flow(transforms.Coupling(3, 2, network=network)),
        rf"flow: data_to_base\.network: expected a part .*, got network\. {ADVICE}",
    ),
    "own network in a recipe": (
        lambda: flows.coupling(3, 2, network=network),
        rf"flow: network: expected a part .*, got network\. {ADVICE}",
    ),
    "own embedding": (
        lambda: flows.Flow(transforms.MixtureCDF(2, 3, context=2), embedding=torch.nn.Linear(5, 2)),
        rf"flow: embedding: expected None, .*, got Linear\. {ADVICE}",
    ),
    "own embedding in a recipe": (
        lambda: flows.univariate(3, context=2, embedding=torch.nn.Linear(5, 2)),
        rf"flow: embedding: expected a part .*, got Linear\. {ADVICE}",
    ),
    "own flow": (
        lambda: OwnFlow(transforms.Affine(1)),
        rf"flow: its class: expected Flow, or .*, got OwnFlow\. {ADVICE}",
    ),
    "mixture without its recipe": (
        lambda: GaussianMixture(2, 3),
        r"what a recipe of mixflow\.flows builds.*, got GaussianMixture",
    ),
    "not a number": (lambda: flows.Flow(infinite()), r"flow: data_to_base\.scale: expected a number, .*, got nan"),
    "an exchanged layer of a network": (
        lambda: flows.Flow(rebuilt_child()),
        "expected shape .*conditioner|conditioner.*expected shape",
    ),
    "a changed attribute": (
        lambda: flows.Flow(changed()),
        "as the arguments of its parts build it, .*base='normal'.*base='logistic'",
    ),
    "a changed base": (lambda: other_base(), "of its recipe 'univariate' build it, base='normal'.*, got .*'uniform'"),
    "a changed context": (
        lambda: flows.Flow(flows.gaussian_mixture(2, 3, context=2).data_to_base),
        "as the arguments of its parts build it, .*context=0.*, got .*context=2",
    ),
    "in itself": (lambda: flows.Flow(circle()), "expected the place of an earlier part, got 'data_to_base'"),
    "deep": (lambda: flows.Flow(deep()), "expected at most 128 lists and parts within each other"),
    "tied parameter": (lambda: flows.Flow(tied_parameter()), "only whole transforms can be shared"),
    "two dtypes": (
        lambda: flows.Flow(transforms.Compose(transforms.Affine(2), transforms.Rotation(2, QUARTER.double()))),
        "tensors of one floating-point dtype",
    ),
}


@pytest.mark.parametrize("name", UNSAVABLE)
def test_what_a_file_cannot_describe_is_refused_before_anything_is_written(tmp_path, name):
    build, message = UNSAVABLE[name]
    flow = build()
    with pytest.raises(ValueError, match=message):
        mixflow.save(flow, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_recipe_flow_is_refused(flow, tmp_path):
    flow.data_to_base.transforms[0] = transforms.Rotation(1)
    with pytest.raises(
        ValueError, match=r"flow: tensor 'data_to_base\.transforms\.0\.loc': expected shape \(1,\), got none"
    ):
        mixflow.save(flow, tmp_path / "m.safetensors")


# -- forged descriptions of parts ----------------------------------------------------------------------------


def part(kind, **arguments):
    return {"part": kind, "arguments": arguments}


def compose(*given):
    return part("Compose", transforms=list(given))


AFFINE = part("Affine", features=1)


def doubled(levels):
    """A description of 2^levels parts."""
    description = AFFINE
    for level in range(levels, 0, -1):
        description = compose(description, {"same": "data_to_base" + ".transforms.0" * level})
    return description


def deep_description(levels):
    description = AFFINE
    for _ in range(levels):
        description = part("Inverse", transform=description)
    return description


SIX = compose(*[part("Exp", features=1)] * 5)

FORGED_PARTS = {
    "module": (part("os.system", command="true"), "expected a part among Affine, .*, got 'os.system'"),
    "attribute": (part("linear.Affine", features=1), "expected a part among .*, got 'linear.Affine'"),
    "module of the package": (part("support"), "expected a part among .*, got 'support'"),
    "function": (part("check_name"), "expected a part among .*, got 'check_name'"),
    "class that is not exported": (part("Tensor", data=[1]), "expected a part among .*, got 'Tensor'"),
    "flow": (part("Flow", transform=AFFINE), "expected a part among .*, got 'Flow'"),
    "no part": ({}, "data_to_base: expected a part and its arguments"),
    "kind of no name": (part(["Affine"]), "expected a part and its arguments"),
    "no arguments": ({"part": "Exp"}, "expected a part and its arguments"),
    "more keys": (AFFINE | {"then": 1}, "expected a part and its arguments"),
    "list of arguments": ({"part": "Exp", "arguments": [1]}, "expected a part and its arguments"),
    "other argument": (part("Affine", features=1, command="true"), "data_to_base: cannot be built .*'command'"),
    "no sequence": (part("Compose", transforms=5), "data_to_base: cannot be built"),
    "text": (part("Compose", transforms="Affine"), "cannot be built .*expected a Transform"),
    "wrong type": (part("Affine", features=1, loc="one"), "data_to_base: cannot be built"),
    "part as number": (part("Affine", features=AFFINE), "data_to_base: cannot be built .*features"),
    "part as numbers": (part("Affine", features=1, loc=AFFINE), "data_to_base: cannot be built"),
    "no tensor": (part("Rotation", features=2, start=[[1, 0], [0, 1]]), "data_to_base: cannot be built"),
    "part as network": (part("Coupling", features=2, network=AFFINE), "data_to_base: cannot be built .*network"),
    "not a number": (part("Affine", features=1, loc=float("nan")), "cannot be read"),
    "infinite": (part("Affine", features=1, loc=float("inf")), "cannot be read"),
    "huge": (part("Exp", features=10**9), r"data_to_base\.features: expected at most 1048576 .*got 1000000000"),
    "huge event": (
        part("Squeeze", shape=[10**4] * 3),
        r"data_to_base\.features: expected at most 1048576 .*got 10{12}",
    ),
    "huge support": (part("Support", features=10**7, support="positive"), "expected at most 1048576"),
    "huge components": (part("MixtureCDF", features=1, components=10**9), "expected at most 1048576"),
    "huge layer": (part("Coupling", features=2, hidden=[4, 10**9]), r"data_to_base\.hidden: expected at most"),
    "doubled": (doubled(40), "expected at most 10000 parts"),
    "deep": (deep_description(200), "expected at most 128 lists and parts within each other"),
    "itself": (compose({"same": "data_to_base"}), "data_to_base.transforms.0: expected the place of an earlier part"),
    "later": (compose({"same": "data_to_base.transforms.1"}, AFFINE), "expected the place of an earlier part"),
    "nowhere": ({"same": "os.system"}, "expected the place of an earlier part, got 'os.system'"),
    "no place": ({"same": 5}, "expected a part and its arguments"),
    "sizes that disagree": (compose(AFFINE, part("Exp", features=2)), "cannot be built .*transforms"),
    "other weights": (part("Affine", features=2), r"expected shape \(2,\), got \(1,\)"),
}


@pytest.fixture
def affine_path(tmp_path):
    path = tmp_path / "affine.safetensors"
    mixflow.save(flows.Flow(transforms.Affine(1)), path)
    return path


@pytest.mark.parametrize("forged", FORGED_PARTS)
def test_forged_parts_are_refused(affine_path, forged):
    forged, message = FORGED_PARTS[forged]
    rewrite(affine_path, flow=json.dumps({"transform": forged, "base": "normal", "notes": {}}))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            mixflow.load(affine_path)
        assert tracemalloc.get_traced_memory()[1] < 2**29
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("limit", "message"), [("PARTS", "expected at most 5 parts"), ("FREE_BYTES", "needs more memory than a file")]
)
def test_forged_parts_are_refused_if_they_are_too_large_together(affine_path, monkeypatch, limit, message):
    monkeypatch.setattr(parts, limit, 5)
    for forged in (part("Support", features=9, support="positive"), SIX):
        rewrite(affine_path, flow=json.dumps({"transform": forged, "base": "normal", "notes": {}}))
        with pytest.raises(
            ValueError, match=message if (limit == "PARTS") == (forged is SIX) else "expected shape none"
        ):
            mixflow.load(affine_path)


def test_forged_lists_within_lists_are_refused(affine_path):
    text = json.dumps({"transform": part("Affine", features=1, loc="HERE"), "base": "normal", "notes": {}})
    for levels, message in ((300, "expected at most 128 lists"), (100_000, "cannot be read")):
        rewrite(affine_path, flow=text.replace('"HERE"', "[" * levels + "]" * levels))
        with pytest.raises(ValueError, match=message):
            mixflow.load(affine_path)


def test_a_forged_base_is_refused(affine_path):
    rewrite(affine_path, flow=json.dumps({"transform": AFFINE, "base": "mixture", "notes": {}}))
    with pytest.raises(ValueError, match=r"base: expected one of .*, got 'mixture'"):
        mixflow.load(affine_path)


def test_files_of_the_first_format_still_load(tmp_path):
    path = tmp_path / "old.safetensors"
    shapes = {"0.log_scale": (1,), "0.loc": (1,), "1.logits": (1, 3), "1.loc": (1, 3), "1.log_scale": (1, 3)}
    tensors = {f"data_to_base.transforms.{name}": torch.rand(shape) for name, shape in shapes.items()}
    metadata = {"format": "mixflow", "version": "1", "flow": description(notes={"columns": ["length"]})}
    save_file(tensors, path, sign(metadata, tensors))
    loaded = mixflow.load(path)
    assert loaded.notes == {"columns": ["length"]}
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.state_dict().items())
    x = torch.linspace(-3.0, 3.0, 5)
    again = flows.univariate(3, "logistic", "uniform")
    again.load_state_dict(tensors)
    assert torch.equal(loaded.log_prob(x), again.log_prob(x))


# -- checkpoints ---------------------------------------------------------------------------------------------


class Stopped(Exception):
    """What ends a run in its midst."""


def stops_after(calls, flow):
    """``flow``, which raises an exception once its transform has been called so many times."""
    left = iter(range(calls))

    def count(module, arguments):
        if next(left, None) is None:
            raise Stopped

    flow.data_to_base.register_forward_pre_hook(count)
    return flow


def test_training_of_a_flow_put_together_by_hand_goes_on_from_its_checkpoint(tmp_path):
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 4, "batch_size": 50, "progress": False}
    resume = options | {"checkpoint": tmp_path / "c", "resume": True}
    whole, resumed = by_hand("tied"), by_hand("tied")
    mixflow.fit(whole, data, **options)
    with pytest.raises(Stopped):
        mixflow.fit(stops_after(20, by_hand("tied")), data, **resume)
    epochs = len(json.loads(tensor_file.read(tmp_path / "c")[0]["history"])["lr"])
    assert 0 < epochs < 4
    mixflow.fit(resumed, data, **resume)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize(("name", "base"), [("exchanged", "normal"), ("tied", "logistic")])
def test_a_checkpoint_of_another_flow_put_together_by_hand_is_refused(tmp_path, name, base):
    data = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    options = {"epochs": 1, "progress": False, "checkpoint": tmp_path / "c", "resume": True}
    mixflow.fit(by_hand("tied"), data, **options)
    with pytest.raises(ValueError, match=r"checkpoint: .* is of a run with (flow|base) = "):
        mixflow.fit(by_hand(name, base), data, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_masked_networks_of_every_dtype_work_once_loaded(tmp_path, dtype):
    flow = mixflow.flows.autoregressive(2, layers=1, hidden=(4,), seed=0).to(dtype)
    mixflow.save(flow, tmp_path / "m")
    x = torch.tensor([[0.5, -1.0]], dtype=dtype)
    assert torch.equal(mixflow.load(tmp_path / "m").log_prob(x), flow.eval().log_prob(x))
