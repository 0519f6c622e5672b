"""What all runs share: messages."""
import io
import json
import logging
import math
import sys

from tqdm import tqdm

from utils import EVALUATIONS, METRICS, AboveProgressBar, Run, read_evaluations, read_metrics, write_json


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
