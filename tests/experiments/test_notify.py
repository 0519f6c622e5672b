"""Messages about a run, sent to a server on the loopback device."""

import logging
import os
import signal

import pytest
from helpers.runs import TOKEN, run

from checkpoints.files import read_metrics
from config.command_line import parse_argv
from config.errors import UserError
from config.flags import check_types
from config.groups import RunArguments
from experiments.notify import notified
from finetuning_train import FinetuningConfig, finetune


@pytest.fixture
def flags(finetuning, tmp_path) -> list:
    return [*map(str, finetuning), "--n_steps", "2", "--no-eval_test", "--output_dir", str(tmp_path / "run")]


def start(flags, *notify):
    return finetune(
        parse_argv(
            FinetuningConfig, "", [*flags, *(one for address in notify for one in ("--notify", address))]
        )
    )


@pytest.mark.processes("it reads all that a run prints")
def test_start_and_end_with_metrics_are_told_and_the_address_is_kept_nowhere(inbox, flags, tmp_path):
    address, messages = inbox
    metrics = start(flags, address)
    assert [message["type"] for message in messages] == ["info", "success"]
    assert "started" in messages[0]["title"] and "output_dir: " in messages[0]["message"]
    assert (
        "finished" in messages[1]["title"]
        and f"valid_accuracy: {metrics['valid_accuracy']:.4g}" in messages[1]["message"]
    )
    assert TOKEN not in messages[1]["message"]
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert files and not any(TOKEN.encode() in file.read_bytes() for file in files)

    run("finetuning_train.py", "--resume", tmp_path / "run", "--notify", address)
    assert len(messages) == 4 and "finetuning_train.py finished" in messages[3]["title"], (
        "given again, it tells of the resumed run"
    )


def test_a_failure_is_told_to_all_and_stays_what_it_was(inbox, flags, tmp_path):
    address, messages = inbox
    with pytest.raises(UserError, match="no such file"):
        start([*flags, "--dataset_path", "nowhere"], address, address)
    assert [message["type"] for message in messages] == ["info", "info", "failure", "failure"]
    assert "no such file" in messages[-1]["message"] and not (tmp_path / "run").exists()


def test_a_message_that_fails_is_reported_and_the_run_goes_on(flags, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        start(flags, f"json://127.0.0.1:1/{TOKEN}")
    assert (
        "--notify number 1 (json) could not be told that the run has finished" in caplog.text
        and TOKEN not in caplog.text
    )
    assert read_metrics(tmp_path / "run")["n_steps"] == 2


@pytest.mark.parametrize("address", [f"jsno://host/{TOKEN}", TOKEN])
def test_an_address_that_no_service_has_stops_the_run_before_it_starts(address, inbox, flags, tmp_path):
    with pytest.raises(UserError) as error:
        start(flags, inbox[0], address)
    sentence = str(error.value)
    assert "--notify number 2" in sentence and "\n" not in sentence and TOKEN not in sentence
    assert not (tmp_path / "run").exists() and inbox[1] == []


def test_only_the_main_process_tells_and_a_scheduler_that_ends_the_run_is_a_failure(inbox, monkeypatch):
    address, messages = inbox

    @notified
    def train(config):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit):
        train(RunArguments(notify=[address]))
    assert [message["type"] for message in messages] == ["info", "failure"] and "SystemExit: 143" in messages[
        1
    ]["message"]
    assert signal.getsignal(signal.SIGTERM) == before

    monkeypatch.setenv("RANK", "1")
    assert (
        notified(lambda config: {"loss": 1.0})(RunArguments(notify=[address])) == {"loss": 1.0}
        and len(messages) == 2
    )


def test_a_flag_may_be_repeated_and_is_a_list_in_json():
    assert parse_argv(RunArguments, "", ["--notify", "a://b", "--notify", "c://d"]).notify == [
        "a://b",
        "c://d",
    ]
    assert check_types(RunArguments, {"notify": ["a://b"]}, "preset.json") == {"notify": ["a://b"]}
    for wrong in ("a://b", [1]):
        with pytest.raises(UserError, match=r"notify must be list\[str\] or null"):
            check_types(RunArguments, {"notify": wrong}, "preset.json")
