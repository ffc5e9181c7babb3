"""Sphinx: pages in Markdown, the API from docstrings, the table of rates from the last benchmark."""

import json
import re
from pathlib import Path
from typing import Any

import mixflow

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def rates(device: str) -> str:
    """The groups of the benchmark that compare with a rival or a limit, as Markdown."""
    document = json.loads((RESULTS / f"{device}.json").read_text())
    machine = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    heading = ["| case | mixflow | against | its rate | ratio |", "| --- | --: | --- | --: | --: |"]
    lines = [f"{machine}; {document['unit']}.", "", *heading]
    for rows in document["groups"].values():
        for row in rows:
            if row.get("ratio") and row.get("contender_rate"):
                cells = f"{row['rate']:.3g} | {row['contender']} | {row['contender_rate']:.3g} | {row['ratio']:.3g}"
                lines.append(f"| {row['case']} | {cells} |")
    return "\n".join(lines)


project = "mixflow"
author = copyright = "the mixflow authors"
version = release = mixflow.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["robust-table.md"]  # a part of your-data.md
myst_enable_extensions = ["amsmath", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {"cpu_rates": rates("cpu"), "cuda_rates": rates("cuda")}
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
html_theme = "furo"
html_title = "mixflow"


def keep_single_letters(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep ``features: D.`` a sentence: reStructuredText takes a letter and a full stop for an item of a list."""
    lines[:] = [re.sub(r"^(\s*\w+: )([A-Z])\.$", r"\1\\\2.", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_single_letters, priority=400)  # before napoleon, at 500
