"""What a run found, as tables and as a JSON file."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mixflow

from ..files.atomic import PathLike, replace_file
from .inputs import Settings

__all__ = ["machine", "table", "write_json"]


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
        **{package: config[package] for package in ("mixflow", "torch", "numpy", "python")},
    }


def table(rows: Sequence[Mapping[str, str]], left: Sequence[str] = ("case", "baseline")) -> str:
    """Align ``rows``, which hold the text of each cell by heading, to the left in the columns ``left``.

    Example:
        >>> from mixflow.bench.report import table
        >>> print(table([{"case": "forward", "M/s": "500"}, {"case": "inverse + backward", "M/s": "7"}]))
        case                M/s
        -----------------------
        forward             500
        inverse + backward    7

    """
    headings = list(rows[0])
    lines = [headings, *([row[heading] for heading in headings] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if heading in left else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        )
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def write_json(path: PathLike, settings: Settings, groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the rows of all groups, with what a reader needs to understand them."""
    unit = "million elements per second; times in seconds, memory in MiB"
    document = {"machine": machine(settings), "unit": unit, "groups": groups}
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
