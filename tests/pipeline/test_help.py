"""--help: tells what the stage is for and what it takes, at once, without loading what only the work needs."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo

from tests.conftest import ROOT

STAGES = ("base_model", "format", "split", "tokenize_and_collate", "finetune", "generate", "judge")
SCRIPTS = (*STAGES, "experiment")
HEAVY = ("torch", "transformers", "mlflow")


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def plain(text: str) -> str:
    """Words alone: what a terminal's width does to a text does not count."""
    return " ".join(text.split())


def options(command: Callable[..., None]) -> Iterator[tuple[str, str, object]]:
    """Flag, help and default of every option."""
    for name, hint in get_type_hints(command, include_extras=True).items():
        if get_origin(hint) is Annotated:
            (option,) = (given for given in get_args(hint) if isinstance(given, OptionInfo | ArgumentInfo))
            assert option.help, f"{name} has no help"
            if isinstance(option, OptionInfo):
                default = inspect.signature(command).parameters[name].default
                yield f"--{name.replace('_', '-')}", option.help, default


def check_help(arguments: list[str], about: str | None, command: Callable[..., None], folder: Path) -> None:
    done = run(["-m", *arguments, "--help"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert about
    shown = plain(done.stdout)
    assert plain(about) in shown
    for flag, help_text, default in options(command):
        assert flag in shown
        described = re.escape(plain(help_text))
        if default is not None and not isinstance(default, bool):
            described += rf" \[default: {re.escape(str(default))}(; [^\]]*)?\]"  # a range may stand behind it
        assert re.search(rf"{flag} .*?{described}", shown), (flag, described)


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_docstring_and_options(stage: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"stages.{stage}")
    check_help([f"stages.{stage}"], module.__doc__, module.main, tmp_path)


@pytest.mark.parametrize(
    ("script", "command"),
    [
        ("experiment", "summary"),
        ("experiment", "compare"),
        ("experiment", "arena"),
        ("experiment", "sync"),
        ("experiment", "sweep"),
        ("experiment", "report"),
        ("experiment", "trace"),
        ("judge", "calibrate"),
        ("judge", "import-reviews"),
        ("generate", "chat"),
        ("finetune", "onset"),
    ],
)
def test_help_of_subcommands(script: str, command: str, tmp_path: Path) -> None:
    function = getattr(importlib.import_module(f"stages.{script}"), command.replace("-", "_"))
    check_help([f"stages.{script}", command], function.__doc__, function, tmp_path)


def test_help_of_experiment_lists_its_commands(tmp_path: Path) -> None:
    from stages import experiment

    done = run(["-m", "stages.experiment", "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert plain(experiment.__doc__ or "-") in plain(done.stdout)
    assert all(
        command in done.stdout for command in ("summary", "compare", "arena", "sweep", "sync", "report", "trace")
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_importing_a_script_loads_nothing_heavy(script: str, tmp_path: Path) -> None:
    code = f"import sys, stages.{script}; print('stages.{script}' in sys.modules, {HEAVY} & sys.modules.keys())"
    done = run(["-c", code.replace(str(HEAVY), f"set({HEAVY})")], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True set()\n", "")
