"""What ``mixflow`` says about itself: help, versions, completion for shells; and how quickly it starts."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mixflow
from commands import command, run
from mixflow.cli.parser import build_parser

COMMANDS = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices


def test_info_and_version(tmp_path):
    result = run("info", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert mixflow.__version__ in result.stdout
    assert run("--version", cwd=tmp_path).stdout == f"mixflow {mixflow.__version__}\n"


def test_help_lists_the_commands(capsys):
    assert command("--help") == 0
    said = capsys.readouterr().out
    assert re.findall(r"^    (\w+) +\S.*$", said, re.MULTILINE) == list(COMMANDS)
    assert len(said.splitlines()) < 30


NO_DEFAULT = {"checkpoint", "context", "init", "only", "out"}  # options without which nothing of the kind is done


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_described_and_every_command_has_an_example(name, capsys):
    assert command(f"{name} --help") == 0
    said = capsys.readouterr().out
    for action in COMMANDS[name]._actions:
        assert action.help, action.dest
        assert not action.help.endswith("."), action.dest
        if action.required:
            assert (action.metavar or "-n") in COMMANDS[name].usage
        elif (
            name != "bench" and action.option_strings and action.nargs != 0 and action.dest not in ("checkpoint", "out")
        ):
            assert re.search(r"default[: ]", action.help) or action.dest in ("init", "context"), action.dest
    example = re.search(r"^example:\n  (mixflow .+)$", said, re.MULTILINE)[1]
    parsed = build_parser().parse_args(example.split()[1:])
    assert parsed.command == name
    assert "exit status:" in said
    assert "==SUPPRESS==" not in said


def test_options_are_in_groups():
    for name in ("fit", "sample", "score", "plot", "transport"):
        groups = [group.title for group in COMMANDS[name]._action_groups if group._group_actions]
        assert groups[0] == "options"
        assert {"data", "output"} <= set(groups)
    assert {"flow", "training"} <= {group.title for group in COMMANDS["fit"]._action_groups}
    assert [action.dest for action in COMMANDS["fit"]._optionals._group_actions] == ["help"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert command(f"--print-completion {shell}") == 0
    said = capsys.readouterr()
    assert said.err == ""
    for word in ("transport", "--resolution", "gaussian_mixture", "--no-header"):
        assert word.lstrip("-" * (shell == "tcsh")) in said.out


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
def test_bash_completes_a_command_line(tmp_path, capsys):
    pytest.importorskip("shtab")
    assert command("--print-completion bash") == 0
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    (tmp_path / "weather.csv").touch()
    words = {"mixflow tra": "transport", "mixflow fit --re": "--resolution", "mixflow fit wea": "weather.csv"}
    for line, expected in words.items():
        typed = line.split()
        script = f"""
            source completion
            COMP_WORDS=({line}); COMP_CWORD={len(typed) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}
            $(complete -p mixflow | sed 's/.*-F \\([^ ]*\\).*/\\1/') mixflow {typed[-1]} {typed[-2]}
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert expected in done.stdout.split(), (line, done)


def test_completion_without_shtab_is_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert command("--print-completion bash") == 2
    message = "--print-completion needs shtab: pip install mixflow[completion]"
    assert capsys.readouterr() == ("", f"mixflow: error: {message}\n")


HEAVY = {"matplotlib", "mixflow.bench.cases", "mixflow.plot", "pyarrow", "scipy", "shtab", "sklearn", "torch._dynamo"}


def test_nothing_heavy_is_imported_at_the_start():
    code = "import sys, mixflow.cli; mixflow.cli.main(['info']); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(said.split())
    assert {"mixflow.cli.parser", "torch"} <= loaded
    assert not loaded & HEAVY
