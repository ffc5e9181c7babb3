"""Measure the errors of the special functions against mpmath and print the maxima, in ULP.

    python tools/measure_ulp.py [--float32 N] [--float64 N] [--seed S] [FUNCTION ...]

An ULP is a unit in the last place: the distance between neighbouring numbers at the true value. The functions and their
domains are those of tests/test_special.py. The limits in that file are the maxima that this program prints, rounded up.
The worst inputs are printed in hexadecimal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mpmath as mp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import test_special
import truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--float32", type=int, default=20000, help="points per function")
    parser.add_argument("--float64", type=int, default=2000, help="points per function")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("functions", nargs="*", metavar="FUNCTION", default=[])
    args = parser.parse_args()
    unknown = [name for name in args.functions if name not in test_special.FUNCTIONS]
    if unknown:
        parser.error(f"FUNCTION: expected some of {', '.join(test_special.FUNCTIONS)}, got {', '.join(unknown)}")
    print("| function | dtype | results | max ULP | at | got | expected |\n|---|---|---|---|---|---|---|")
    for name in args.functions or test_special.FUNCTIONS:
        for dtype, count in (("float32", args.float32), ("float64", args.float64)):
            errors = list(test_special.errors(name, dtype, count, args.seed))
            limits = truth.MIN_NORMAL[dtype], truth.LARGEST[dtype]
            kinds = {
                "normal": [e for e in errors if limits[0] <= abs(e[3]) <= limits[1]],
                "subnormal": [e for e in errors if abs(e[3]) < limits[0]],
                "overflow": [e for e in errors if abs(e[3]) > limits[1]],
            }
            for kind, rows in kinds.items():
                if rows:
                    error, x, got, exact = max(rows, key=lambda e: e[0])
                    where = f"{x.hex()} ({x:.6g}) | {got.hex()} ({got:.17g}) | {mp.nstr(exact, 20)}"
                    print(f"| {name} | {dtype} | {kind} | {error:.3f} | {where} |", flush=True)


if __name__ == "__main__":
    main()
