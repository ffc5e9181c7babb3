"""Where rows come from: every kind of data gives the same flow, and none is held in memory unless the caller does."""

import itertools
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import mixflow
from mixflow import _core, flows
from mixflow.files.tables import write_table
from mixflow.fitting import epochs as learning
from mixflow.fitting import sources, split
from mixflow.fitting.parallel import Group
from mixflow.fitting.sources import Loader, Rows, Subset, check_weights, is_loader, shuffled


def draw(n=500, columns=1, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)) ** 3


def fit(data, columns=1, **options):
    flow = flows.Flow(mixflow.transforms.MixtureCDF(columns, 3))
    history = mixflow.fit(flow, data, **{"epochs": 3, "progress": False} | options)
    return flow, history


LIKE = torch.empty(0)


def take_chunks_of(size, monkeypatch):
    for module in (sources.rows, sources.subset, split, learning):
        monkeypatch.setattr(module, "CHUNK", size)


def equal_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# -- order ---------------------------------------------------------------------------------------------------


def feistel(values, bits, keys):
    low = bits // 2
    left, right = (values >> low).astype(np.uint32), (values & ((1 << low) - 1)).astype(np.uint32)
    mask, other = np.uint32((1 << (bits - low)) - 1), np.uint32((1 << low) - 1)
    for key in keys:
        mixed = right + key
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(0xC2B2AE35)
        mixed ^= mixed >> np.uint32(16)
        mixed &= mask
        mixed ^= left
        left, right, mask, other = right, mixed, other, mask
    return (left.astype(np.int64) << low) | right


def plainly_shuffled(positions, count, *key):
    """What shuffled computes, in numpy: models that were trained, and runs that are resumed, depend on every bit."""
    keys = np.random.SeedSequence(key).generate_state(12)
    bits = max(2, (count - 1).bit_length())
    rows = feistel(positions, bits, keys)
    while len(outside := np.flatnonzero(rows >= count)):
        rows[outside] = feistel(rows[outside], bits, keys)
    return rows


@pytest.mark.parametrize("key", [(0,), (3, 1), (2**40 + 1, 12, 5)])
def test_shuffled_is_the_network_written_in_numpy(key):
    for count in (*range(1, 71), 4097, 65_535, 131_073, 262_144, 300_007):
        positions = np.arange(count)
        assert np.array_equal(shuffled(positions, count, *key), plainly_shuffled(positions, count, *key))
    for count in (2**31 + 1, 2**32 - 5, 2**33 + 7, 2**61 + 1, 2**62 - 1, 2**62):
        positions = np.linspace(0, count - 1, 5001).astype(np.int64).clip(0, count - 1)
        assert np.array_equal(shuffled(positions, count, *key), plainly_shuffled(positions, count, *key))


