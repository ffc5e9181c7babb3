"""High-precision truth for the tests of the core: where results are exact, which cases are hard, how errors count.

| module | what it holds |
| --- | --- |
| `numbers` | the dtypes under test and the constants of the core that the tests need |
| `families` | one record for each family of components: its formulas in mpmath, and how far its cases go |
| `bases` | one record for each base distribution: its quantile, density and score, and where the bounds are promised |
| `exact` | the transform, its gradients and the probability of an interval, in 60 digits or more |
| `hard_cases` | inputs that are hard: far tails, gaps, spikes, and the surroundings of every switch between formulas |
| `errors` | the scales on which errors are counted, the bounds that are promised, and the measuring itself |

Each module imports only those above it. The tests and `bench/accuracy.py` write `import truth` and find every public
name here.
"""

from mpmath import mpf

from .bases import BASES, Base, log_normal_tail, normal_mills, normal_quantile
from .errors import (
    BIN_BOUNDS,
    BOUNDS,
    UNITS_BOUNDS,
    Device,
    Op,
    Table,
    Worst,
    bounds,
    broken,
    evaluate,
    in_reach,
    measure,
    measure_bins,
    relative_error,
    value_scale,
)
from .exact import (
    EDGES,
    PARAMETERS,
    Gradient,
    Mixture,
    Value,
    flat_gradient,
    forward,
    gradients,
    hessian_vector_product,
    log_interval,
    mixture,
    to_base,
)
from .families import FAMILIES, At, Family
from .hard_cases import BIN_KINDS, Bin, Case, bisect, largest_target, sample, sample_bins
from .numbers import CONSTANTS, DIGITS, DTYPES, EPSILON, LARGEST, MIN_NORMAL, NUMBER, Number, precise

__all__ = [
    "BASES",
    "BIN_BOUNDS",
    "BIN_KINDS",
    "BOUNDS",
    "CONSTANTS",
    "DIGITS",
    "DTYPES",
    "EDGES",
    "EPSILON",
    "FAMILIES",
    "LARGEST",
    "MIN_NORMAL",
    "NUMBER",
    "PARAMETERS",
    "UNITS_BOUNDS",
    "At",
    "Base",
    "Bin",
    "Case",
    "Device",
    "Family",
    "Gradient",
    "Mixture",
    "Number",
    "Op",
    "Table",
    "Value",
    "Worst",
    "bisect",
    "bounds",
    "broken",
    "evaluate",
    "flat_gradient",
    "forward",
    "gradients",
    "hessian_vector_product",
    "in_reach",
    "largest_target",
    "log_interval",
    "log_normal_tail",
    "measure",
    "measure_bins",
    "mixture",
    "mpf",
    "normal_mills",
    "normal_quantile",
    "precise",
    "relative_error",
    "sample",
    "sample_bins",
    "to_base",
    "value_scale",
]
