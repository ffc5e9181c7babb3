"""Sphinx: pages in Markdown, the API from docstrings, the table of rates from the last benchmark."""

import json
from pathlib import Path

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
myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3
myst_substitutions = {"cpu_rates": rates("cpu"), "cuda_rates": rates("cuda")}
suppress_warnings = ["myst.header"]  # a page that includes a section of the README starts below its title
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
html_theme = "furo"
html_title = "mixflow"
