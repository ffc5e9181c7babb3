"""Files as other programs write them: what is found, what is said about it, and what is refused."""

import datetime
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mixflow.files.tables import (
    Reading,
    TableError,
    columns_of,
    delimited,
    iter_table,
    map_table,
    read_table,
    write_table,
)

X = np.random.default_rng(0).normal(size=(40, 3))
LINES = [",".join(map(repr, row)) for row in X.tolist()]


def written(tmp_path, content, ending=".csv"):
    path = tmp_path / f"table{ending}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def text(header, sep=",", decimal=".", ends="\n", first=None):
    """The table X as a program writes it; ``first`` is what stands before each row."""
    rows = [
        sep.join(map(repr, row)) if decimal == "." else sep.join(repr(v).replace(".", decimal) for v in row)
        for row in X.tolist()
    ]
    rows = rows if first is None else [f"{label}{sep}{row}" for label, row in zip(first, rows, strict=True)]
    return ends.join([*([header] if header else []), *rows, ""])


COUNTED = list(range(40))
SHUFFLED = np.random.default_rng(1).permutation(1000)[:40].tolist()
COUNTS = "without the first column, which counts the rows"

# Content, names of the columns, notes. All hold X.
FOUND = {
    "plain": (text("a,b,c"), "a b c", []),
    "pandas with its index": (text(",a,b,c", first=COUNTED), "a b c", [COUNTS]),
    "pandas with the index of shuffled rows": (text(",a,b,c", first=SHUFFLED), "a b c", [COUNTS]),
    "pandas with its index, read and written again": (text("Unnamed: 0,a,b,c", first=COUNTED), "a b c", [COUNTS]),
    "pandas with names that are words": (
        text(",a,b,c", first=[f"row {n}" for n in COUNTED]),
        "a b c",
        ["without the first column, which names the rows"],
    ),
    "pandas with default names": (text("0,1,2"), "0 1 2", ["the first line as names (0, 1, 2)"]),
    "pandas with default names and its index": (
        text(",0,1,2", first=COUNTED),
        "0 1 2",
        ["the first line as names (0, 1, 2)", COUNTS],
    ),
    "years": (text("2019,2020,2021"), "2019 2020 2021", ["the first line as names (2019, 2020, 2021)"]),
    "no header": (text(""), "x1 x2 x3", ["no header, so the columns are x1, x2, x3"]),
    "Excel in Germany": (text("a;b;c", ";", ",", "\r\n"), "a b c", ["separator semicolon", "decimal comma"]),
    "Excel's line on the separator": (
        text("sep=;\r\na;b;c", ";", ",", "\r\n"),
        "a b c",
        ["separator semicolon", "decimal comma"],
    ),
    "semicolons, decimal commas and an index": (
        text(";a;b;c", ";", ",", first=COUNTED),
        "a b c",
        ["separator semicolon", "decimal comma", COUNTS],
    ),
    "tabs": (text("a\tb\tc", "\t"), "a b c", ["separator tab"]),
    "bars": (text("a|b|c", "|"), "a b c", ["separator bar"]),
    "numpy.savetxt": (text("", " "), "x1 x2 x3", ["separator space", "no header, so the columns are x1, x2, x3"]),
    "numpy.savetxt with a header": (
        text("# a b c", " "),
        "a b c",
        ["separator space", "the comment above as names (a, b, c)"],
    ),
    "numpy.savetxt with commas and a header": (
        text("# made by hand\n# a,b,c"),
        "a b c",
        ["the comment above as names (a, b, c)"],
    ),
    "a comment above names": (text("# made by hand\na,b,c"), "a b c", []),
    "a comment of as many words above names": (text("# made, by, hand\na,b,c"), "a b c", []),
    "quoted numbers as names": (text('"10","7","1.5"'), "10 7 1.5", ["the first line as names (10, 7, 1.5)"]),
    "quoted numbers as names and counted rows": (
        text('"","1","5","2"', first=[f'"{n}"' for n in COUNTED]),
        "1 5 2",
        ["the first line as names (1, 5, 2)", COUNTS],
    ),
    "years beside words": (
        text(",2019,2020,2021", first=[f"row {n}" for n in COUNTED]),
        "2019 2020 2021",
        ["the first line as names (2019, 2020, 2021)", "without the first column, which names the rows"],
    ),
    "padded columns": (text("   a   b    c", "   "), "a b c", ["separator space"]),
    "R's write.table": (
        text('"a" "b" "c"', " ", first=[f'"{n}"' for n in COUNTED]),
        "a b c",
        ["separator space", COUNTS],
    ),
    "R's write.csv": (text('"","a","b","c"', first=[f'"{n}"' for n in COUNTED]), "a b c", [COUNTS]),
    "separators at the ends of lines": (
        text("a,b,c,", ends=",\n")[:-1].replace("c,,", "c,") + "\n",
        "a b c",
        ["without the last column, which is empty"],
    ),
    "UTF-8 with a mark": (b"\xef\xbb\xbf" + text("größe,b,c").encode(), "größe b c", []),
    "UTF-16 with a mark": (text("größe,b,c").encode("utf-16"), "größe b c", ["encoding UTF-16"]),
    "UTF-16 little-endian": (text("a,b,c").encode("utf-16-le"), "a b c", ["encoding UTF-16"]),
    "UTF-16 big-endian": (text("a,b,c").encode("utf-16-be"), "a b c", ["encoding UTF-16"]),
    "Latin-1": (text("größe,b,c").encode("latin-1"), "größe b c", ["encoding Windows-1252"]),
    "blank lines": ("\n \n" + text("a,b,c") + "\n\n", "a b c", []),
    "old Macintosh": (text("a,b,c", ends="\r"), "a b c", []),
}


