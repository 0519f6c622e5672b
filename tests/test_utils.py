"""What all runs share: messages, and where there is no POSIX."""

import io
import json
import logging
import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tqdm import tqdm

from checkpoints.files import EVALUATIONS, METRICS, read_evaluations, read_metrics, write_json
from experiments.restarts import summarize
from utils import AboveProgressBar, Run, reserve_folder


class Screen(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


def test_a_message_stands_on_a_line_of_its_own_above_the_progress_bar(monkeypatch):
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=3, mininterval=0) as bar:
        bar.update()
        AboveProgressBar().emit(logging.makeLogRecord({"msg": "step 1"}))
        bar.update()
    before, line, after = screen.getvalue().partition("step 1\n")
    assert "1/3" in before and before.endswith("\r") and line and "2/3" in after


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_json_has_no_number_for_is_null_and_read_back_as_nan(tmp_path):
    metrics = {"ppl": math.inf, "loss": math.nan, "n": 1, "restarts": [{"ppl": -math.inf}]}
    write_json(tmp_path / METRICS, metrics)
    written = strict((tmp_path / METRICS).read_text())
    assert written == {"ppl": None, "loss": None, "n": 1, "restarts": [{"ppl": None}]}
    found = read_metrics(tmp_path)
    assert math.isnan(found["ppl"]) and math.isnan(found["loss"]) and found["n"] == 1

    run = Run(None, tmp_path, None, None, 0, 1)
    run.log_evaluation(3, {"ppl": math.inf})
    assert strict((tmp_path / EVALUATIONS).read_text()) == {"step": 3, "ppl": None}
    assert [(row["step"], math.isnan(row["ppl"])) for row in read_evaluations(tmp_path)] == [(3, True)]


WITHOUT_RESOURCE = """
import sys
from pathlib import Path
sys.modules["resource"] = None  # as on Windows, an import fails
import torch
from config.groups import RunArguments
from utils import Run, finish_run
run = Run(RunArguments(), Path(sys.argv[1]), torch.device("cpu"), torch.float32, 0, 1)
finish_run(run, {"valid_loss": 1.0})
"""


@pytest.mark.processes("it takes a module away from one")
def test_where_the_system_does_not_tell_the_peak_memory_it_is_left_out(run_script, tmp_path):
    result = run_script("-c", WITHOUT_RESOURCE, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "metrics.json").read_text()).keys() == {"seconds", "valid_loss"}
    rows = {seed: {"seconds": 2.0, "valid_loss": 1.0} for seed in (1, 2)}
    assert summarize(rows)["seconds"] == 4 and "peak_memory_mb" not in summarize(rows)


def test_runs_that_start_at_the_same_time_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(16) as executor:
        folders = list(executor.map(reserve_folder, ["now"] * 16))
    names = {"now"} | {f"now_{number}" for number in range(2, 17)}
    assert (
        {folder.name for folder in folders} == names == {path.name for path in (tmp_path / "runs").iterdir()}
    )
