"""What a bug report needs, and the environment variables: all of them, and no others."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mixflow
from mixflow import config
from mixflow.cli import main

ROOT = Path(__file__).parents[1]


def test_show_config_tells_what_a_bug_report_needs(monkeypatch):
    monkeypatch.setenv("MIXFLOW_NO_SUCH_THING", "typo")
    told = mixflow.show_config()
    assert told["mixflow"] == mixflow.__version__
    assert told["python"] == platform.python_version()
    assert (told["torch"], told["numpy"]) == (torch.__version__, np.__version__)
    assert told["threads"] == torch.get_num_threads()
    assert told["cpu_capability"] in told["cpu_capabilities"]
    assert set(told["cpu_capabilities"]) <= set(told["cpu_compiled"])
    assert re.search(r"\d+\.\d+.*-ffp-contract=off", told["build"]), "compiler, its version and flags"
    assert told["environment"]["MIXFLOW_NO_SUCH_THING"] == "typo"


@pytest.mark.parametrize(
    ("architectures", "capability", "usable"),
    [
        ("80-real, 90", (7, 5), False),
        ("80-real, 90", (8, 0), True),
        ("80-real, 90", (8, 6), True),
        ("86-real", (8, 0), False),
        ("80-real", (9, 0), False),
        ("90a", (10, 3), True),
        ("100-virtual", (12, 0), True),
        ("native", (7, 0), True),
        ("", (9, 0), False),
        ("80-real, 90", None, False),
    ],
)
def test_a_device_is_usable_if_there_is_code_for_it(monkeypatch, architectures, capability, usable):
    monkeypatch.setattr(config._core, "cuda_architectures", lambda: architectures)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # The first device is one that no build serves.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device else (3, 0))
    assert mixflow.show_config()["cuda_usable"] is usable


def test_info_prints_every_entry_on_a_line(capsys, monkeypatch):
    monkeypatch.delenv("MIXFLOW_CPU_CAPABILITY", raising=False)
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = mixflow.show_config()
    assert [line.split("  ")[0] for line in lines] == list(told)
    shown = dict(re.split(" {2,}", line, maxsplit=1) for line in lines)
    assert shown["cpu_capabilities"] == ", ".join(told["cpu_capabilities"])
    assert shown["environment"] == ", ".join(f"{k}={v}" for k, v in told["environment"].items()) or "none"


@pytest.mark.parametrize("wanted", ["", "baseline"])
def test_the_choice_of_the_instruction_set_is_explained(wanted, monkeypatch):
    monkeypatch.setenv("MIXFLOW_CPU_CAPABILITY", wanted)
    show = "import mixflow; c = mixflow.show_config(); print(c['cpu_capability'], c['cpu_chosen_by'], sep=';')"
    said = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    best = mixflow.show_config()["cpu_capabilities"][-1]
    assert said == ("baseline;MIXFLOW_CPU_CAPABILITY" if wanted else f"{best};best of build and processor")


def test_environment_variables_are_those_of_one_table():
    section = (
        (ROOT / "docs" / "installing.md").read_text().partition("## Environment variables")[2].partition("\n## ")[0]
    )
    documented = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert tuple(documented) == config.VARIABLES
    read = set()
    for path in [*ROOT.glob("csrc/**/*"), *ROOT.glob("python/mixflow/**/*.py")]:
        if path.suffix in (".cpp", ".h", ".cu", ".py"):
            read |= set(re.findall(r'(?:getenv\(|environ\.get\(|environ\[|getenv\()\s*"(\w+)"', path.read_text()))
    torchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK"}
    assert read - torchrun == set(config.VARIABLES)
    assert all(name.startswith(config.PREFIX) for name in config.VARIABLES)
