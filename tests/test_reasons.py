"""A quick test that starts a process says why it must."""

import pytest

TESTS = """
import multiprocessing, subprocess, sys
import pytest

COMMAND = [sys.executable, "-c", ""]

def test_silent():
    subprocess.run(COMMAND)

def test_silent_too():
    multiprocessing.get_context("fork").Process(target=print).start()

@pytest.mark.processes("it must")
def test_with_a_reason():
    subprocess.run(COMMAND)

@pytest.mark.slow
def test_slow():
    subprocess.run(COMMAND)

def test_that_starts_nothing():
    pass

@pytest.fixture(scope="module")
def shared():
    subprocess.run(COMMAND)

def test_whose_fixture_does(shared):
    pass
"""


@pytest.mark.processes("it shows what happens then")
def test_without_a_reason_it_fails(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "helpers.reasons", "-p", "no:randomly")
    result.assert_outcomes(passed=4, failed=2)
    result.stdout.fnmatch_lines(["*it starts *: say why it must, with @pytest.mark.processes*"])