@pytest.mark.parametrize("count", [1, 5, 2047, 2048, 2049, 10_007])
def test_any_part_of_an_order_can_be_had_alone(count):
    whole = plainly_shuffled(np.arange(count), count, 7, 2)
    cuts = sorted({0, 1, count // 3, count // 2, max(0, count - 1), count})
    for start, stop in itertools.combinations_with_replacement(cuts, 2):
        assert np.array_equal(shuffled(range(start, stop), count, 7, 2), whole[start:stop])
        assert np.array_equal(shuffled(np.arange(start, stop), count, 7, 2), whole[start:stop])
    assert np.array_equal(shuffled(range(count - 1, -1, -2), count, 7, 2), whole[::-2])
    assert np.array_equal(shuffled(np.arange(count)[::-3], count, 7, 2), whole[::-3])


@pytest.mark.parametrize("positions", [range(3, 6), range(-1, 2), np.array([0, 5]), np.array([-1]), [2**62]])
def test_positions_outside_the_range_are_refused(positions):
    with pytest.raises(IndexError, match="positions: expected integers from 0 to 4"):
        shuffled(positions, 5, 0)


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
    take_chunks_of(128, monkeypatch)
    rows = Rows("data", np.arange(500), 1, torch.empty(0))
    train, valid = Subset(rows, None, None, 50, 500, 7), Subset(rows, None, None, 0, 50, 7)
    epochs = [list(train.batches(size, Group(), epoch)) for epoch in range(3)]
    orders = [torch.cat([batch.x for batch in batches]).squeeze(-1).tolist() for batches in epochs]
    for batches, order in zip(epochs, orders, strict=True):
        assert {len(batch.x) for batch in batches[:-1]} <= {size}
        assert [batch.rows for batch in batches] == [len(batch.x) for batch in batches]
        assert [(batch.weight, batch.total) for batch in batches] == [(None, len(batch.x)) for batch in batches]
        assert sorted(order) == sorted(orders[0])
    assert orders[0] != orders[1] != orders[2]
    held_out = torch.cat([batch.x for batch in valid.batches(size, Group())]).squeeze(-1).tolist()
    assert sorted(orders[0] + held_out) == list(range(500))
    # Together, the shards of a batch are the batch.
    shards = [list(train.batches(size, Group(rank, 3), 0)) for rank in range(3)]
    for batch, *parts in zip(epochs[0], *shards, strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)
        assert {part.rows for part in parts} == {batch.rows}


# -- rows by number ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [*range(1, 21), 31, 64, 200])
def test_rows_are_taken_as_index_select_takes_them(columns, dtype):
    wide = torch.arange(900 * (columns + 2), dtype=dtype).reshape(900, columns + 2)
    numbers = np.random.default_rng(0).integers(0, 300, 1000)
    for values in (
        wide[:300, :columns].contiguous(),
        wide[::3, 1 : columns + 1],  # rows apart from each other
        wide[0, :columns].expand(300, columns),
        wide[:300, :columns].t().contiguous().t(),  # numbers of a row apart from each other
    ):
        rows = Rows("data", values, columns, LIKE)
        assert rows.values.data_ptr() == values.data_ptr()  # not a copy
        for some in (numbers, numbers[:1], numbers[:0], numbers[::-2]):
            expected = values.index_select(0, torch.from_numpy(some.copy()))
            assert torch.equal(rows.take(some), expected)
            assert rows.take(some).is_contiguous()


def test_labels_of_any_shape_are_taken_as_integers():
    labels = np.arange(24).reshape(6, 2, 2)
    rows = Rows("context", labels, None, LIKE)
    assert torch.equal(rows.take_shaped(np.array([5, 0])), torch.from_numpy(labels[[5, 0]]))


@pytest.mark.parametrize("number", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("columns", [1, 3, 9])
def test_a_number_that_is_no_rows_is_refused(number, columns):
    for values in (torch.zeros(5, columns), torch.zeros(columns, 5).t()):
        rows = Rows("data", values, columns, LIKE)
        with pytest.raises(IndexError):
            rows.take(np.array([0, 4, number, 1]))


CORE_REFUSES = {
    "narrow result": lambda: _core.take_rows(np.zeros((5, 2)), np.array([0]), np.zeros((1, 1))),
    "short result": lambda: _core.take_rows(np.zeros((5, 2)), np.array([0, 1]), np.zeros((1, 2))),
    "result of another width": lambda: _core.take_rows(np.zeros((5, 2)), np.array([0]), np.zeros((1, 2), "f4")),
    "rows apart in the result": lambda: _core.take_rows(np.zeros((5, 2)), np.arange(2), np.zeros((4, 2))[::2]),
    "numbers of a row apart": lambda: _core.take_rows(np.zeros((2, 5)).T, np.array([0]), np.zeros((1, 2))),
    "a vector": lambda: _core.take_rows(np.zeros(5), np.array([0]), np.zeros((1, 1))),
    "32-bit numbers": lambda: _core.take_rows(np.zeros((5, 1)), np.array([0], np.int32), np.zeros((1, 1))),
    "every other number": lambda: _core.take_rows(np.zeros((5, 1)), np.arange(4)[::2], np.zeros((2, 1))),
    "few keys": lambda: _core.permute(np.zeros(11, np.uint32), 5, 0, np.zeros(5, np.int64)),
    "wide keys": lambda: _core.permute(np.zeros(12, np.uint64), 5, 0, np.zeros(5, np.int64)),
    "short order": lambda: _core.permute(np.zeros(12, np.uint32), 5, np.arange(5), np.zeros(4, np.int64)),
    "too many": lambda: _core.permute(np.zeros(12, np.uint32), 2**62 + 1, 0, np.zeros(5, np.int64)),
    "less than none": lambda: _core.permute(np.zeros(12, np.uint32), -1, 0, np.zeros(5, np.int64)),
}


@pytest.mark.parametrize("case", CORE_REFUSES)
def test_the_core_refuses_arrays_beyond_which_it_would_read_or_write(case):
    with pytest.raises(ValueError, match="expected"):
        CORE_REFUSES[case]()


# -- precision -----------------------------------------------------------------------------------------------

PRECISIONS = {
    torch.float32: ["float16", "float32", "bfloat16", ">f4"],
    torch.float64: [
        *("float64", ">f8", "longdouble", "int8", "int16", "int32", "int64", ">i2"),
        *("uint8", "uint16", "uint32", "uint64"),
    ],
}


@pytest.mark.parametrize(("held", "given"), [(held, given) for held, names in PRECISIONS.items() for given in names])
@pytest.mark.parametrize("like", [torch.float16, torch.float32, torch.float64])
def test_rows_keep_the_precision_of_the_data(tmp_path, held, given, like):
    like, numbers = torch.empty(0, dtype=like), [[3, 100], [1, 7], [2, 0]]
    kinds = []
    if given != "bfloat16":
        array = np.array(numbers, dtype=given)
        kinds += [array, array[::-1][::-1], np.asfortranarray(array), mapped(tmp_path, array)]
    if hasattr(torch, given):
        kinds.append(torch.tensor(numbers).to(getattr(torch, given)))
    for kind in kinds:
        rows = Rows("data", kind, 2, like)
        expected = torch.tensor(numbers, dtype=held)
        for taken in (rows.take(np.array([2, 0])), next(rows.chunks())[[2, 0]]):
            assert taken.dtype == held
            assert torch.equal(taken, expected[[2, 0]])
        (part,) = Loader("data", Stream(kind), 2, 0, like).batches(9, Group())
        assert part.x.dtype == held
        assert torch.equal(part.x, expected)


def test_no_digit_of_a_time_is_lost(tmp_path):
    times = 1.7e9 + np.arange(5)[:, None] / 1024
    write_table(tmp_path / "times.csv", ["time"], times)
    for given in (times, times.tolist(), torch.from_numpy(times), mapped(tmp_path, times), tmp_path / "times.csv"):
        assert np.array_equal(Rows("data", given, 1, LIKE).take(np.arange(5)).numpy(), times)
    subset = Subset(Rows("data", times, 1, LIKE), Rows("context", np.float32(times), 1, LIKE), None, 0, 5, None)
    (batch,) = subset.batches(5, Group())
    for x, context in ((batch.x, batch.context), subset.first(5, Group())[:2]):
        assert np.array_equal(x.numpy(), times)
        assert context.dtype == torch.float32


def test_the_parts_of_a_batch_keep_their_own_precision():
    batch = torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 2, dtype=torch.bfloat16), torch.ones(4)
    loader = Loader("data", Stream(batch), 1, 2, LIKE)
    (batch,) = loader.batches(4, Group())
    for parts in ((batch.x, batch.context, batch.weight), loader.first(4, Group())):
        assert [part.dtype for part in parts] == [torch.float64, torch.float32, torch.float64]


def test_numbers_must_be_finite_in_their_own_precision():
    assert Rows("data", [1.0, 1e39], 1, LIKE).take(np.array([1])).item() == 1e39
    with pytest.raises(ValueError, match=r"data: .* got inf in row 1, column 0 \(counted from 0, as torch.float32\)"):
        Rows("data", np.float32([1.0, np.inf]), 1, LIKE)
    with pytest.raises(ValueError, match=r"data: .* got nan in row 0, column 0 \(counted from 0, as torch.float64\)"):
        Rows("data", [np.nan], 1, torch.empty(0, dtype=torch.float16))
    if np.finfo(np.longdouble).max > np.finfo(float).max:
        with pytest.raises(ValueError, match=r"got inf in row 1, .* as torch\.float64"):
            Rows("data", np.array(["1", "1e4000"]).astype(np.longdouble), 1, LIKE)


def test_the_digest_is_of_the_numbers_as_they_are_held(tmp_path):
    data = draw(columns=2)
    digest = Rows("data", data, 2, LIKE).digest
    for same in (torch.from_numpy(data), mapped(tmp_path, data, order="F"), data.astype(">f8"), data.tolist()):
        assert Rows("data", same, 2, torch.empty(0, dtype=torch.float16)).digest == digest
    nudged = data.copy()
    nudged[-1, -1] = np.nextafter(nudged[-1, -1], 1.0)  # float32 cannot tell them apart
    for other in (data.astype(np.float32), nudged):
        assert Rows("data", other, 2, LIKE).digest != digest


# -- what is refused -----------------------------------------------------------------------------------------


class Frame:
    """A table as pandas has them: the dtypes of its columns are known, and as an array it is one of objects."""

    def __init__(self, *values, **dtypes):
        self.values, self.columns, self.dtypes = np.array([values], dtype=object), list(dtypes), list(dtypes.values())

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __getitem__(self, column):
        raise NotImplementedError

    def to_numpy(self, dtype):
        raise NotImplementedError


class Extension:
    """A dtype of pandas' own."""

    def __init__(self, kind):
        self.kind = kind

    def __repr__(self):
        return f"extension-{self.kind}"


DATES = r'convert to numbers, such as seconds by \.astype\("datetime64\[s\]"\)\.astype\(float\)'
MASKED = "expected an array of real numbers, got a MaskedArray; fill or drop the masked rows first"
DENSE = "expected a dense tensor of real numbers, got "
REFUSED = {
    "masked": (MASKED, lambda: np.ma.masked_equal([1.0, -9999.0], -9999.0)),
    "masked without a mask": (MASKED, lambda: np.ma.array([1.0])),
    "list of masked": (MASKED, lambda: [np.ma.masked_equal([1.0], 2.0)]),
    "masked in a tuple in a list": (MASKED, lambda: [[1.0], (np.ma.masked,)]),
    "COO": (DENSE + r"one of layout torch.sparse_coo; call \.to_dense\(\)", lambda: torch.ones(3, 1).to_sparse()),
    "CSR": (DENSE + "one of layout torch.sparse_csr", lambda: torch.ones(3, 1).to_sparse_csr()),
    "nested": (DENSE + "a nested tensor", lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])),
    "jagged": (
        DENSE + "a nested tensor",
        lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
    ),
    "quantized": (
        DENSE + r"one of torch.qint8; call \.dequantize\(\)",
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ),
    "meta": (DENSE + "one on the meta device", lambda: torch.ones(3, device="meta")),
    "MaskedTensor": (
        DENSE + "a MaskedTensor; fill or drop",
        lambda: torch.masked.masked_tensor(torch.ones(3), torch.ones(3, dtype=torch.bool)),
    ),
    "complex tensor": ("expected real numbers, got torch.complex64", lambda: torch.ones(3, dtype=torch.cfloat)),
    "bool tensor": ("expected real numbers, got torch.bool", lambda: torch.ones(3, dtype=torch.bool)),
    "complex": ("real numbers, got complex128", lambda: np.ones(3, dtype=complex)),
    "bool": ("real numbers, got bool", lambda: [True, False]),
    "words": ("real numbers, got <U3", lambda: np.array(["one", "two"])),
    "bytes": (r"real numbers, got \|S3", lambda: b"one"),
    "objects": (r"real numbers, got object; convert to numbers, .* missing values", lambda: np.array([1.0, None])),
    "None": ("real numbers, got NoneType", lambda: None),
    "dates": (r"real numbers, got datetime64\[D\]; " + DATES, lambda: np.array(["2020-01-01"], dtype="M8[D]")),
    "durations": (r"got timedelta64\[ms\]; .*\.astype\(\"timedelta64\[s\]", lambda: np.array([5], dtype="m8[ms]")),
    "ragged": (r"real numbers, got a list \(.*inhomogeneous", lambda: [[1.0], [1.0, 2.0]]),
    "graph": (r"real numbers, got a list \(.*requires grad", lambda: [torch.ones(1, requires_grad=True)]),
    "scipy CSR": (
        r"dense array of real numbers, got a sparse csr_\w+; call \.toarray\(\)",
        lambda: scipy.sparse.csr_matrix([[1.0]]),
    ),
    # These have rows to iterate over, but, unlike the others, none to ask for by number.
    "scipy DIA": (r"got a sparse dia_array; call \.toarray\(\)", lambda: scipy.sparse.dia_array([[1.0]])),
    "Dataset": (r"a Dataset; wrap it in a torch\.utils\.data\.DataLoader", lambda: TensorDataset(torch.ones(3, 1))),
    "table with words": ("got extension-O in column 'b'", lambda: Frame(1, "x", a=Extension("i"), b=Extension("O"))),
    "table with dates": (
        r"got datetime64\[us\] in column 7; .*\.to_numpy\(\"datetime64\[s\]\"\)",
        lambda: frame_with_a_number_for_a_name(),
    ),
    "table with gaps": ("got object; .* missing values", lambda: Frame(1, None, a=Extension("i"), b=Extension("f"))),
}


