"""Where the rows of a training run come from: tensors, arrays, memory maps, files and loaders.

``Rows`` are tables by number, ``Subset`` deals some of them out in batches, and ``Loader`` takes the batches of an
iterable. ``numbers`` decides what counts as a number, ``order`` shuffles.
"""

from .batch import Batch, Part
from .loader import Loader, is_loader
from .numbers import Data
from .order import shuffled
from .rows import CHUNK, Rows, check_weights, send
from .subset import Subset

__all__ = [
    "CHUNK",
    "Batch",
    "Data",
    "Loader",
    "Part",
    "Rows",
    "Subset",
    "check_weights",
    "is_loader",
    "send",
    "shuffled",
]
