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
from mixflow.flows import RECIPES
from mixflow.tensor_file import sign


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
    with pytest.raises(IsADirectoryError, match="this is a directory"):
        mixflow.save(flow, tmp_path)
    with pytest.raises(ValueError, match="flow: expected one built by a recipe"):
        mixflow.save(flows.Flow(transforms.Affine(1)), tmp_path / "m.safetensors")
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
    "version": ({"version": "2"}, "expected format version 1, got '2'"),
    "recipe": (
        {"flow": description(recipe="os.system")},
        "expected a flow among univariate.*; got 'os.system'",
    ),
    "recipe type": ({"flow": description(recipe=["univariate"])}, "wrong types"),
    "no json": ({"flow": "{"}, "cannot be read"),
    "other json": ({"flow": "[1, 2]"}, "cannot be read"),
    "deep json": ({"flow": "[" * 100_000}, "cannot be read"),
    "unknown argument": (
        {"flow": description(arguments={"command": "rm"})},
        "cannot build the flow 'univariate'",
    ),
    "negative": ({"flow": description(arguments={"components": -3})}, "cannot build the flow.*components"),
    "true": ({"flow": description(arguments={"components": True})}, "cannot build the flow.*components"),
    "wrong type": ({"flow": description(arguments={"family": ["gaussian"]})}, "cannot build the flow"),
    "huge": (
        {"flow": description(arguments={"components": 10**13})},
        r"components: expected at most \d+, the numbers in the file; got 10000000000000",
    ),
    "beyond huge": ({"flow": description(arguments={"components": 10**30})}, "cannot build the flow"),
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
            with pytest.raises(ValueError, match=r"cannot build the flow .*the numbers in the file; got"):
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
