"""The options of the command, apart from what it runs: the command line shows them without importing that."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["QUICK_SIZE", "add_arguments"]

QUICK_SIZE = 2**12  # elements of the main cases with --quick


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the options of :func:`mixflow.bench.command.run`."""
    only = "only the cases whose table or name contains TEXT; may be repeated"
    parser.add_argument("--only", action="append", metavar="TEXT", help=only)
    sizes = f"2^20, on CUDA 2^24, with --quick {QUICK_SIZE}"
    parser.add_argument("--n", type=int, help=f"elements of the main cases (default: {sizes})")
    parser.add_argument(
        "--components", type=int, default=8, metavar="K", help="number of mixture components (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "float64"), default="float32", help="precision (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: 2, or 1 on a machine with one)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small and without torch.compile: to see that it works")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write DEVICE.json and DEVICE.png here")
