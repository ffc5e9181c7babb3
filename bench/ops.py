"""`mixflow bench`, with further groups for whoever changes the kernels: `make bench`. Results go to bench/results.

python bench/ops.py [--only TEXT] [--n N] [--components K] [--dtype D] [--threads T] [--device cuda] [--quick]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import formula
import layouts
import limits
import parts
import scaling
import training
from mixflow.bench import command
from mixflow.bench.options import add_arguments
from mixflow.bench.verify import WrongResult

MODULES = (parts, training, layouts, formula, command, limits, scaling)
GROUPS = [group for module in MODULES for group in module.GROUPS]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(out=Path(__file__).parent / "results")
    try:
        return command.run(parser.parse_args(argv), GROUPS)
    except (OSError, ValueError, WrongResult) as error:
        print(f"ops: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
