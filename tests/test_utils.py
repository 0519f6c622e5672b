"""What all runs share: messages."""
import io
import logging
import sys

from tqdm import tqdm

from utils import AboveProgressBar


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
