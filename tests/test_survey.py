"""What fit sees in a table before it learns, and what it says about it."""

import math

import pytest
import torch

from mixflow.fitting.survey import Dependence, survey

NAMES = ["a", "b", "c", "d", "e"]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(*columns):
    return torch.stack([torch.as_tensor(column, dtype=torch.float64) for column in columns], 1)


def notes(x, dtype=torch.float64, widths=None):
    return survey(x).notes(NAMES[: x.shape[1]], dtype, widths or [0.0] * x.shape[1])


LINE = torch.linspace(-1.0, 1.0, 100, dtype=torch.float64)

# -- what is found -------------------------------------------------------------------------------------------


def test_clean_normal_data_give_no_notes_and_no_suspects():
    for rows in (20, 1000, 20_000):
        x = 3.0 + 2.0 * normal(rows, 4)
        assert notes(x, widths=[0.0] * 4) == []
        assert survey(x).suspects(NAMES[:4]) == ""
        assert survey(x).resolution == [0.0] * 4


def test_each_field_is_that_of_its_column():
    #         a step of 3            one value of 5 in ten    far from 0, and one value far out
    x = table(torch.arange(100) * 3, torch.arange(100) // 10, 1e6 + LINE)
    x[:25, 1] = 7.0
    x[99, 2] = 2e6
    found = survey(x)
    assert found.rows == 100
    assert found.distinct == [100, 8, 100]
    assert found.step[:2] == [3.0, 1.0]
    assert found.largest_share == [0.01, 0.35, 0.01]
    assert found.most_frequent[1] == 7.0
    assert found.outliers == [0, 0, 1]
    # Of a uniform column of that many values: the lower median over the standard deviation.
    assert found.offset[0] == pytest.approx(147.0 / (3.0 * math.sqrt(100.0 * 101.0 / 12.0)), rel=1e-12)
    # Clipped to its bulk, the third has the spread of the uniform one, except that the outlier lies at ten robust ones.
    assert 1e6 / 0.58 / 2.0 < found.offset[2] < 1e6 / 0.58
    assert found.farthest[0] == pytest.approx(150.0 / (3.0 * math.sqrt(100.0 * 101.0 / 12.0)), rel=1e-12)
    assert 1e6 / 0.58 / 2.0 < found.farthest[2] < 1e6 / 0.58
    assert found.dependences == []


STEPS = {
    "integers": ([2.0, 5.0, 9.0], 1.0),
    "multiples": ([10.0, 40.0, 30.0, 70.0], 10.0),  # the smallest difference itself
    "tenths": ([0.1, 0.2, 0.3, 0.7, 1.1], 0.1),
    "hundredths of large numbers": ([1234.56, 1234.57, 1300.01], 0.01),
    "hundredths that float64 rounds": ([1.7e9 + 0.01, 1.7e9 + 0.03, 1.7e9 + 0.06, 1.7e9 + 0.11], 0.01),
    "quarters": ([0.25, 1.0, 1.5, 1.75], 0.25),
    "halves and thirds": ([0.0, 1.0 / 2.0, 1.0 / 3.0, 0.9], 0.0),
    "an offset": ([1.7e9 + 0.5, 1.7e9 + 2.5, 1.7e9 + 7.5], 1.0),
    "below 0": ([-3.0, -1.0, 4.0], 1.0),
    "fives and sevens": ([0.0, 500.0, 1200.0], 100.0),
    "two values": ([0.0, 0.3], 0.3),
    "irrational": ([0.0, math.sqrt(2.0), math.sqrt(3.0), math.pi], 0.0),
    "far apart": ([0.0, 1.0, 1e12], 0.0),  # more than a thousand million steps
}


@pytest.mark.parametrize("kind", STEPS)
def test_the_step_is_the_largest_one_that_all_values_are_multiples_of(kind):
    values, step = STEPS[kind]
    assert survey(table(values * 30)).step == [step]


def test_a_constant_column_has_no_step_and_is_no_fault():
    found = survey(table([2.5] * 50, torch.arange(50)))
    assert found.step == [0.0, 1.0]
    assert found.distinct == [1, 50]
    assert all(math.isfinite(value) for value in [*found.offset, *found.farthest])
    assert found.dependences == []


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_handful_of_rows_is_surveyed(rows):
    found = survey(normal(rows, 3))
    assert found.rows == rows
    assert found.dependences == []


# -- repeated values -----------------------------------------------------------------------------------------


def test_a_column_is_tied_if_more_than_a_twentieth_of_its_values_repeat_others():
    for repeated, expected in ((5, False), (6, True)):
        x = normal(100, 1)
        x[:repeated] = x[-1]
        found = survey(x)
        assert found.is_tied(0) is expected
        assert any("Repeated values: a" in note for note in notes(x)) is expected


def test_the_resolution_is_the_step_of_columns_that_repeat_their_values():
    x = table((10.0 * normal(500)).round() / 10.0, torch.arange(500), normal(500, seed=1), normal(500).round())
    assert survey(x).resolution == [0.1, 0.0, 0.0, 1.0]


def test_repeated_values_are_described():
    x = table(normal(1000).round(), normal(1000, seed=1), (2.0 * normal(1000, seed=2)).abs().floor() / 2.0)
    (note,) = notes(x)
    assert note.startswith("Repeated values: a, c")
    distinct = len(x[:, 0].unique())
    assert f"{distinct} different values in 1,000 rows" in note
    assert "in steps of 1" in note
    assert f"{(x[:, 0] == 0.0).double().mean():.0%} " in note  # the share of the most frequent value
    assert 'resolution="auto"' in note
    few = table(torch.arange(1000) % 500)
    assert "%" not in notes(few)[0]  # no value is in more than a tenth of the rows
    roots = table((torch.arange(1000) % 300).double().sqrt())
    (note,) = notes(roots)
    assert "No step was found" in note
    assert "in steps of" not in note


def test_a_column_with_a_resolution_is_rounded_and_not_one_of_repeated_values():
    x = table(normal(1000).round(), (10.0 * normal(1000, seed=1)).round() / 10.0)
    rounding, repeated = notes(x, widths=[0.0, 0.1])
    assert rounding.startswith("Rounding: ")
    assert "b 0.1" in rounding
    assert "a " not in rounding.split("widths:")[1].split(".")[0]
    assert repeated.startswith("Repeated values: a.") or repeated.startswith("Repeated values: a ")
    assert [note.split(":")[0] for note in notes(x, widths=[1.0, 0.1])] == ["Rounding"]


# -- offsets -------------------------------------------------------------------------------------------------


def test_large_offsets_are_named_and_float32_that_has_rounded_them_is_warned_of():
    x = table(normal(500), 3e5 + normal(500, seed=1), -1.7e9 + normal(500, seed=2), 5e3 + normal(500, seed=3))
    (note,) = notes(x)
    assert note.startswith("Offsets: b, c")
    assert "Values of c are 2e+09 times" in note
    assert "float64" in note
    assert "visibly" not in note
    (note,) = notes(x, torch.float32)
    assert "float32 has rounded the values visibly: pass them as float64" in note
    assert notes(x[:, [0, 3]]) == []
    # Two thousand spreads lose 2e-4 of a spread in float32, but are no offset worth a note.
    assert notes(2e3 + normal(500, 1), torch.float32) == []
    # Float64 has its limits, too.
    assert "float64 has rounded" in notes(1e14 + torch.arange(500.0, dtype=torch.float64).unsqueeze(-1) / 64.0)[0]


# -- values far out ------------------------------------------------------------------------------------------


def test_values_far_out_are_counted():
    x = table(normal(1000), normal(1000, seed=1), normal(1000, seed=2))
    x[:3, 0] = torch.tensor([1e9, -1e3, 1e6])
    x[7, 2] = -200.0
    (note,) = notes(x)
    assert note.startswith("Values far out: a, c")
    assert "3 of 1,000 values of a" in note
    # Three values at ten deviations have a share of 0.3 in the variance.
    farthest = float(note.split("up to ")[1].split(" spreads")[0])
    assert farthest == pytest.approx(1e9 / math.sqrt(x[3:, 0].var().item() + 0.3), rel=0.02)
    # Forty spreads are far for a normal, but heavy tails reach that far.
    y = normal(1000, 1)
    y[0] = 40.0
    assert notes(y) == []


def test_zero_has_no_sign_in_a_note():
    x = normal(500, 1)
    x[:200] = -0.0
    (note,) = notes(x)
    assert "301 different values" in note
    assert "(40% are 0)" in note


# -- dependent columns ---------------------------------------------------------------------------------------

A, B, C = normal(300), normal(300, seed=1), normal(300, seed=2)
FORMULAS = {
    "twice": (table(A, A), "b = a"),
    "negative": (table(A, -A), "b = -a"),
    "line": (table(A, 2.0 * A + 1.0), "b = 2 a + 1"),
    "falling line": (table(A, 3.0 - 0.5 * A), "b = -0.5 a + 3"),
    "sum": (table(A, B, A + B), "c = a + b"),
    "difference": (table(A, B, A - 2.0 * B - 4.0), "c = a - 2 b - 4"),
    "one-hot": (torch.eye(3, dtype=torch.float64).repeat(100, 1), "c = -a - b + 1"),
    "units apart": (table(1e6 * A, 1e-6 * A), "b = 1e-12 a"),
    "an offset": (table(1.7e9 + A, A), "b = a - 1.7e+09"),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_dependent_columns_are_found_and_written_as_formulas(kind):
    x, formula = FORMULAS[kind]
    (found,) = survey(x).dependences
    assert found.describe(NAMES) == formula
    assert any(note.startswith(f"Dependent columns: {formula}.") for note in notes(x))


def test_only_columns_before_a_column_explain_it_and_each_once():
    x = table(A, 2.0 * A, B, A - B, A + B)
    described = [found.describe(NAMES) for found in survey(x).dependences]
    assert described == ["b = 2 a", "d = a - c", "e = a + c"]


def test_a_column_that_is_nearly_a_function_of_others_is_dependent_up_to_a_ten_thousandth():
    for noise, expected in ((3e-5, 1), (3e-4, 0)):
        assert len(survey(table(A, A + noise * B)).dependences) == expected
    # Correlation and curves are none.
    assert survey(table(A, 0.999 * A + 0.045 * B, A.square())).dependences == []


def test_a_function_of_columns_that_nearly_depend_on_each_other_is_found():
    near = A + 2e-4 * B
    (found,) = survey(table(A, near, 5000.0 * (near - A) + C, C)).dependences
    assert found.describe(NAMES) == "d = 5000 a - 5000 b + c"


def test_as_few_rows_as_columns_say_nothing_of_dependence():
    assert survey(normal(5, 5)).dependences == []


def test_formulas_leave_out_what_is_nothing():
    assert Dependence(1, [(1.0, 0)], 0.0).describe(NAMES) == "b = a"
    assert Dependence(2, [(-1.0, 0), (-2.5, 1)], -1e-12).describe(NAMES) == "c = -a - 2.5 b"
    assert Dependence(0, [], -3.0).describe(NAMES) == "a = -3"
    assert Dependence(0, [], 0.0).describe(NAMES) == "a = 0"


# -- many columns, and suspects ------------------------------------------------------------------------------


def test_a_note_names_three_columns_and_counts_the_rest():
    tied = torch.stack([normal(400, seed=seed).round() for seed in range(5)], 1)
    assert notes(tied)[0].startswith("Repeated values: a, b, c and 2 more")
    assert "c 1 and 2 more" in notes(tied, widths=[1.0] * 5)[0]
    far = normal(400, 5)
    far[0] = 1e9
    assert any(note.startswith("Values far out: a, b, c and 2 more") for note in notes(far))
    assert notes(1e9 + normal(400, 5))[0].startswith("Offsets: a, b, c and 2 more")
    same = normal(400).unsqueeze(-1).repeat(1, 5)
    assert notes(same)[0].startswith("Dependent columns: b = a; c = a; d = a and 1 more.")


def test_the_notes_come_in_the_order_of_what_matters():
    x = table(normal(500).round(), 1e6 + normal(500, seed=1), normal(500, seed=2), normal(500, seed=3))
    x[0, 2] = 1e9
    x[:, 3] = x[:, 0]
    kinds = [note.split(":")[0] for note in notes(x)]
    assert kinds == ["Repeated values", "Offsets", "Values far out", "Dependent columns"]


def test_suspects_are_what_can_make_a_training_fail():
    x = table(normal(500).round(), normal(500, seed=1), normal(500, seed=2), normal(500, seed=3))
    x[0, 1] = 1e9
    x[1, 2] = 1e3  # not far enough
    x[:, 3] = 2.0 * x[:, 0]
    tied = 'repeated values in a, d (resolution="auto" is made for them)'
    assert survey(x).suspects(NAMES[:4]) == f"{tied}; values far out in b; dependent columns (d = 2 a)"
    assert survey(x[:, 2:3]).suspects(["c"]) == ""


def test_the_dtype_of_the_rows_does_not_matter_to_what_is_found():
    x = normal(300, 2).float()
    x[:, 1] = x[:, 0].round()
    assert survey(x) == survey(x.double())