@pytest.mark.parametrize("case", FOUND)
def test_files_of_other_programs_are_read_as_they_are_meant(tmp_path, case):
    content, names, notes = FOUND[case]
    path = written(tmp_path, content)
    table = read_table(path)
    assert table.columns == names.split() == columns_of(path)
    np.testing.assert_array_equal(table.values, X)
    assert table.notes == notes
    assert table.named == (not names.startswith("x1"))
    np.testing.assert_array_equal(map_table(path).values, X)
    # In small chunks, of chosen columns, and packed: the same.
    chosen = [names.split()[2], names.split()[0]]
    parts = [chunk.values for chunk in iter_table(path, chosen, rows=7)]
    np.testing.assert_array_equal(np.concatenate(parts), X[:, [2, 0]])


def test_a_long_table_of_spaces_is_the_same_in_all_blocks(tmp_path):
    x = np.random.default_rng(0).normal(size=(30_000, 3))  # several blocks
    rows = "\n".join("  ".join(f"{value:24.17g}" for value in row) for row in x.tolist())
    np.testing.assert_array_equal(read_table(written(tmp_path, rows)).values, x)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_a_long_table_in_other_encodings_is_the_same_in_all_blocks(tmp_path, encoding):
    x = np.random.default_rng(0).normal(size=(100_000, 1))
    content = "\n".join(["größe", *map(repr, x[:, 0].tolist())]).encode(encoding)
    np.testing.assert_array_equal(read_table(written(tmp_path, content)).values, x)


