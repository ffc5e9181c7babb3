"""Tables: every kind of file comes back as written, and every defect is placed and named."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from mixflow.files.tables import (
    TableError,
    count_rows,
    iter_table,
    map_table,
    read_table,
    table_writer,
    write_table,
)

VALUES = np.array([[0.1, -2.0], [1e-300, 12345678.9], [3.0, 1 / 3]])


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".tsv", ".tsv.gz", ".npy", ".parquet", ".CSV"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_round_trip_is_exact(tmp_path, ending, dtype):
    values = VALUES.astype(dtype)
    path = tmp_path / f"table{ending}"
    write_table(path, ["width", 'a "quoted", name'], values)
    table = read_table(path)
    assert np.array_equal(table.values.astype(dtype), values)
    assert table.values.dtype == np.float64
    assert table.named == (ending != ".npy")
    assert table.columns == (["width", 'a "quoted", name'] if table.named else ["x1", "x2"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


NUMBERS = {
    "zeros": [0.0, -0.0],
    "thirds": [1 / 3, -2 / 3],
    "few digits": [0.1, 2.5, 7.0, 1e300, 6e4],
    "near the change to exponents": [1e-5, 9.9999e-5, 1e-4, 1.0001e-4, 9.999e15, 1e16, 1.5e16],
    "largest and smallest": [1.7976931348623157e308, 5e-324, 3.4028235e38, 1e-45, -1.1754944e-38],
    "not finite": [np.inf, -np.inf, np.nan],
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_in_csv_have_the_digits_that_their_dtype_needs(tmp_path, dtype, case):
    with np.errstate(over="ignore"):
        values = np.array(NUMBERS[case]).astype(dtype)
    path = tmp_path / "table.csv"
    write_table(path, ["x", "y"], np.stack([values, -values], axis=1))
    header, *lines = path.read_bytes().decode().split("\n")
    assert (header, lines.pop()) == ("x,y", "")
    for line, value in zip(lines, values, strict=True):
        first, second = line.split(",")
        np.testing.assert_array_equal(dtype(first), value)
        np.testing.assert_array_equal(dtype(second), -value)
        if np.isfinite(value):  # no shorter text has as many digits
            assert len(first.partition("e")[0].strip("-0.").replace(".", "")) <= len(
                np.format_float_scientific(value, trim="-").partition("e")[0].strip("-").replace(".", "")
            )


GOOD_CSV = {
    "header": (b"a,b\n1,2\n3,4\n", ["a", "b"]),
    "no header": (b"1,2\n3,4\n", ["x1", "x2"]),
    "byte-order mark": (b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\r\n", ["a", "b"]),
    "byte-order mark without header": (b"\xef\xbb\xbf1,2\r\n3,4", ["x1", "x2"]),
    "old mac": (b"a,b\r1,2\r3,4", ["a", "b"]),
    "quotes": (b'"a","b"\n"1","2"\n"3","4"\n', ["a", "b"]),
    "spaces and a last blank line": (b"a, b\n 1, 2\n3 ,4\n\n\n", ["a", "b"]),
    "exponents and signs": (b"a,b\n1e0,+2.\n.3e1,4E+00\n", ["a", "b"]),
    "mixed header": (b"2020,b\n1,2\n3,4\n", ["2020", "b"]),
}


@pytest.mark.parametrize("case", GOOD_CSV)
def test_csv_dialects(tmp_path, case):
    content, columns = GOOD_CSV[case]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    table = read_table(path)
    assert table.columns == columns
    assert table.values.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_columns_are_chosen_by_name_and_the_others_may_hold_anything(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,x,y\nox,1,\nant,2,?\n")
    assert read_table(path, ["x"]).values.tolist() == [[1.0], [2.0]]
    with pytest.raises(TableError, match="no column 'z'; the columns are name, x, y"):
        read_table(path, ["z"])
    path.write_text("x,x\n1,2\n")
    with pytest.raises(TableError, match="more than one column 'x'"):
        read_table(path, ["x"])


def test_parquet_columns_are_chosen_by_name(tmp_path):
    path = tmp_path / "table.parquet"
    columns = {"name": ["ox", "ant"], "x": [1, 2], "y": [0.5, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert read_table(path, ["x"]).values.tolist() == [[1.0], [2.0]]
    with pytest.raises(TableError, match="column 'name': expected numbers, got string"):
        read_table(path)
    with pytest.raises(TableError, match="data row 2, column 'y': expected a finite number, got null, a missing value"):
        read_table(path, ["y"])


def test_parquet_files_hold_no_dictionary_of_the_numbers(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, ["x", "y"], VALUES)
    columns = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    assert [columns.column(number).has_dictionary_page for number in range(2)] == [False, False]


def test_files_without_names_are_matched_by_their_number_of_columns(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, VALUES[:, :1])
    assert read_table(path, ["length"]).values.tolist() == VALUES[:, :1].tolist()
    np.save(path, VALUES)
    assert read_table(path, ["x2"]).values.tolist() == VALUES[:, 1:].tolist()
    with pytest.raises(TableError, match="no column 'length'; the columns are x1, x2"):
        read_table(path, ["length"])


BAD_CSV = {
    "empty": (b"", "empty"),
    "blank": (b"\n\n", "empty"),
    "header only": (b"a,b\n", "no rows of data"),
    "ragged": (b"a,b\n1,2\n3\n", "line 3: expected 2 cells as in the first line, got 1"),
    "too wide": (b"a,b\n1,2,3\n", "line 2: expected 2 cells as in the first line, got 3"),
    "blank line": (b"a,b\n1,2\n\n3,4\n", "line 3, column 'a': expected a finite number, got a blank cell"),
    "word": (b"a,b\n1,2\n3,four\n", "line 3, column 'b': expected a finite number, got 'four'"),
    "word without header": (b"1,2\n3,four\n", "line 2, column 'x2': expected a finite number, got 'four'"),
    "blank cell": (b"a,b\n1,\n", "line 2, column 'b': expected a finite number, got a blank cell"),
    "nan": (b"a,b\n1,2\nnan,2\n", "line 3, column 'a': expected a finite number, got 'nan'"),
    "infinite": (b"a,b\n1,inf\n", "line 2, column 'b': expected a finite number, got 'inf'"),
    "too large": (b"a,b\n1,1e999\n", "line 2, column 'b': expected a finite number, got '1e999'"),
    "underscore": (b"a,b\n1,1_0\n", "line 2, column 'b': expected a finite number, got '1_0'"),
    "after a long cell": (b'a,b\n"1\n",2\n3,x\n', "line 4, column 'b': expected a finite number, got 'x'"),
    "zero byte": (b"a\n1\x00\n", "expected text, got binary data"),
    "open quote": (b'a,b\n1,"2\n', "line 2: is a quote out of place, or not closed. .unexpected end of data"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_placed_and_named(tmp_path, case):
    content, message = BAD_CSV[case]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=message) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


BAD_ARRAYS = {
    "nan": (
        np.array([[1.0, 2.0], [3.0, np.nan]]),
        "data row 2, column 'x2': expected a finite number, got nan",
    ),
    "words": (np.array(["a"]), "expected an array of real numbers, got <U1"),
    "complex": (np.zeros(3, dtype=complex), "expected an array of real numbers"),
    "scalar": (np.array(1.0), r"expected an array of shape \(N,\) or \(N, D\), got \(\)"),
    "cube": (np.zeros((2, 2, 2)), r"got \(2, 2, 2\)"),
    "empty": (np.zeros((0,)), "no rows of data"),
    "no columns": (np.zeros((5, 0)), "no rows of data"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_npy_is_described(tmp_path, case):
    array, message = BAD_ARRAYS[case]
    np.save(tmp_path / "table.npy", array)
    with pytest.raises(TableError, match=message):
        read_table(tmp_path / "table.npy")


@pytest.mark.parametrize("description", ["(3,", "{'descr': (), 'fortran_order': False, 'shape': (3,)}"])
def test_npy_headers_of_any_kind_are_refused(tmp_path, description):
    header = description.ljust(117).encode() + b"\n"
    path = tmp_path / "table.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header + bytes(24))
    with pytest.raises(TableError, match="truncated, damaged or not a npy file"):
        read_table(path)


def test_an_archive_is_no_npy_file_and_is_closed(tmp_path):
    with (tmp_path / "table.npy").open("wb") as file:
        np.savez(file, a=VALUES)
    opened = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else None
    with pytest.raises(TableError, match="not a npy file"):
        read_table(tmp_path / "table.npy")
    if opened is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_pickled_objects_are_never_loaded(tmp_path):
    np.save(tmp_path / "table.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(TableError, match="not a npy file of numbers"):
        read_table(tmp_path / "table.npy")


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"PAR1 this is neither", None])
def test_damaged_binary_files_are_refused(tmp_path, ending, content):
    path = tmp_path / f"table{ending}"
    if content is None:
        write_table(path, ["a"], np.arange(100.0).reshape(-1, 1))
        content = path.read_bytes()[:-30]
    path.write_bytes(content)
    with pytest.raises(TableError, match="truncated, damaged or not a"):
        read_table(path)


@pytest.mark.parametrize(("name", "found"), [("data.txt", "'.txt'"), ("data", "'no ending'")])
def test_unknown_kinds_of_file(tmp_path, name, found):
    message = f"expected a file ending in .csv, .csv.gz, .tsv, .tsv.gz, .npy, .parquet, got {found}"
    with pytest.raises(TableError, match=message):
        read_table(tmp_path / name)
    with pytest.raises(TableError, match=message):
        write_table(tmp_path / name, ["a"], VALUES[:, :1])


def test_missing_files(tmp_path):
    for name in ("none.csv", "none.npy", "none.parquet"):
        with pytest.raises(TableError, match=f"{name}: no such file"):
            read_table(tmp_path / name)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.csv"
    write_table(path, ["a"], VALUES[:, :1])
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_table(path, ["\ud800"], VALUES[:, :1])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".npy", ".parquet"])
def test_names_must_fit_the_values(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    for columns, values in ((["a"], np.ones((2, 2))), (["a", "b"], np.ones((2, 1))), (["a"], np.ones(2))):
        with pytest.raises(ValueError, match="columns: expected a name for each column of values, got"):
            write_table(path, columns, values)
    assert list(tmp_path.iterdir()) == []


def test_parquet_columns_must_have_different_names(tmp_path):
    with pytest.raises(ValueError, match=r"columns: expected different names .*got 'b' more than once"):
        write_table(tmp_path / "table.parquet", ["a", "b", "b"], np.ones((2, 3)))
    assert list(tmp_path.iterdir()) == []


# -- chunks --------------------------------------------------------------------------------------------------

ENDINGS = [".csv", ".csv.gz", ".tsv", ".npy", ".parquet"]


def some(rows, columns=2):
    return np.random.default_rng(0).normal(size=(rows, columns))


def test_parquet_damaged_inside_is_refused(tmp_path):
    path = tmp_path / "table.parquet"
    write_table(path, ["a"], some(1000, 1))
    content = bytearray(path.read_bytes())
    content[4:4000] = bytes(3996)
    path.write_bytes(content)
    with pytest.raises(TableError, match="truncated, damaged or not a parquet file"):
        read_table(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("rows", [1, 3, 10, 11])
def test_chunks_make_up_the_whole(tmp_path, ending, rows):
    path = tmp_path / f"table{ending}"
    write_table(path, ["a", "b"], some(10))
    for columns in (None, ["b"]) if ending != ".npy" else (None, ["x2"]):
        chunks = list(iter_table(path, columns, rows))
        assert [len(chunk.values) for chunk in chunks] == [rows] * (10 // rows) + [10 % rows] * (10 % rows > 0)
        whole = read_table(path, columns)
        assert np.array_equal(np.concatenate([chunk.values for chunk in chunks]), whole.values)
        assert all((chunk.columns, chunk.named) == (whole.columns, whole.named) for chunk in chunks)
    assert count_rows(path) == (10 if ending in (".npy", ".parquet") else None)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_written_in_chunks_is_the_table_written_at_once(tmp_path, ending, dtype):
    once, chunks = tmp_path / f"once{ending}", tmp_path / f"chunks{ending}"
    values = some(1000).astype(dtype)
    write_table(once, ["a", "b"], values)
    with table_writer(chunks, ["a", "b"]) as write:
        for part in np.split(values, [1, 500, 500]):
            write(part)
    assert np.array_equal(read_table(chunks).values, read_table(once).values)
    if ending != ".parquet":  # whose row groups are the chunks
        assert chunks.read_bytes() == once.read_bytes()
    if ending == ".npy":
        assert np.load(chunks).dtype == dtype


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_of_no_rows_is_a_file_of_its_kind(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    with table_writer(path, ["a", "b"]):
        pass
    with pytest.raises(TableError, match="no rows of data"):
        read_table(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_that_breaks_off_leaves_the_old_file(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    write_table(path, ["a", "b"], some(3))
    before = path.read_bytes()

    def write_badly():
        with table_writer(path, ["a", "b"]) as write:
            write(some(5))
            write(some(5, columns=3))

    with pytest.raises(ValueError, match="columns: expected a name for each column of values, got 2 for shape"):
        write_badly()
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_a_defect_is_placed_in_the_whole_file(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    values = some(10)
    values[7, 1] = np.inf
    write_table(path, ["x1", "x2"], values)
    with pytest.raises(TableError, match="data row 8, column 'x2': expected a finite number, got inf"):
        list(iter_table(path, rows=3))


@pytest.mark.parametrize(
    "ending", [pytest.param(".csv", marks=pytest.mark.slow), pytest.param(".npy", marks=pytest.mark.slow), ".parquet"]
)
def test_a_chunk_at_a_time_is_in_memory(tmp_path, ending):
    few, many = 400_000, 2_000_000
    peaks = {}
    for count in (few, many):
        path = tmp_path / f"table{count}{ending}"
        write_table(path, ["a", "b"], some(count).astype(np.float32))
        sum(len(table.values) for table in iter_table(path, rows=10_000))  # so that imports do not count
        tracemalloc.start()
        assert sum(len(table.values) for table in iter_table(path, rows=200)) == count
        _, peaks[count] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    ahead = 32 * (1 << 18) if ending == ".csv" else 0  # the blocks that Arrow's thread may read ahead
    assert peaks[many] - peaks[few] < (many - few) * 2 * 8 / 4 + ahead, "a quarter of what the table grew by"


@pytest.mark.parametrize("ending", ENDINGS)
def test_mapped_tables_hold_the_same_numbers(tmp_path, ending):
    path = tmp_path / f"table{ending}"
    names = [f"x{number}" for number in range(1, 6)]
    write_table(path, names, some(100, columns=5))
    for columns in (None, ["x2"], ["x1", "x3", "x5"], ["x5", "x1"], ["x1", "x2", "x5"]):
        mapped, whole = map_table(path, columns), read_table(path, columns)
        assert isinstance(mapped.values, np.memmap)
        assert np.array_equal(mapped.values, whole.values)
        assert (mapped.columns, mapped.named) == (whole.columns, whole.named)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_npy_file_is_mapped_as_it_is(tmp_path):
    path = tmp_path / "table.npy"
    values = some(10).astype(np.float32)
    for order in ("C", "F"):
        np.save(path, np.asarray(values, order=order))
        mapped = map_table(path)
        assert mapped.values.dtype == np.float32
        assert np.array_equal(mapped.values, values)