def frame_with_a_number_for_a_name():
    frame = Frame(1, None, a=np.dtype(float), b=np.dtype("M8[us]"))
    frame.columns[1] = 7
    return frame


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plain_real_numbers_is_refused(case):
    message, make = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's and scipy's, of kinds of tensors that are going or coming
        given = make()
    assert not is_loader(given)
    with pytest.raises(TypeError, match="^weights: .*" + message):
        Rows("weights", given, 1, LIKE)
    if not isinstance(given, (list, tuple)):  # which hold the parts of a batch
        with pytest.raises(TypeError, match="^data, batch 0: .*" + message):
            Loader("data", Stream(given), 1, 0, LIKE).first(1, Group())
    with pytest.raises(TypeError, match="^data, batch 0: .*" + message):
        Loader("data", Stream((given,)), 1, 0, LIKE).first(1, Group())


@pytest.mark.parametrize("given", [3.0, torch.tensor(3.0), np.float64(3.0), np.zeros((2, 3)), np.zeros((2, 1, 1))])
def test_other_shapes_are_refused(given):
    with pytest.raises(ValueError, match=r"^data: expected shape \(N,\) or \(N, 1\), got "):
        Rows("data", given, 1, LIKE)


def test_a_table_of_numbers_and_a_tensor_in_a_graph_are_taken():
    frame = Frame(1.5, 2.5, a=np.dtype(float), b=np.dtype(float))
    frame.values = frame.values.astype(np.float32)
    assert Rows("data", frame, 2, LIKE).take(np.array([0])).tolist() == [[1.5, 2.5]]
    taken = Rows("data", torch.ones(2, requires_grad=True), 1, LIKE).take(np.array([0]))
    assert not taken.requires_grad


