"""Passwords and tokens are in no message."""

import logging

import pytest

from config.command_line import run_script
from config.constants import LOGGER
from config.errors import TrainingFailed, UserError, without_secrets
from utils import AboveProgressBar

ADDRESS = "mlflow at https://me:pa/5@5@example.org:80/x says no, hf_t0ken"
MASKED = "mlflow at https://***@example.org:80/x says no, ***"


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_t0ken")
    monkeypatch.setenv("WANDB_API_KEY", "")


def test_they_are_masked():
    assert without_secrets(ADDRESS) == MASKED
    for harmless in ("me@example.org", "a://b and c@d", ""):
        assert without_secrets(harmless) == harmless


@pytest.mark.parametrize("error", [UserError(ADDRESS), TrainingFailed(ADDRESS)])
def test_errors_do_not_tell_them(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_script(fail)
    told = capsys.readouterr().err + str(exit_.value.code)
    assert MASKED in told and "t0ken" not in told and "pa/5" not in told


def test_messages_do_not_tell_them(capsys):
    AboveProgressBar().emit(logging.LogRecord(LOGGER, logging.INFO, "", 0, ADDRESS, (), None))
    assert capsys.readouterr().err.strip() == MASKED
