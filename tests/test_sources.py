"""Where rows come from: every kind of data gives the same flow, and none is held in memory unless the caller does."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import mixflow
from mixflow import flows, sources
from mixflow.parallel import Group
from mixflow.sources import Rows, Subset, shuffled
from mixflow.tables import write_table


def draw(n=500, columns=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)) ** 3


def fit(data, columns=1, **options):
    flow = flows.Flow(mixflow.transforms.MixtureCDF(columns, 3))
    history = mixflow.fit(flow, data, **{"epochs": 3, "progress": False} | options)
    return flow, history


def equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000, 70_001])
def test_shuffled_is_a_permutation_and_parts_of_it_agree(count):
    whole = shuffled(np.arange(count), count, 3, 1)
    assert np.array_equal(np.sort(whole), np.arange(count))
    some = np.arange(count)[::-3].copy()
    assert np.array_equal(shuffled(some, count, 3, 1), whole[some])
    if count >= 64:
        assert not np.array_equal(whole, shuffled(np.arange(count), count, 3, 2))
        assert not np.array_equal(whole, shuffled(np.arange(count), count, 4, 1))


def test_shuffled_reaches_beyond_32_bits():
    count = 2**40 + 12_345
    rows = shuffled(np.arange(count - 100_000, count), count, 0)
    assert len(np.unique(rows)) == 100_000
    assert 0 <= rows.min() < rows.max() < count
    # 100,000 uniform draws: the mean's standard deviation is 0.0009 of the range.
    assert rows.mean() / count == pytest.approx(0.5, abs=0.004)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_all_permutations_are_as_likely(count):
    seen = dict.fromkeys(itertools.permutations(range(count)), 0)
    for seed in range(40 * len(seen)):
        seen[tuple(shuffled(np.arange(count), count, seed, 1).tolist())] += 1
    assert chisquare(list(seen.values())).pvalue > 0.001


@pytest.mark.parametrize("size", [30, 100, 1000])
def test_an_epoch_meets_every_row_once_in_an_order_of_its_own(size, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 128)
    rows = Rows("data", np.arange(500), 1, torch.empty(0))
    train, valid = Subset(rows, None, 50, 500, 7), Subset(rows, None, 0, 50, 7)
    epochs = [list(train.batches(size, Group(), epoch)) for epoch in range(3)]
    orders = [torch.cat([batch.x for batch in batches]).squeeze(-1).tolist() for batches in epochs]
    for batches, order in zip(epochs, orders, strict=True):
        assert {len(batch.x) for batch in batches[:-1]} <= {size}
        assert [batch.rows for batch in batches] == [len(batch.x) for batch in batches]
        assert sorted(order) == sorted(orders[0])
    assert orders[0] != orders[1] != orders[2]
    held_out = torch.cat([batch.x for batch in valid.batches(size, Group())]).squeeze(-1).tolist()
    assert sorted(orders[0] + held_out) == list(range(500))
    # Together, the shards of a batch are the batch.
    shards = [list(train.batches(size, Group(rank, 3), 0)) for rank in range(3)]
    for batch, *parts in zip(epochs[0], *shards, strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert {part.rows for part in parts} == {batch.rows}


# -- memory maps and files -----------------------------------------------------------------------------------


def mapped(tmp_path, values, order="C"):
    path = tmp_path / f"data{len(list(tmp_path.iterdir()))}.npy"
    np.save(path, np.asarray(values, order=order))
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("columns", [1, 2])
def test_every_kind_of_data_gives_the_same_flow(tmp_path, columns):
    data = draw(columns=columns)
    for ending in (".npy", ".csv", ".parquet"):
        write_table(tmp_path / f"table{ending}", [f"c{number}" for number in range(columns)], data)
    wide = np.column_stack([np.full(len(data), np.nan), data, np.full(len(data), np.inf)])
    expected, history = fit(torch.from_numpy(data), columns)
    for given in (
        data,
        mapped(tmp_path, data),
        mapped(tmp_path, data, order="F"),
        mapped(tmp_path, wide)[:, 1 : columns + 1],
        mapped(tmp_path, data.astype(">f8")),
        tmp_path / "table.npy",
        str(tmp_path / "table.csv"),
        tmp_path / "table.parquet",
    ):
        flow, again = fit(given, columns)
        assert equal_weights(flow, expected)
        assert again.validation_log_prob == history.validation_log_prob


class Counted(np.memmap):
    """A memory map that records how many rows each access asks for."""

    asked = ()

    def __getitem__(self, key):
        part = super().__getitem__(key)
        if isinstance(key, np.ndarray) or (isinstance(key, slice) and key != slice(None)):
            Counted.asked += (len(part),)
        return part


def test_a_memory_map_is_read_batch_by_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 128)
    monkeypatch.setattr(mixflow.train, "CHUNK", 128)
    data = mapped(tmp_path, draw(3000)).view(Counted)
    Counted.asked = ()
    started = []

    class Watched(mixflow.transforms.MixtureCDF):
        def initialize(self, x, context=None):
            started.append(len(x))
            super().initialize(x, context)

    mixflow.fit(flows.Flow(Watched(1, 3)), data, epochs=2, batch_size=32, progress=False)
    assert max(Counted.asked) == 128
    # Once to check, once to start, and once for each epoch of 2700 rows and its 300 held out.
    assert sum(Counted.asked) == 3000 + 128 + 2 * 3000
    assert started == [128]


def test_what_is_wrong_with_a_memory_map_is_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 128)
    data = draw(1000, 2)
    data[777, 1] = math.nan
    with pytest.raises(ValueError, match="data: expected finite numbers, got nan in row 777, column 1"):
        fit(mapped(tmp_path, data), 2)
    with pytest.raises(ValueError, match=r"data: expected shape \(N,\) or \(N, 1\), got \(1000, 2\)"):
        fit(mapped(tmp_path, data))
    with pytest.raises(TypeError, match="data: expected an array of real numbers, got complex128"):
        fit(mapped(tmp_path, data.astype(complex)))


def test_rows_are_checked_in_the_dtype_of_the_flow():
    with pytest.raises(ValueError, match=r"context: .* got inf in row 1, column 0 \(.* as torch.float32\)"):
        Rows("context", [1.0, 1e39], 1, torch.empty(0))
    assert Rows("context", [1.0, 1e39], 1, torch.empty(0, dtype=torch.float64)).take(np.array([1])).item() == 1e39


def test_context_may_be_a_memory_map(tmp_path):
    data, context = draw(), draw(seed=1)
    weights = []
    for given in (context, mapped(tmp_path, context)):
        torch.manual_seed(0)
        flow = flows.univariate(3, context=1)
        mixflow.fit(flow, data, context=given, epochs=2, progress=False)
        weights.append(flow)
    assert equal_weights(*weights)


# -- held-out data of one's own ------------------------------------------------------------------------------


def test_held_out_data_may_be_given(tmp_path):
    data, held_out = draw(), draw(seed=1)
    flow, history = fit(data, validation=held_out, patience=100)
    with torch.no_grad():
        score = flow.log_prob(torch.from_numpy(held_out).float()).double().mean().item()
    assert max(history.validation_log_prob) == pytest.approx(score, rel=1e-6)
    again, _ = fit(data, validation=mapped(tmp_path, held_out), patience=100)
    assert equal_weights(flow, again)


def test_held_out_data_with_context():
    torch.manual_seed(0)
    flow = flows.univariate(3, context=1)
    options = {"context": draw(seed=1), "epochs": 2, "progress": False}
    history = mixflow.fit(flow, draw(), validation=(draw(seed=2), draw(seed=3)), **options)
    assert len(history.validation_log_prob) == 2
    with pytest.raises(ValueError, match=r"validation: expected a pair \(data, context\)"):
        mixflow.fit(flow, draw(), validation=draw(seed=2), **options)


# -- loaders -------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """Batches of any kind."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