# -- weights -------------------------------------------------------------------------------------------------


def weighted(count=500, start=0, seed=7, given=None):
    weights = np.random.default_rng(1).exponential(size=count) if given is None else given
    x = Rows("data", np.arange(count), 1, LIKE)
    rows = check_weights(Rows("weights", weights, 1, LIKE))
    return Subset(x, None, rows, start, count, seed), np.asarray(weights)


@pytest.mark.parametrize("size", [30, 100, 1000])
def test_weights_stay_with_their_rows(size, monkeypatch):
    take_chunks_of(128, monkeypatch)
    subset, weights = weighted(start=50)
    batches = list(subset.batches(size, Group(), 0))
    for batch in batches:
        assert batch.weight.dtype == torch.float64
        assert batch.weight.tolist() == weights[batch.x.squeeze(-1).long()].tolist()
        assert batch.total == pytest.approx(batch.weight.sum().item(), rel=1e-14)
    assert sum(len(batch.weight) for batch in batches) == 450
    x, context, first = subset.first(20, Group())
    assert context is None
    assert first.tolist() == weights[x.squeeze(-1).long()].tolist()
    # Of three processes each knows the sum of all weights, bit for bit.
    shards = [list(subset.batches(size, Group(rank, 3), 0)) for rank in range(3)]
    for batch, *parts in zip(batches, *shards, strict=True):
        assert torch.equal(torch.cat([part.weight for part in parts]), batch.weight)
        assert {part.total for part in parts} == {batch.total}