# Cells of the one column "a" beside a column of numbers; the numbers meant; the note.
CELLS = {
    "thousands": (";", ["1,234.5", "999", "12,345,678"], [1234.5, 999, 12345678], "thousands separators in a"),
    "thousands alone": (";", ["1,234,567", "2"], [1234567, 2], "thousands separators in a"),
    "German thousands beside a decimal comma": (";", ["1.234", "12,5"], [1234, 12.5], "thousands separators in a"),
    "German thousands": (";", ["1.234,5", "12.345.678"], [1234.5, 12345678], "thousands separators in a"),
    "Swiss thousands": (";", ["1'234.5", "2"], [1234.5, 2], "thousands separators in a"),
    "French thousands": (";", ["1\u00a0234,5", "2\u202f000"], [1234.5, 2000], "thousands separators in a"),
    "quoted thousands": (",", ['"1,234.5"', '"1,234"'], [1234.5, 1234], "thousands separators in a"),
    "booleans": (",", ["True", "false", "TRUE"], [1, 0, 1], "true and false as 1 and 0 in a"),
    "days": (",", ["1970-01-02", "1969-12-31"], [86400, -86400], "dates as seconds since 1970-01-01 in a"),
    "times": (
        ",",
        ["1970-01-01 00:00:01.5", "1970-01-01T01:00", "1970-01-01 00:00:00.250000999"],
        [1.5, 3600, 0.25],
        "dates as seconds since 1970-01-01 in a",
    ),
    "time zones": (
        ",",
        ["1970-01-01T00:00:01Z", "1970-01-01 01:00:00+01:00", "1970-01-01 00:00:02"],
        [1, 0, 2],
        "dates as seconds since 1970-01-01 in a",
    ),
    "typographic minus": (",", ["\u22121.5", "+2"], [-1.5, 2], None),
    "spaces": (",", [" 1.5", "2 "], [1.5, 2], None),
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_that_are_no_plain_numbers(tmp_path, case):
    sep, cells, numbers, note = CELLS[case]
    path = written(tmp_path, "\n".join([f"a{sep}n", *(f"{cell}{sep}{i}" for i, cell in enumerate(cells))]))
    table = read_table(path)
    assert table.values[:, 0].tolist() == numbers
    assert [n for n in table.notes if n.endswith("in a")] == ([note] if note else [])


def test_dates_are_the_seconds_that_python_counts(tmp_path):
    moments = [datetime.datetime(1900 + 7 * n, 1 + n % 12, 1 + n, n, 2 * n, 3 * n, 1000 * n) for n in range(20)]
    path = written(tmp_path, "\n".join(["t", *map(str, moments)]))
    expected = [moment.replace(tzinfo=datetime.timezone.utc).timestamp() for moment in moments]
    np.testing.assert_allclose(read_table(path).values[:, 0], expected, rtol=0, atol=1e-6)


# Content, what a reading says, names and rows.
TOLD = {
    "separator": ("a b;c\n1;2\n", Reading(sep=";"), ["a b", "c"], [[1, 2]]),
    "decimal comma": ('a,b\n"1,234",2\n', Reading(decimal=","), ["a", "b"], [[1.234, 2]]),
    "decimal point": ('a,b\n"1,234",2\n', Reading(decimal="."), ["a", "b"], [[1234, 2]]),
    "decimal comma without separator": ("1,5\n2,5\n", Reading(decimal=","), ["x1"], [[1.5], [2.5]]),
    "header of numbers": ("1,2\n3,4\n", Reading(header=True), ["1", "2"], [[3, 4]]),
    "no header above fractions": ("0,1\n0.5,1.25\n", Reading(header=False), ["x1", "x2"], [[0, 1], [0.5, 1.25]]),
}


@pytest.mark.parametrize("case", TOLD)
def test_the_caller_has_the_last_word(tmp_path, case):
    content, reading, names, rows = TOLD[case]
    table = read_table(written(tmp_path, content), reading=reading)
    assert table.columns == names
    assert table.values.tolist() == rows


# What cannot be told apart is read in the plain way, and the notes say so.
PLAIN = {
    "whole numbers above fractions": ("0,1\n0.01,0.99\n0.02,0.98\n0.03,0.97\n", ["x1", "x2"], 4),
    "whole numbers": ("5,3\n1,2\n8,9\n", ["x1", "x2"], 3),
    "one row": ("5,3\n", ["x1", "x2"], 1),
    "a simulation": ("0,1\n0.01,0.99995000041666\n0.02,0.99980000666658\n0.03,0.9\n", ["x1", "x2"], 4),
    "years below years": ("2001,2005\n2002,2006\n2003,2007\n", ["x1", "x2"], 3),
    "equal numbers": (text("1,1,1"), ["x1", "x2", "x3"], 41),
    "years among years": ("2019,2020\n2018,2021\n2020,2017\n", ["x1", "x2"], 3),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_may_be_data_is_data(tmp_path, case):
    content, names, rows = PLAIN[case]
    table = read_table(written(tmp_path, content))
    assert (table.columns, len(table.values)) == (names, rows)
    assert table.notes == [f"no header, so the columns are {', '.join(names)}"]


@pytest.mark.parametrize("first", ["ox,1.5", "ant,2"])
def test_words_without_names(tmp_path, first):
    path = written(tmp_path, f"{first}\nant,2.5\nbee,3.5\n")
    assert read_table(path, ["x2"]).values.tolist() == [[float(first.partition(",")[2])], [2.5], [3.5]]


def test_tab_separated_files_have_tabs_first(tmp_path):
    table = read_table(written(tmp_path, "a\tb\n1\t2\n", ".tsv"))
    assert (table.columns, table.notes) == (["a", "b"], [])
    table = read_table(written(tmp_path, "a;b\n1;2\n", ".tsv"))
    assert (table.columns, table.notes) == (["a", "b"], ["separator semicolon"])


@pytest.mark.parametrize("word", ["", "NA", "N/A", "nan", "NaN", "NULL", "null", "None", "?", "-", ".", " NA "])
def test_missing_values(tmp_path, word):
    path = written(tmp_path, f"a,b\n1,2\n3,{word}\n5,6\n")
    with pytest.raises(
        TableError, match=r"line 3, column 'b': expected a finite number, got .* a missing value; --na drop"
    ):
        read_table(path)
    table = read_table(path, reading=Reading(na="drop"))
    assert table.values.tolist() == [[1, 2], [5, 6]]
    assert table.notes == ["without 1 of 3 rows, which lack a value"]
    kept = read_table(path, reading=Reading(na="keep")).values
    np.testing.assert_array_equal(kept, [[1, 2], [3, np.nan], [5, 6]])
    assert read_table(path, ["a"]).values.tolist() == [[1], [3], [5]]


@pytest.mark.parametrize("ending", [".npy", ".parquet"])
def test_missing_values_in_binary_files(tmp_path, ending):
    x = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    path = tmp_path / f"table{ending}"
    if ending == ".npy":
        np.save(path, x)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"a": x[:, 0], "b": [2.0, None, 6.0]}), path)
    with pytest.raises(TableError, match=r"data row 2, column '(b|x2)': .* a missing value; --na drop"):
        map_table(path)
    for table in (read_table(path, reading=Reading(na="drop")), map_table(path, reading=Reading(na="drop"))):
        assert table.values.tolist() == [[1, 2], [5, 6]]
        assert table.notes == ["without 1 of 3 rows, which lack a value"]
    np.testing.assert_array_equal(read_table(path, reading=Reading(na="keep")).values, x)


