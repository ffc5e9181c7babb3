"""The command: which cases run, and where the results go."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from tqdm.auto import tqdm

import mixflow

from ..files.atomic import check_writable
from . import large_calls, memory, report
from .cases import Group, Row
from .inputs import Settings
from .options import QUICK_SIZE

__all__ = ["GROUPS", "run"]

GROUPS = [*large_calls.GROUPS, *memory.GROUPS]

# Elements of the main cases: enough to fill the device, and more than its caches hold.
_SIZE = {"cpu": 2**20, "cuda": 2**24}


def run(arguments: argparse.Namespace, groups: Sequence[Group] = GROUPS) -> int:
    """Check and time what the options select of ``groups``, print the tables, and return 0.

    With ``--out``, JSON is written, and if matplotlib is installed a picture.

    Raises:
        ValueError: an option makes no sense here.
        WrongResult: a result is wrong. Nothing is written.
        OSError: the results cannot be written.

    """
    settings = _settings(arguments)
    chosen = select(groups, arguments.only or [""], settings.device.type)
    if arguments.out is None:
        _measure(settings, chosen)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    json_file, picture_file = (arguments.out / f"{settings.device.type}.{ending}" for ending in ("json", "png"))
    check_writable(json_file)
    check_writable(picture_file)
    results = _measure(settings, chosen)
    report.write_json(json_file, settings, results)
    rows = [row for group in chosen if group.pictured for row in results[group.name]]
    print(f"wrote {json_file}")
    if rows and find_spec("matplotlib"):
        from ..plot import save_figure
        from .picture import rates

        save_figure(rates(report.machine(settings), rows), picture_file)
        print(f"wrote {picture_file}")
    return 0


def select(groups: Sequence[Group], only: Sequence[str], device: str) -> list[Group]:
    """The groups for a type of device, with those cases alone whose group or name contains one of the texts ``only``.

    Raises:
        ValueError: no case contains one of the texts.

    """
    there = [group for group in groups if group.device in ("", device)]
    names = [f"{group.name}: {case.name}".lower() for group in there for case in group.cases]
    for text in only:
        if not any(text.lower() in name for name in names):
            known = ", ".join(dict.fromkeys(group.name for group in there))
            raise ValueError(f"only: expected a part of the name of a table ({known}) or case, got {text!r}")

    def wanted(group: Group) -> Group:
        found = [c for c in group.cases if any(t.lower() in f"{group.name}: {c.name}".lower() for t in only)]
        return replace(group, cases=found)

    return [group for group in map(wanted, there) if group.cases]


def _settings(arguments: argparse.Namespace) -> Settings:
    device = torch.device(arguments.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {arguments.device}")
    if device.type == "cuda" and not mixflow.show_config()["cuda_usable"]:
        raise ValueError(f"device: expected one that can be used here, see mixflow info, got {arguments.device}")
    threads = min(2, os.cpu_count() or 1) if arguments.threads is None else arguments.threads
    n = (QUICK_SIZE if arguments.quick else _SIZE[device.type]) if arguments.n is None else arguments.n
    for name, value in (("n", n), ("components", arguments.components), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    return Settings(n, arguments.components, getattr(torch, arguments.dtype), threads, device, arguments.quick)


def _measure(settings: Settings, groups: Sequence[Group]) -> dict[str, list[Row]]:
    """The rows of each group, whose table is printed as soon as it is complete."""
    print("\n".join(f"{key:<16} {value}" for key, value in report.machine(settings).items()), flush=True)
    if settings.quick:
        print(f"\nquick: no case has more than {settings.n:,} elements, whatever its name says; times mean little")
    threads, results = torch.get_num_threads(), {}
    torch.set_num_threads(settings.threads)
    try:
        with tqdm(total=sum(len(group.cases) for group in groups), disable=None, leave=False) as progress:
            for group in groups:
                results[group.name] = _measure_group(settings, group, progress)
    finally:
        torch.set_num_threads(threads)
    judged = [row["reached"] for rows in results.values() for row in rows if row["reached"] is not None]
    print(f"M/s: million elements per second. {sum(judged)} of {len(judged)} targets reached.")
    return results


def _measure_group(settings: Settings, group: Group, progress: tqdm[Any]) -> list[Row]:
    rows = []
    for case in group.cases:
        progress.set_description(f"{group.name}: {case.name}")
        rows += case.measure(settings)
        progress.update()
    cells = [{heading: show(row) for heading, show in group.columns.items()} for row in rows]
    notes = dict.fromkeys(f"\n  {row['contender']}: {row['note']}" for row in rows if row["note"])
    tqdm.write(f"\n{group.name}\n\n{report.table(cells)}{''.join(notes)}\n")
    sys.stdout.flush()  # a pipe, too, shows each table when it is there
    return rows