def test_a_subset_knows_the_sum_of_its_weights(monkeypatch):
    take_chunks_of(128, monkeypatch)
    subset, weights = weighted(start=50)
    taken = Subset(subset.x, None, None, 50, 500, 7).first(450, Group())[0].squeeze(-1).long()
    assert subset.total() == pytest.approx(weights[taken].sum(), rel=1e-14)
    monkeypatch.setattr(Subset, "_weights", None)
    assert subset.total() == pytest.approx(weights[taken].sum(), rel=1e-14)  # without another look
    assert Subset(subset.x, None, None, 50, 500, 7).total() == 450.0


def test_weights_may_be_zero_in_a_batch():
    subset, _ = weighted(4, seed=None, given=[0, 0, 0, 3])
    assert [(batch.rows, batch.total) for batch in subset.batches(2, Group())] == [(2, 0.0), (2, 3.0)]


def test_weights_are_held_as_they_are_given(tmp_path, monkeypatch):
    take_chunks_of(128, monkeypatch)
    monkeypatch.setattr(Counted, "asked", ())
    single, _ = weighted(2, given=np.float32([1, 2]))
    assert single.weight.values.dtype == torch.float32
    assert {batch.weight.dtype for batch in single.batches(1, Group(), 0)} == {torch.float64}
    assert single.first(2, Group())[2].dtype == torch.float64
    values = draw(1000) ** 2
    subset, _ = weighted(1000, given=mapped(tmp_path, values).view(Counted))
    assert isinstance(subset.weight.values, np.memmap)
    list(subset.batches(32, Group(), 0))
    assert subset.total() == pytest.approx(values.sum(), rel=1e-12)
    # Once for the digest, once for the check, once for the epoch and once for the sum.
    assert (max(Counted.asked), sum(Counted.asked)) == (128, 4000)


def test_the_digest_of_weights_tells_them_apart():
    digests = {Rows("weights", given, 1, LIKE).digest for given in ([1, 2], [2, 1], np.float32([1, 2]))}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, -0.5], r"weights: expected weights of at least 0, got -0\.5 in row 1 \(counted from 0\)"),
        ([1.0] * 130 + [-2], r"weights: .* got -2\.0 in row 130"),
        ([0.0, 0.0], "weights: expected at least one positive weight, got zeros alone"),
        ([1e308, 1e308], "weights: expected weights with a sum that float64 can hold"),
        ([1.0, math.nan], "weights: expected finite numbers, got nan in row 1"),
        ([[1.0, 2.0]], r"weights: expected shape \(N,\) or \(N, 1\), got \(1, 2\)"),
    ],
)
def test_bad_weights_are_described(given, message, monkeypatch):
    take_chunks_of(128, monkeypatch)
    with pytest.raises(ValueError, match=message):
        check_weights(Rows("weights", given, 1, LIKE))


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


