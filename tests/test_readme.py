"""README.md: its Python lines run, in order, in one session."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def session(tmp_path, monkeypatch):
    """What the lines take for granted: a folder with a table of five columns, and loaders of the same."""
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    np.save("data.npy", rows.numpy())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=50)
    return {"loader": loader, "held_out_loader": loader}


def test_the_python_lines_run(session):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    torch.manual_seed(0)
    for block in blocks:
        exec(compile(block, str(README), "exec"), session)
    assert session["history"].train_log_prob
