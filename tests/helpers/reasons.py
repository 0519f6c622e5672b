"""Processes take most of the time of the quick tests, so a test that starts one says why it must.

A pytest plugin: `@pytest.mark.processes("it kills them")`, or the same for a whole file as `pytestmark`.
"""

import multiprocessing.process
import sys
from pathlib import Path

import pytest

HARMLESS = {"git"}  # each run asks it for the commit, which takes milliseconds
started: list[str] = []  # by the test that runs


def note_start(event: str, arguments: tuple) -> None:
    """Of Python's audit hook."""
    if event == "subprocess.Popen":
        command = arguments[1] if isinstance(arguments[1], list | tuple) else [arguments[1]]
        if Path(str(command[0])).name not in HARMLESS:
            started.append(" ".join(map(str, command)))


start = multiprocessing.process.BaseProcess.start


def start_noted(process: multiprocessing.process.BaseProcess) -> None:
    """multiprocessing tells the audit hook of forks alone."""
    started.append(str(process))
    start(process)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "processes(reason): why a quick test must start processes")
    sys.addaudithook(note_start)
    multiprocessing.process.BaseProcess.start = start_noted  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """What fixtures start is theirs: they are shared."""
    started.clear()
    outcome = yield
    mark = item.get_closest_marker("processes")
    if started and not item.get_closest_marker("slow") and not (mark and mark.args):
        pytest.fail(
            f"it starts {started[0][:100]}: say why it must, with @pytest.mark.processes, or call a function"
        )
    return outcome