def test_fit_says_what_it_left_out_of_a_file(tmp_path):
    lines = [f"{number},{value!r}" for number, value in enumerate(draw().ravel().tolist())]
    (tmp_path / "table.csv").write_text("\n".join([",length", *lines, ""]))
    _, history = fit(tmp_path / "table.csv")
    assert history.notes[1] == "File: without the first column, which counts the rows."
    write_table(tmp_path / "plain.csv", ["length"], draw())
    _, history = fit(tmp_path / "plain.csv")
    assert not any(note.startswith("File") for note in history.notes)


def test_a_mapped_file_that_is_cut_short_ends_nothing_but_the_fit(tmp_path):
    data = mapped(tmp_path, draw(100_000))
    rows = Rows("data", data, 1, torch.empty(0))
    path = next(tmp_path.iterdir())
    with path.open("r+b") as file:
        file.truncate(4096)
    for read in (lambda: rows.take(np.array([99_999])), lambda: list(rows.chunks())):
        with pytest.raises(ValueError, match="data: the file was cut short while it was read; read a copy of it"):
            read()


class Counted(np.memmap):
    """A memory map that records how many rows each access asks for."""

    asked = ()

    def __getitem__(self, key):
        part = super().__getitem__(key)
        if isinstance(key, np.ndarray) or (isinstance(key, slice) and key != slice(None)):
            Counted.asked += (len(part),)
        return part


def test_a_memory_map_is_read_batch_by_batch(tmp_path, monkeypatch):
    take_chunks_of(128, monkeypatch)
    data = mapped(tmp_path, draw(3000)).view(Counted)
    Counted.asked = ()
    started = []

    class Watched(mixflow.transforms.MixtureCDF):
        def initialize(self, x, context=None):
            started.append(len(x))
            super().initialize(x, context)

    mixflow.fit(flows.Flow(Watched(1, 3)), data, epochs=2, batch_size=32, progress=False)
    assert max(Counted.asked) == 128
    # Once to check, once to start, once to score the start on the 300 rows held out, and once for each epoch.
    assert sum(Counted.asked) == 3000 + 128 + 300 + 2 * 3000
    assert started == [128]


def test_what_is_wrong_with_a_memory_map_is_placed(tmp_path, monkeypatch):
    take_chunks_of(128, monkeypatch)
    data = draw(1000, 2)
    data[777, 1] = math.nan
    with pytest.raises(ValueError, match="data: expected finite numbers, got nan in row 777, column 1"):
        fit(mapped(tmp_path, data), 2)
    with pytest.raises(ValueError, match=r"data: expected shape \(N,\) or \(N, 1\), got \(1000, 2\)"):
        fit(mapped(tmp_path, data))
    with pytest.raises(TypeError, match="data: expected an array of real numbers, got complex128"):
        fit(mapped(tmp_path, data.astype(complex)))


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
    flow, history = fit(data, validation=held_out, patience=100, initialize=False)
    with torch.no_grad():
        score = flow.log_prob(torch.from_numpy(held_out).float()).double().mean().item()
    assert max(history.validation_log_prob) == pytest.approx(score, rel=1e-6)
    again, _ = fit(data, validation=mapped(tmp_path, held_out), patience=100, initialize=False)
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
    with pytest.raises(ValueError, match="context, batch 0: expected 5 rows, as many as x, got 4"):
        mixflow.fit(flow, Stream((torch.zeros(5, 1), torch.zeros(4, 1))), validation=0, progress=False)


def test_batches_of_a_loader_are_learned_as_they_come():
    data = draw(320)
    stream = Stream(*torch.from_numpy(data).split(64))
    loaded = [
        fit(given, validation=draw(seed=1), initialize=False)[0]
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
        (Stream(torch.ones(5, 1)), {"validation": 0.1}, ValueError, r"validation: expected 0 or held-out.*, got 0\.1"),
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
        (TensorDataset(torch.ones(5, 1)), {}, TypeError, "data: .*a Dataset; wrap it in a torch.utils.data.DataLoader"),
    ],
)
def test_bad_batches_are_described(data, options, error, message):
    with pytest.raises(error, match=message):
        fit(data, **options)


# -- the form of a batch -------------------------------------------------------------------------------------

ONES = torch.ones(5, 1)


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("weight", [None, [0.5, 1, 1, 1, 1], np.float32([[0.5], [1], [1], [1], [1]])])
def test_a_batch_may_have_any_of_its_forms(context, weight):
    x, given = 2 * ONES, 3 * ONES if context else None
    forms = [(x, given, weight), [x, given, weight], {"weight": weight, "context": given, "x": x}]
    if weight is None:
        forms += [(x, given), {"x": x, "context": given}] if context else [x, (x,), [x], {"x": x}, (x, None)]
    elif not context:
        forms.append({"x": x, "weight": weight})
    for form in forms:
        (batch,) = Loader("data", Stream(form), 1, context, LIKE).batches(9, Group())
        assert torch.equal(batch.x, x)
        assert torch.equal(batch.context, given) if context else batch.context is None
        assert batch.rows == 5
        if weight is None:
            assert batch.weight is None
            assert (type(batch.total), batch.total) == (float, 5.0)
        else:
            assert batch.weight.dtype == torch.float64
            assert batch.weight.tolist() == [0.5, 1, 1, 1, 1]
            assert batch.total == 4.5


