"""What a run says, as tables and as a JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import mixflow

from ..files.atomic import PathLike, replace_file
from .cases import RateRow, Row
from .inputs import Settings

__all__ = ["machine", "table", "write_json"]

Results = Mapping[str, Sequence[Row]]


def machine(settings: Settings) -> dict[str, Any]:
    """Where and how a run was made; nothing in it changes from one run to the next."""
    config = mixflow.show_config()
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        **({"gpu": torch.cuda.get_device_name(settings.device)} if settings.device.type == "cuda" else {}),
        "instruction set": config["cpu_capability"],
        "threads": settings.threads,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "elements": settings.n,
        "components": settings.components,
        "mixflow": config["mixflow"],
        "torch": config["torch"],
        "numpy": config["numpy"],
        "python": config["python"],
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as an aligned table, and why cells are empty.

    Example:
        >>> from mixflow.bench.cases import RateRow
        >>> from mixflow.bench.report import table
        >>> present = RateRow("forward", 500.0, "eager", 4.0, 125.0, target=120)
        >>> print(table([present, RateRow("forward", 500.0, "zuko", note="not installed")]))
        case     mixflow M/s  contender  contender M/s  ratio  target  reached
        ----------------------------------------------------------------------
        forward          500  eager                  4    125  >= 120      yes
        forward          500  zuko                   -      -       -        -
          zuko: not installed

    """
    lines = [list(rows[0].cells()), *(list(row.cells().values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    words = {"case", "contender"}
    text = [
        "  ".join(
            cell.ljust(width) if heading in words else cell.rjust(width)
            for heading, cell, width in zip(lines[0], line, widths, strict=True)
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    notes = dict.fromkeys(f"  {row.contender}: {row.note}" for row in rows if isinstance(row, RateRow) and row.note)
    return "\n".join([*text, *notes])


def write_json(path: PathLike, settings: Settings, results: Results) -> None:
    """All figures, with what is needed to read them."""
    groups = {group: [asdict(row) | {"reached": row.reached} for row in rows] for group, rows in results.items()}
    document = {
        "machine": machine(settings),
        "unit": "million elements per second; times in seconds, memory in MiB",
        "groups": groups,
    }
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
