"""For the tests of the command line: running it, and tables and models to run it on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mixflow.cli import main


def run(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``mixflow`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mixflow", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def command(text: str, *more: Any) -> int:
    """Runs ``mixflow`` in this process. Returns its exit status, that of argparse too."""
    try:
        return main([*text.split(), *map(str, more)])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def column(n: int = 300, seed: int = 0) -> np.ndarray[Any, Any]:
    """A column with two modes."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(n) < 0.4, generator.normal(-3, 0.5, n), generator.normal(2, 1.0, n))


def write_csv(path: Path, values: np.ndarray[Any, Any], header: str = "length") -> None:
    """``values`` (n,) or (n, D) below a header."""
    rows = values.reshape(len(values), -1).tolist()
    path.write_text("\n".join([header, *(",".join(map(repr, row)) for row in rows)]) + "\n")


def fitted_in(folder: Path) -> Path:
    """Writes data.csv, with a column ``length``, and a fitted model.safetensors to ``folder``."""
    write_csv(folder / "data.csv", column())
    fit = f"fit {folder}/data.csv --out {folder}/model.safetensors --components 3 --epochs 20 --quiet"
    assert command(fit) == 0
    return folder


def weather(n: int = 400, seed: int = 0) -> np.ndarray[Any, Any]:
    """Columns temperature and rain, and month and height, on which the first two depend."""
    generator = np.random.default_rng(seed)
    month, height = generator.integers(1, 13, n), generator.normal(500.0, 100.0, n)
    temperature = 10.0 - 8.0 * np.cos(month * np.pi / 6) - 0.02 * (height - 500.0) + generator.normal(0.0, 2.0, n)
    return np.stack([temperature, generator.gamma(2.0, 1.0 + month / 6), month, height], axis=1)


WEATHER = "temperature,rain,month,height"


def weather_in(folder: Path) -> Path:
    """Writes weather.csv, and weather.safetensors fitted given month and height, to ``folder``."""
    write_csv(folder / "weather.csv", weather(), WEATHER)
    fit = f"fit {folder}/weather.csv --context month --context height --out {folder}/weather.safetensors"
    assert command(f"{fit} --flow coupling --layers 2 --hidden 8 --epochs 30 --quiet") == 0
    return folder