@pytest.mark.parametrize(
    ("context", "batches", "error", "message"),
    [
        (0, [(ONES, ONES)], ValueError, r"\(x, None, weight\) or a dict .*, got a context, .* in batch 0"),
        (0, [{"x": ONES, "context": ONES}], ValueError, "got a context, which the flow does not take, in batch 0"),
        (0, [()], ValueError, "got 0 parts in batch 0"),
        (0, [ONES, (ONES, None, None, None)], ValueError, "got 4 parts in batch 1"),
        (1, [ONES], ValueError, r"expected batches \(x, context\), \(x, context, weight\) or .*, got no context in"),
        (1, [(ONES, None, ONES)], ValueError, "got no context in batch 0"),
        (0, [{"x": ONES, "w": ONES, 3: ONES}], ValueError, "'weight', .* got the unknown 'w', 3 in batch 0"),
        (0, [{"weight": ONES}], ValueError, "got no 'x' in batch 0"),
        (0, [{"x": None}], TypeError, "data, batch 0: .* got NoneType"),
        (0, [(ONES, None, ONES[:4])], ValueError, "weight, batch 0: expected 5 rows, as many as x, got 4"),
        (0, [(ONES, None, -ONES)], ValueError, r"weight, batch 0: expected weights of at least 0, got -1\.0 in row 0"),
        (0, [(ONES, None, ONES / 0)], ValueError, "weight, batch 0: expected finite numbers, got inf"),
        (0, [(ONES, None, torch.ones(5, 2))], ValueError, r"weight, batch 0: expected shape \(N,\) or \(N, 1\), got"),
        (0, [(ONES, None, ONES > 0)], TypeError, "weight, batch 0: expected real numbers, got torch.bool"),
        (0, [ONES, (ONES, None, ONES)], ValueError, "data: expected weights with every batch or with none"),
        (0, [(ONES, None, ONES), ONES], ValueError, "data: expected weights with every batch or with none"),
    ],
)
def test_the_parts_of_bad_batches_are_described(context, batches, error, message):
    with pytest.raises(error, match=message):
        list(Loader("data", Stream(*batches), 1, context, LIKE).batches(9, Group()))


def test_weights_come_with_every_epoch_or_with_none():
    epochs = iter([[ONES], [(ONES, None, ONES)]])

    class Changing:
        def __iter__(self):
            return iter(next(epochs))

    loader = Loader("data", Changing(), 1, 0, LIKE)
    loader.first(5, Group())
    with pytest.raises(ValueError, match="data: expected weights with every batch or with none"):
        list(loader.batches(9, Group(), 0))


# -- loaders without an end ----------------------------------------------------------------------------------


def count_up(end=None):
    """Batches of one row, numbered from 0."""
    for number in itertools.count():
        if number == end:
            return
        yield torch.tensor([[float(number)]])


class Again:
    """An iterable of the batches that ``make`` makes anew, and of how often it did."""

    def __init__(self, make):
        self.make, self.starts = make, 0

    def __iter__(self):
        self.starts += 1
        return self.make()


def epochs_of(loader, *epochs):
    return [[int(batch.x) for batch in loader.batches(9, Group(), epoch)] for epoch in epochs]


def test_an_endless_loader_goes_on_where_the_last_epoch_ended():
    endless = Again(count_up)
    loader = Loader("data", endless, 1, 0, LIKE, steps_per_epoch=3)
    assert loader.steps(9) == 3
    assert loader.first(2, Group())[0].tolist() == [[0.0], [1.0]]
    assert epochs_of(loader, 0, 1, 2) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert endless.starts == 2  # once for the first rows, once for all epochs


def test_a_loader_that_runs_out_starts_anew():
    loader = Loader("data", Again(lambda: count_up(4)), 1, 0, LIKE, steps_per_epoch=3)
    assert epochs_of(loader, 0, 1, 2, 3) == [[0, 1, 2], [3, 0, 1], [2, 3, 0], [1, 2, 3]]
    loader = Loader("data", Again(lambda: count_up(2)), 1, 0, LIKE, steps_per_epoch=5)
    assert epochs_of(loader, 0, 1) == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    assert epochs_of(Loader("data", Stream(), 1, 0, LIKE, steps_per_epoch=5), 0) == [[]]


