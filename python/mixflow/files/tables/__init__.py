"""Tables of numbers in files: .csv, .tsv (plain or packed by gzip), .npy and .parquet, whole or in chunks.

``reading`` and ``writing`` are what users call. ``kinds`` finds the module of a file by its ending: ``delimited``,
``npy`` or ``parquet``. ``dialect`` finds out how a text file writes its table, ``text`` turns its cells into numbers.
"""

from .reading import columns_of, count_rows, iter_table, map_table, read_table
from .table import NoColumn, Reading, Table, TableError, default_names, listed
from .writing import check_extension, table_writer, write_table

__all__ = [
    "NoColumn",
    "Reading",
    "Table",
    "TableError",
    "check_extension",
    "columns_of",
    "count_rows",
    "default_names",
    "iter_table",
    "listed",
    "map_table",
    "read_table",
    "table_writer",
    "write_table",
]