def test_rows_that_all_lack_a_value(tmp_path):
    with pytest.raises(TableError, match="no rows of data without missing values"):
        read_table(written(tmp_path, "a,b\n1,\n,2\n"), reading=Reading(na="drop"))


def test_infinite_values_are_refused_even_where_missing_ones_are_not(tmp_path):
    with pytest.raises(TableError, match="line 3, column 'a': expected a finite number, got '-inf'"):
        read_table(written(tmp_path, "a,b\n1,\n-inf,2\n"), reading=Reading(na="drop"))


REFUSED = {
    "equal names": ("a,b,a\n1,2,3\n", "columns 1 and 3 are both named 'a'; give every column a name of its own"),
    "no name": ("a,,b\n1,2,3\n", "column 2 has no name; give every column"),
    "first column of fractions without name": (",a\n1.5,2\n2.5,3\n", "column 1 has no name"),
    "doubtful comma": ('a,b\n"1,234",2\n"5,678",3\n', r"column 'a': 1,234 can be read in two ways; say --decimal"),
    "American dates": ("t,b\n1/31/2020,2\n", "line 2, column 't': .* got '1/31/2020'; dates are read as 2020-01-31"),
    "ragged among semicolons": ("a;b\n1,5;2\n3\n4;5\n", "line 3: expected 2 cells as in the first line, got 1"),
    "even number of quotes out of place": (
        'a,name\n1,"ox\n2,ant\n3,"bee\n4,cow\n',
        "line 2: is a quote out of place, or not closed. .',' expected after '\"'",
    ),
    "first row that does not end": ('"a,b\n' + "1,2\n" * 100_000, "the first row does not end; is a quote not closed"),
    "comma that leaves it open after many rows": (
        "a;b\n" + "5;7\n" * 1500 + "5,123;7\n",
        "line 1502.* --decimal , reads",
    ),
    "two marks of thousands": ("a;b\n7.5;1\n1 234,567;2\n", "line 3, column 'a': .* got '1 234,567'"),
    "zero before thousands": ("a;b\n7.5;1\n0,123;2\n", "line 3, column 'a': .* got '0,123'"),
    "Excel's error": ("#DIV/0!,1\n2,3\n4,5\n", "line 1, column 'x1': .* got '#DIV/0!', a missing value"),
    "number after booleans, blocks later": ("a\n" + "true\n" * 100_000 + "2\n", "line 100002.* got '2'"),
    "date after numbers, blocks later": ("a\n" + "1\n" * 200_000 + "2020-01-01\n", "line 200002.* got '2020-01-01'"),
    "two faulty columns": ("a,b\n1,2\n3,x\ny,4\n", "line 3, column 'b': .* got 'x'"),
    "ragged after a long cell": ('a,b\n1,"2\n"\n3\n', "line 4: expected 2 cells as in the first line, got 1"),
    "percent": ("a\n1\n5%\n", "line 3, column 'a': .* got '5%'; --column chooses"),
    "stray decimal comma": (
        "a;b\n1.5;2\n1,5;3\n",
        "line 3, column 'a': .* got '1,5'; --decimal , reads decimal commas",
    ),
    "boolean among numbers": ("a,b\n1,1\ntrue,1\n", "line 3, column 'a': .* got 'true'"),
    "number among booleans": ("a,b\ntrue,1\n2,1\n", "line 3, column 'a': .* got '2'"),
    "date among numbers": ("a,b\n1,1\n2020-01-01,1\n", "line 3, column 'a': .* got '2020-01-01'"),
    "German dates": ("t,b\n31.12.2020,2\n", "line 2, column 't': .* got '31.12.2020'; dates are read as 2020-01-31"),
    "no such day": ("a,b\n2020-02-30,1\n", "line 2, column 'a': .* got '2020-02-30'"),
    "binary": (b"1,2" + bytes(40), "expected text, got binary data"),
    "Excel's workbook": (b"PK\x03\x04" + bytes(40), "expected text, got a zip archive, as Excel's workbooks are; save"),
    "parquet": (b"PAR1" + bytes(40), "expected text, got a parquet file, whose name ends in .parquet"),
    "long cell": ("a,b\n1,2\n3," + "x" * 50 + "\n", "line 3, column 'b': .* got 'x{40}' and 10 characters more"),
    "very long cell": ("a,b\n1,2\n3," + "4" * 200_000 + "\n", "line 3, column 'b': .* got a very long cell"),
    "line of 10 MB": ("a,b\n1,2\n3," + "4" * 10_000_000 + "\n", "line 3, column 'b': .* got a very long cell"),
    "header of 70 MB": ("a" * 70_000_000, "expected lines of at most 67,108,864 bytes"),
    "quote that swallows rows": (
        'a,name\n1,"ox\n2,ant\n3,bee\n',
        "line 2: is a quote out of place, or not closed. .unexpected end",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_placed_and_named(tmp_path, case):
    content, message = REFUSED[case]
    path = written(tmp_path, content)
    with pytest.raises(TableError, match=message) as caught:
        read_table(path, ["a"] if "quotes" in case or "swallows" in case else None)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_quote_within_a_cell_is_no_quote(tmp_path):
    path = written(tmp_path, 'a,name\n1,5" pipe\n2,ant\n')
    assert read_table(path, ["a"]).values.tolist() == [[1], [2]]


def test_names_that_do_not_matter_may_be_equal_or_missing(tmp_path):
    path = written(tmp_path, "a,b,b,\n1,2,3,4\n")
    assert read_table(path, ["a"]).values.tolist() == [[1]]
    with pytest.raises(TableError, match="more than one column 'b'; the columns are a, b, b, "):
        read_table(path, ["b"])
    with pytest.raises(ValueError, match="columns: expected at least one name, got none"):
        read_table(path, [])


def test_columns_without_names_are_chosen_in_any_order(tmp_path):
    path = written(tmp_path, "1,2\n3,4\n")
    assert read_table(path, ["x2", "x1"]).values.tolist() == [[2, 1], [4, 3]]
    assert read_table(path, ["b", "a"]).values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("names", [["1", "2"], ["10", "20", "35"], ["1.5"], ["2000"], ["#a", "b"], ["true", "NA"]])
def test_names_that_could_be_values_are_read_as_they_were_written(tmp_path, names):
    path = tmp_path / "table.csv"
    write_table(path, names, X[:, : len(names)])
    table = read_table(path)
    assert (table.columns, table.values.shape) == (names, (40, len(names)))


def test_a_first_line_with_the_names_asked_for_is_a_header(tmp_path):
    path = written(tmp_path, text("7,3,5"))
    assert len(read_table(path).values) == 41
    np.testing.assert_array_equal(read_table(path, ["5", "7"]).values, X[:, [2, 0]])


@pytest.mark.parametrize("case", FOUND)
def test_no_number_depends_on_where_blocks_end(tmp_path, monkeypatch, case):
    monkeypatch.setattr(delimited, "_BLOCK", 1)  # then a block is as long as 16 lines
    test_files_of_other_programs_are_read_as_they_are_meant(tmp_path, case)


@pytest.mark.parametrize("block", [1, 1 << 18])
def test_cells_of_several_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr(delimited, "_BLOCK", block)
    rows = [f'{n},"line\n""line""\n{"x" * (n % 50)}",{n / 2}' for n in range(300)]
    path = written(tmp_path, "\n".join(["a,note,b", *rows]))
    assert read_table(path, ["a", "b"]).values.tolist() == [[n, n / 2] for n in range(300)]
    path = written(tmp_path, "\n".join(["a,note,b", *rows, '1,"two\nlines",x']))
    with pytest.raises(TableError, match=r"line 903, column 'b': .* got 'x'"):
        read_table(path, ["a", "b"])


def test_left_out_columns_can_be_asked_for(tmp_path):
    path = written(tmp_path, "Unnamed: 0,a\n0,1.5\n1,2.5\n")
    table = read_table(path, ["Unnamed: 0", "a"])
    assert table.values.tolist() == [[0, 1.5], [1, 2.5]]
    assert table.notes == []


def test_ten_thousand_columns(tmp_path):
    x = np.random.default_rng(0).integers(0, 9, (20, 10_000))
    path = written(
        tmp_path, "\n".join([",".join(f"c{n}" for n in range(10_000)), *(",".join(map(str, row)) for row in x)])
    )
    np.testing.assert_array_equal(read_table(path).values, x)
    np.testing.assert_array_equal(read_table(path, ["c9999", "c3"]).values, x[:, [9999, 3]])
    with pytest.raises(TableError, match=r"no column 'd'; the columns are c0, c1, .* c9 and 9990 more"):
        read_table(path, ["d"])


class Growing:
    """Appends to a file after its first chunk was read."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        chunks = iter_table(self.path, rows=2)
        next(chunks)
        with self.path.open("ab") as file:
            file.write(b"7,8\n")
        list(chunks)


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = written(tmp_path, "a,b\n" + "1,2\n" * 10)
    with pytest.raises(TableError, match="changed while it was read; read a copy of it"):
        Growing(path)()


def test_an_array_that_is_cut_short_while_it_is_read(tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, X)
    chunks = iter_table(path, rows=2)
    next(chunks)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TableError, match=r"table\.npy: truncated, damaged"):
        list(chunks)


# -- parquet -------------------------------------------------------------------------------------------------


def parquet(tmp_path, columns, index=None):
    table = pyarrow.table(columns)
    if index is not None:  # as pandas says which columns are the index of a data frame
        table = table.replace_schema_metadata({"pandas": json.dumps({"index_columns": index})})
    path = tmp_path / "table.parquet"
    pyarrow.parquet.write_table(table, path)
    return path


def test_the_index_of_a_data_frame_is_no_column(tmp_path):
    columns = {"a": X[:, 0], "__index_level_0__": SHUFFLED}
    path = parquet(tmp_path, columns, ["__index_level_0__"])
    table = read_table(path)
    assert (table.columns, table.notes) == (["a"], ["without the index of the data frame (__index_level_0__)"])
    np.testing.assert_array_equal(read_table(path, ["__index_level_0__"]).values[:, 0], SHUFFLED)
    # A counted index is kept as a description, not as a column.
    described = {"kind": "range", "name": None, "start": 0, "stop": 40, "step": 1}
    assert read_table(parquet(tmp_path, {"a": X[:, 0]}, [described])).columns == ["a"]
    # Metadata of any other form are no index.
    assert read_table(parquet(tmp_path, columns, "none")).columns == ["a", "__index_level_0__"]


DAY = datetime.datetime(1970, 1, 2, 0, 0, 1)
KINDS = {
    "int8": (pyarrow.array([1, 2], pyarrow.int8()), [1, 2], None),
    "uint64": (pyarrow.array([1, 2**63], pyarrow.uint64()), [1, 2.0**63], None),
    "half": (pyarrow.array(np.float16([1.5, 2])), [1.5, 2], None),
    "decimal": (pyarrow.array([1, 2], pyarrow.decimal128(10, 2)), [1, 2], None),
    "boolean": (pyarrow.array([True, False]), [1, 0], "true and false as 1 and 0 in a"),
    "dictionary": (pyarrow.array([1.5, 2.5]).dictionary_encode(), [1.5, 2.5], None),
    "timestamp": (
        pyarrow.array([DAY, None], pyarrow.timestamp("ns")),
        [86401, np.nan],
        "dates as seconds since 1970-01-01 in a",
    ),
    "time zone": (
        pyarrow.array([DAY], pyarrow.timestamp("ms", "Europe/Paris")),
        [86401],
        "dates as seconds since 1970-01-01 in a",
    ),
    "date32": (pyarrow.array([DAY.date()], pyarrow.date32()), [86400], "dates as seconds since 1970-01-01 in a"),
    "date64": (pyarrow.array([DAY.date()], pyarrow.date64()), [86400], "dates as seconds since 1970-01-01 in a"),
    "time": (pyarrow.array([datetime.time(1, 0, 1)], pyarrow.time32("ms")), [3601], "times as seconds in a"),
    "duration": (pyarrow.array([datetime.timedelta(hours=1)], pyarrow.duration("us")), [3600], "times as seconds in a"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_values_of_every_kind(tmp_path, kind):
    array, numbers, note = KINDS[kind]
    table = read_table(parquet(tmp_path, {"a": array}), reading=Reading(na="keep"))
    np.testing.assert_array_equal(table.values[:, 0], numbers)
    assert table.notes == ([note] if note else [])


@pytest.mark.parametrize("array", [["x", "y"], [[1.0], [2.0]], [b"1", b"2"]])
def test_parquet_values_that_are_no_numbers(tmp_path, array):
    with pytest.raises(
        TableError, match=r"column 'a': expected numbers, got .*; choose the columns of numbers with --column"
    ):
        read_table(parquet(tmp_path, {"a": array}))


def test_parquet_columns_of_equal_names(tmp_path):
    table = pyarrow.table([pyarrow.array([1.0]), pyarrow.array([2.0])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(TableError, match="columns 1 and 2 are both named 'a'"):
        read_table(tmp_path / "table.parquet")


READINGS = {
    "two separators": ({"sep": ";;"}, "sep: expected one ASCII character"),
    "a quote": ({"sep": '"'}, "sep: expected one ASCII character"),
    "a line end": ({"sep": "\n"}, "sep: expected one ASCII character"),
    "no mark": ({"decimal": ";"}, "decimal: expected '.' or ',', got ';'"),
    "one for both": ({"sep": ",", "decimal": ","}, "decimal: expected another character than sep"),
    "unknown word": ({"na": "ignore"}, "na: expected 'error', 'drop' or 'keep', got 'ignore'"),
}


@pytest.mark.parametrize("case", READINGS)
def test_readings_that_no_table_can_be_read_by(case):
    options, message = READINGS[case]
    with pytest.raises(ValueError, match=message):
        Reading(**options)