@pytest.mark.parametrize("steps", [None, 3])
def test_no_batch_of_an_iterator_is_lost_to_the_start(steps):
    loader = Loader("data", count_up(6), 1, 0, LIKE, steps_per_epoch=steps)
    assert loader.first(2, Group())[0].tolist() == [[0.0], [1.0]]
    epochs = epochs_of(loader, 0, 1, 2)
    assert epochs == ([[0, 1, 2, 3, 4, 5], [], []] if steps is None else [[0, 1, 2], [3, 4, 5], []])


class Rewound:
    """An iterator that starts anew when it is asked for an iterator."""

    def __iter__(self):
        self.rest = count_up(4)
        return self

    def __next__(self):
        return next(self.rest)


def test_an_iterator_that_starts_anew_gives_every_epoch_all():
    loader = Loader("data", Rewound(), 1, 0, LIKE)
    loader.first(2, Group())
    assert epochs_of(loader, 0, 1) == [[0, 1, 2, 3]] * 2


def test_a_resumed_run_starts_its_loader():
    assert epochs_of(Loader("data", count_up(), 1, 0, LIKE, steps_per_epoch=2), 5, 6) == [[0, 1], [2, 3]]


def test_batches_of_a_stream_are_numbered_from_its_start():
    def broken():
        yield from count_up(5)
        yield torch.tensor([[math.nan]])

    loader = Loader("data", broken(), 1, 0, LIKE, steps_per_epoch=3)
    loader.first(2, Group())
    with pytest.raises(ValueError, match="data, batch 5: expected finite numbers"):
        epochs_of(loader, 0, 1)


def test_samplers_are_told_of_each_start(monkeypatch):
    told = []
    monkeypatch.setattr(DistributedSampler, "set_epoch", lambda self, epoch: told.append(epoch))
    dataset = TensorDataset(torch.arange(4.0)[:, None])
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0)
    for steps, epochs, expected in ((3, (0, 1, 2, 3), [0, 1, 2]), (6, (0, 1), [0, 1, 2]), (3, (7, 8), [7, 8])):
        told.clear()
        epochs_of(Loader("data", DataLoader(dataset, sampler=sampler), 1, 0, LIKE, steps_per_epoch=steps), *epochs)
        assert told == expected


def test_scoring_reads_the_whole_loader():
    assert epochs_of(Loader("data", Again(lambda: count_up(4)), 1, 0, LIKE), None, None) == [[0, 1, 2, 3]] * 2


# -- loaders of several processes ----------------------------------------------------------------------------


class Together(Group):
    """A thread that stands for one of two processes."""

    box, barrier = [None, None], threading.Barrier(2, timeout=20)

    def gather(self, value):
        self.box[self.rank] = value
        self.barrier.wait()
        everyone = list(self.box)
        self.barrier.wait()
        return everyone

    def sum_(self, value):
        return value.copy_(sum(self.gather(value.clone())))


def on_both(work):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, [Together(0, 2), Together(1, 2)]))


def test_two_processes_know_the_sum_of_all_weights():
    batches = [[(ONES, None, ONES), (ONES, None, 2 * ONES)], [(ONES[:2], None, 3 * ONES[:2])]]

    def work(group):
        loader = Loader("data", Stream(*batches[group.rank]), 1, 0, LIKE)
        return loader.first(20, group), list(loader.batches(9, group, 0))

    for rank, ((x, context, weight), epoch) in enumerate(on_both(work)):
        assert (x.tolist(), context, weight.tolist()) == ([[1.0]] * 12, None, [1.0] * 5 + [2.0] * 5 + [3.0] * 2)
        assert [(batch.rows, batch.total) for batch in epoch] == [(7, 11.0), (5, 10.0)]
        assert [batch.weight.tolist() for batch in epoch] == ([[1.0] * 5, [2.0] * 5], [[3.0] * 2, []])[rank]
        assert {batch.weight.dtype for batch in epoch} == {torch.float64}


@pytest.mark.parametrize(
    "ask", [lambda loader, group: loader.first(20, group), lambda *of: list(of[0].batches(9, of[1]))]
)
def test_weights_on_one_process_alone_are_refused_by_both(ask):
    def work(group):
        loader = Loader("data", Stream((ONES, None, ONES if group.rank else None)), 1, 0, LIKE)
        with pytest.raises(ValueError, match="data: expected weights with every batch or with none"):
            ask(loader, group)
        return True

    assert on_both(work) == [True, True]


def test_an_epoch_has_its_steps_on_every_process():
    def work(group):
        loader = Loader("data", Again(lambda: count_up(2 + group.rank)), 1, 0, LIKE, steps_per_epoch=4)
        return [[batch.rows for batch in loader.batches(9, group, epoch)] for epoch in range(2)]

    assert on_both(work) == [[[2] * 4] * 2] * 2
