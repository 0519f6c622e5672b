"""Which run folder a process goes on with that torchrun has started again."""

import json
import os

import pytest

from config.command_line import parse_argv
from config.groups import OptimizationArguments
from config.restarting import LAUNCHERS, interrupted_run, launcher


@pytest.fixture
def restarted(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.chdir(tmp_path)


def begin(folder, by: str | None, age: int = 0) -> str:
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps({LAUNCHERS: by and ["of another machine", by], "arguments": {"lr": 0.5}}))
    os.utime(file, (1e9 - age, 1e9 - age))
    return str(folder)


def test_it_is_that_of_the_same_launcher(restarted, tmp_path):
    runs = tmp_path / "runs"
    begin(runs / "of_another", "none on elsewhere, process 7")
    begin(runs / "of_none", None)
    (runs / "damaged").mkdir()
    (runs / "damaged" / "config.json").write_text("[")
    assert interrupted_run(None) is None and interrupted_run(str(runs / "of_another")) is None
    begin(runs / "earlier", launcher(), age=9)
    begin(runs / "latest", launcher())
    assert interrupted_run(None) == "runs/latest" and interrupted_run("runs/earlier") == "runs/earlier"


def test_it_is_resumed_whatever_the_command_line_says_of_its_beginning(restarted, tmp_path):
    folder = begin(tmp_path / "run", launcher())
    (tmp_path / "mine.json").write_text(json.dumps({"output_dir": folder, "lr": 0.75}))
    for argv in (["--output_dir", folder], ["mine.json"]):
        config = parse_argv(OptimizationArguments, "", [*argv, "--overwrite"])
        assert config.resume == folder and not config.overwrite and config.lr == 0.5
    assert parse_argv(OptimizationArguments, "", ["mine.json", "--lr", "0.25"]).lr == 0.25


def test_without_torchrun_nothing_is_resumed(restarted, tmp_path, monkeypatch):
    begin(tmp_path / "runs" / "run", None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launcher() is None and interrupted_run(None) is None
