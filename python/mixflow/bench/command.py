"""The command: the run, and where results go."""

from __future__ import annotations

import argparse
import os
import sys

import torch
from tqdm.auto import tqdm

import mixflow

from ..files.atomic import check_writable
from . import report
from .cases import CASES, Case, RateRow, Row
from .inputs import Settings
from .options import QUICK_SIZE

__all__ = ["run", "run_cases"]

# Elements of the main cases: enough to fill the device, and more than its caches hold.
_SIZE = {"cpu": 2**20, "cuda": 2**24}


def run(arguments: argparse.Namespace) -> int:
    """Check and time what the options ask for, print the tables, and write JSON and picture to ``--out``; returns 0.

    Raises:
        ValueError: an option makes no sense here.
        WrongResult: a result is wrong. Nothing is written.
        OSError: the results cannot be written.

    """
    settings = _settings(arguments)
    cases = _chosen(arguments.only or [""], settings.device.type)
    if arguments.out is None:
        _measure(settings, cases)
        return 0
    from ..plot import save_figure
    from .picture import rates

    arguments.out.mkdir(parents=True, exist_ok=True)
    json_file, picture_file = (arguments.out / f"{settings.device.type}.{ending}" for ending in ("json", "png"))
    check_writable(json_file)
    check_writable(picture_file)
    results = _measure(settings, cases)
    report.write_json(json_file, settings, results)
    pictured = {case.group: None for case in cases if case.pictured}
    rows = [row for group in pictured for row in results[group] if isinstance(row, RateRow)]
    if rows:
        save_figure(rates(report.machine(settings), rows), picture_file)
    print(f"wrote {json_file}" + (f" and {picture_file}" if rows else ""))
    return 0


def _measure(settings: Settings, cases: list[Case]) -> dict[str, list[Row]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        results = run_cases(settings, cases)
    finally:
        torch.set_num_threads(threads)
    judged = [row.reached for rows in results.values() for row in rows if row.reached is not None]
    print(f"M/s: million elements per second. {sum(judged)} of {len(judged)} targets reached.")
    return results


def run_cases(settings: Settings, cases: list[Case]) -> dict[str, list[Row]]:
    """Measure the cases in turn, print each table as soon as it is complete, and return the rows by table.

    Raises:
        WrongResult: a result is wrong.

    """
    print("\n".join(f"{key:<16} {value}" for key, value in report.machine(settings).items()), flush=True)
    results: dict[str, list[Row]] = {}
    with tqdm(cases, disable=None, leave=False) as progress:
        for case in progress:
            progress.set_description(f"{case.group}: {case.name}")
            results.setdefault(case.group, []).extend(case.measure(settings))
            if case is [c for c in cases if c.group == case.group][-1]:
                tqdm.write(f"\n{case.group}\n\n{report.table(results[case.group])}\n")
                sys.stdout.flush()  # a pipe, too, shows each table when it is there
    return results


def _settings(arguments: argparse.Namespace) -> Settings:
    device = torch.device(arguments.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda; got {arguments.device}")
    if device.type == "cuda" and not mixflow.show_config()["cuda_usable"]:
        raise ValueError(f"device: expected one that can be used here, see mixflow info; got {arguments.device}")
    threads = min(2, os.cpu_count() or 1) if arguments.threads is None else arguments.threads
    n = (QUICK_SIZE if arguments.quick else _SIZE[device.type]) if arguments.n is None else arguments.n
    for name, value in (("n", n), ("components", arguments.components), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1; got {value}")
    return Settings(n, arguments.components, getattr(torch, arguments.dtype), threads, device, arguments.quick)


def _chosen(only: list[str], device: str) -> list[Case]:
    there = [case for case in CASES if case.device in ("", device)]
    wanted = {text: [c for c in there if text.lower() in f"{c.group}: {c.name}".lower()] for text in only}
    for text, found in wanted.items():
        if not found:
            groups = ", ".join(dict.fromkeys(case.group for case in there))
            raise ValueError(f"only: expected a part of the name of a table ({groups}) or case; got {text!r}")
    return [case for case in there if any(case in found for found in wanted.values())]