BAD_BATCHES = {
    "complex": (
        TypeError,
        r"data, batch 0: expected real numbers, got torch\.complex64",
        torch.zeros(5, 1, dtype=torch.cfloat),
    ),
    "bool": (TypeError, r"data, batch 0: expected real numbers, got torch\.bool", torch.zeros(5, 1, dtype=torch.bool)),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_batches_of_other_than_real_numbers_are_refused(case):
    error, message, batch = BAD_BATCHES[case]
    with pytest.raises(error, match=message):
        fit(Stream(batch), validation=draw(seed=1))


def test_a_batch_with_another_number_of_contexts_is_refused():
    flow = mixflow.flows.univariate(3, context=1)
    with pytest.raises(ValueError, match="context, batch 0: expected 5 rows, as many as x; got 4"):
        mixflow.fit(flow, Stream((torch.zeros(5, 1), torch.zeros(4, 1))), validation=0, progress=False)


def test_batches_of_a_loader_are_learned_as_they_come():
    data = draw(320)
    stream = Stream(*torch.from_numpy(data).split(64))
    loaded = [
        fit(given, validation=draw(seed=1))[0]
        for given in (
            stream,
            DataLoader(TensorDataset(torch.from_numpy(data)), batch_size=64),
            DataLoader(Stream(*data), batch_size=64),
            Stream(*(batch.squeeze(-1).numpy() for batch in stream)),
        )
    ]
    # A DataLoader knows its length, so that the learning rate falls within an epoch; a stream does not.
    assert equal_weights(loaded[0], loaded[2])
    assert equal_weights(loaded[0], loaded[3])
    assert not equal_weights(loaded[0], loaded[1])
    # In the order of the rows, the mean of the first epoch is that of the five batches.
    _, history = fit(stream, validation=0, epochs=1, lr=1e-12)
    flow = flows.Flow(mixflow.transforms.MixtureCDF(1, 3))
    flow.initialize(torch.from_numpy(data).float())
    with torch.no_grad():
        assert history.train_log_prob[0] == pytest.approx(flow.log_prob(torch.from_numpy(data).float()).mean().item())


def test_a_loader_brings_its_context_and_may_be_held_out():
    pairs = TensorDataset(torch.from_numpy(draw()), torch.from_numpy(draw(seed=1)))
    flow = flows.univariate(3, context=1)
    loader = DataLoader(pairs, batch_size=100)
    history = mixflow.fit(flow, loader, validation=loader, epochs=2, progress=False)
    assert len(history.validation_log_prob) == 2


def test_samplers_are_told_the_epoch(monkeypatch):
    told = []
    monkeypatch.setattr(DistributedSampler, "set_epoch", lambda self, epoch: told.append(epoch))
    dataset = TensorDataset(torch.from_numpy(draw()))
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    fit(DataLoader(dataset, batch_size=50, sampler=sampler), validation=0)
    assert told == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Stream(torch.ones(5, 1)), {}, ValueError, r"validation: expected 0 or held-out data.*; got 0\.1"),
        (Stream(torch.ones(5, 2)), {"validation": 0}, ValueError, r"data, batch 0: expected shape .*got \(5, 2\)"),
        (Stream(torch.randn(5, 1), torch.tensor([[math.inf]])), {"validation": 0}, ValueError, "data, batch 1: .*inf"),
        (Stream((torch.ones(5, 1), torch.ones(5, 1))), {"validation": 0}, ValueError, r"expected batches x or \(x,\)"),
        (Stream("words"), {"validation": 0}, TypeError, "data, batch 0: expected an array of real numbers"),
        (Stream(), {"validation": 0}, ValueError, "data: expected at least one row, got none"),
        (Stream(torch.ones(5, 1)), {"validation": 0}, ValueError, "data: expected columns that vary"),
        (Stream(torch.ones(5, 1)), {"validation": 0, "context": [1.0]}, ValueError, "context: expected None, as data"),
        (Stream(torch.randn(5, 1)), {"validation": Stream()}, ValueError, "validation: expected at least one row"),
        (Stream(torch.ones(5, 1)), {"validation": 0, "batch_size": 5}, ValueError, "batch_size: expected None"),
        (iter([torch.randn(5, 1)]), {"validation": 0}, ValueError, "data: expected .*iterated only once"),
        (TensorDataset(torch.ones(5, 1)), {}, TypeError, "data: .*wrap a Dataset in a torch.utils.data.DataLoader"),
    ],
)
def test_bad_batches_are_described(data, options, error, message):
    with pytest.raises(error, match=message):
        fit(data, **options)
