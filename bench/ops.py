"""The microbenchmark of this clone: `mixflow bench`, whose results go to bench/results unless --out says otherwise.

python bench/ops.py [--only TEXT] [--n N] [--components K] [--dtype D] [--threads T] [--device cuda] [--quick]
"""

import sys
from pathlib import Path

from mixflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "--out", str(Path(__file__).parent / "results"), *sys.argv[1:]]))
