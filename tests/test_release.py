"""The files of a release agree with one another."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import mixflow

ROOT = Path(__file__).parents[1]


def value_of(file, pattern):
    (found,) = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
    return found


def test_the_version_has_one_source():
    version = value_of("pyproject.toml", r'^version = "(.*)"$')
    assert mixflow.__version__ == importlib.metadata.version("mixflow") == version
    assert value_of("CITATION.cff", r"^version: (.*)$") == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_supported_versions_are_those_of_the_package():
    text = (ROOT / "docs" / "installing.md").read_text().partition("## Supported versions")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| (\w+) \| (.+?) \|", text, re.MULTILINE))
    least = value_of("pyproject.toml", r'^requires-python = ">=(.*)"$')
    assert table["Python"].startswith(f"{least} to ")
    built = re.findall(r"cp3(\d+)-\*", value_of("pyproject.toml", r'^build = "(.*)"$'))
    assert table["Python"] == f"3.{built[0]} to 3.{built[-1]}"
    for package in ("torch", "numpy"):
        assert table[package.replace("torch", "PyTorch").replace("numpy", "NumPy")] == (
            value_of("pyproject.toml", rf'^dependencies = .*"{package}>=([\d.]+)"') + " or newer"
        )


def test_presets_and_options_of_cmake_exist():
    presets = json.loads((ROOT / "CMakePresets.json").read_text())
    options = set(re.findall(r"(?:option|set)\((MIXFLOW_\w+)", (ROOT / "CMakeLists.txt").read_text()))
    for preset in presets["configurePresets"]:
        used = {name for name in preset["cacheVariables"] if name.startswith("MIXFLOW_")}
        assert used <= options
    assert {preset["name"] for preset in presets["buildPresets"]} == {"address", "thread"}


def test_the_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "mixflow", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mixflow {mixflow.__version__}\n"
