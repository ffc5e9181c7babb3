"""Numpy arrays: every memory layout gives the same numbers, and an array is copied only if torch cannot hold it."""

from __future__ import annotations

import numpy as np
import pytest

import mixflow
from mixflow.op import table

OPS = {"x": mixflow.cdf_transform, "z": mixflow.cdf_transform_inverse}
VALUES = np.linspace(-2, 2, 12).reshape(3, 4)
PARAMETERS = np.array([0.0, 1.0]), np.array([-1.0, 1.0]), np.array([0.0, 0.5])


def unaligned(a):
    view = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def in_records(a, flag=None):
    records = np.zeros(a.shape, dtype=[("flag", flag or a.dtype), ("value", a.dtype)])
    records["value"] = a
    return records["value"]


def locked(a):
    a = a.copy()
    a.flags.writeable = False
    return a


# name: (a function that gives an array this layout, whether torch can hold the result)
LAYOUTS = {
    "C order": (np.array, True),
    "Fortran order": (np.asfortranarray, True),
    "read-only": (locked, True),
    "every second": (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], True),
    "stride 0": (lambda a: np.broadcast_to(a[:1], a.shape), True),
    "in aligned records": (in_records, True),
    "backwards": (lambda a: np.flip(a, -1).copy()[..., ::-1], False),
    "foreign byte order": (lambda a: a.astype(a.dtype.newbyteorder()), False),
    "in packed records": (lambda a: in_records(a, "i1"), False),
    "unaligned": (unaligned, False),
}


def watch(monkeypatch):
    """The addresses that the core receives."""
    seen = []
    core = table.CDF_TRANSFORM.kernel

    def spy(inverse, family, base, is_double, operands, *where):
        seen.extend(address for address, _, _ in operands)
        core(inverse, family, base, is_double, operands, *where)

    monkeypatch.setattr(table.CDF_TRANSFORM, "kernel", spy)
    return seen


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, name, monkeypatch):
    lay_out, usable = LAYOUTS[layout]
    arrays = [lay_out(a.astype(dtype)) for a in (VALUES, *PARAMETERS)]
    plain = [np.array(a, dtype, order="C") for a in arrays]
    expected = OPS[name](*plain)
    seen = watch(monkeypatch)
    results = OPS[name](*arrays)
    for mine, theirs in zip(results, expected, strict=True):
        assert type(mine) is np.ndarray
        assert mine.dtype == dtype
        assert mine.flags.writeable
        np.testing.assert_array_equal(mine, theirs)
    assert [a.ctypes.data in seen for a in arrays] == [usable] * 4
    for before, after in zip(plain, arrays, strict=True):
        np.testing.assert_array_equal(before, after)


def test_memory_maps_and_broadcasting(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", VALUES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    sets = [np.stack([p, p + 0.1, p - 0.1, p]) for p in PARAMETERS]
    expected = mixflow.cdf_transform(VALUES, *(np.broadcast_to(s, (3, 4, 2)).copy() for s in sets))
    seen = watch(monkeypatch)
    np.testing.assert_array_equal(mixflow.cdf_transform(mapped, *sets), expected)
    assert mapped.ctypes.data in seen


def test_half_precision():
    arrays = [a.astype(np.float16) for a in (VALUES, *PARAMETERS)]
    for mine, theirs in zip(
        mixflow.cdf_transform(*arrays),
        mixflow.cdf_transform(*(a.astype(np.float32) for a in arrays)),
        strict=True,
    ):
        assert mine.dtype == np.float16
        np.testing.assert_array_equal(mine, theirs.astype(np.float16))


@pytest.mark.parametrize("name", OPS)
def test_scalars_of_numpy_count_as_arrays(name):
    expected = OPS[name](VALUES, *PARAMETERS)
    for scalar in (VALUES[1, 2], np.array(VALUES[1, 2])):
        value, ladj = OPS[name](scalar, *PARAMETERS)
        assert type(value) is np.ndarray
        assert value.shape == ladj.shape == ()
        assert (value, ladj) == (expected[0][1, 2], expected[1][1, 2])


REFUSED = {
    "number": (0.5, r"expected a torch tensor or a numpy array, got float"),
    "list": ([0.5], r"expected a torch tensor or a numpy array, got list"),
    "masked": (np.ma.masked_array(VALUES, VALUES > 0), r"expected a numpy array.*, got MaskedArray"),
    "integers": (np.arange(3), r"expected a float16, float32 or float64 array, got int64"),
    "long double": (VALUES.astype(np.longdouble), r"expected a float16, float32 or float64 array, got"),
    "complex": (VALUES.astype(complex), r"expected a float16, float32 or float64 array, got complex128"),
    "objects": (VALUES.astype(object), r"expected a float16, float32 or float64 array, got object"),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_names_no_dtype_or_library_is_refused(case, name):
    value, message = REFUSED[case]
    with pytest.raises(TypeError, match=f"^{name}: {message}"):
        OPS[name](value, *PARAMETERS)


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"^logits: expected torch.float32, like x, got torch.float64"):
        mixflow.cdf_transform(VALUES.astype(np.float32), *PARAMETERS)
    with pytest.raises(TypeError, match=r"^loc: expected a numpy array, like the others, got list"):
        mixflow.cdf_transform(VALUES, PARAMETERS[0], [0.0, 0.0], PARAMETERS[2])
