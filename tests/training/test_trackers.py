"""Experiment trackers: real trainings, whose numbers are read back from what each library stores offline.

`make test-slow` installs requirements-trackers.txt.
"""

import json
import math
import struct
import sys
from pathlib import Path

import pytest
from helpers.runs import call, evaluations, metrics, parse, run

from config.errors import TrainingFailed, UserError
from utils import start_run

SECRET = "do-not-tell"
NOTIFY = f"json://user:{SECRET}@127.0.0.1:9"  # where nobody listens
IMPORTED = """
import sys, finetuning_train, pretraining_train
print({"wandb", "mlflow", "clearml"} & sys.modules.keys())
"""


@pytest.mark.processes("it looks at what a new process imports")
def test_trackers_are_imported_by_those_who_ask_for_them(run_script, monkeypatch):
    assert run_script("-c", IMPORTED).stdout == "set()\n"
    for name in ("wandb", "mlflow", "clearml"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        with pytest.raises(UserError, match=f"--tracker {name}: pip install -r requirements-trackers.txt"):
            start_run(parse("pretraining_train.py", "--tracker", name))


def tracker_run_id(folder: Path, tracker: str) -> str:
    return json.loads((folder / "tracker.json").read_text())[tracker]


@pytest.fixture
def tracked(pretraining, tmp_path):
    """Train with a tracker, then resume for two more steps; return the run folder, and both run ids."""

    def train(tracker: str) -> tuple[Path, list[str]]:
        options = ["--tracker", tracker, "--eval_every", 2, "--save_every", 2, "--notify", NOTIFY]
        folder = tmp_path / "runs" / "tracked"
        run("pretraining_train.py", *pretraining, *options, "--n_steps", 4, "--output_dir", folder)
        run_ids = [tracker_run_id(folder, tracker)]
        run("pretraining_train.py", "--resume", folder, "--n_steps", 6, "--notify", NOTIFY)
        run_ids.append(tracker_run_id(folder, tracker))
        assert [row["step"] for row in evaluations(folder)] == [2, 4, 6]
        return folder, run_ids

    return train


def assert_same(logged: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value), name


def wandb_records(file):
    """The records of a .wandb file: LevelDB's log format, of protocol buffers, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, message = file.read_bytes(), 7, b""
    while position < len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        message += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(message)
            message = b""


def values_of(items) -> dict:
    return {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}


@pytest.mark.slow
def test_wandb_offline(tracked, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, (run_id, resumed_id) = tracked("wandb")
    assert run_id == resumed_id
    first, second = sorted((folder / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
    rows, summary, config, exit_codes = {}, {}, {}, []
    for record in [*wandb_records(first), *wandb_records(second)]:
        if record.HasField("history"):
            values = values_of(record.history.item)
            rows.setdefault(values["_step"], {}).update(values)
        summary |= values_of(record.summary.update)
        config |= values_of(record.run.config.update)
        if record.HasField("exit"):
            exit_codes.append(record.exit.exit_code)
    for row in evaluations(folder):
        assert_same(rows[row["step"]], {f"validation/{name}": row[name] for name in ("loss", "ppl")})
        assert rows[row["step"]]["training/loss"] > 0
    assert_same(summary, metrics(folder))
    assert config["num_layers"] == 2 and config["notify"] is None and exit_codes == [0, 0]
    assert not any(SECRET.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_mlflow_without_a_server(tracked, tmp_path, pretraining, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder, (run_id, resumed_id) = tracked("mlflow")
    assert run_id == resumed_id
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    stored = client.get_run(run_id)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "runs/tracked"
    assert stored.data.params["num_layers"] == "2" and stored.data.params["notify"] == "None"
    assert_same(stored.data.metrics, metrics(folder))
    for tag, name in (("validation", "loss"), ("validation", "ppl"), ("training", "loss")):
        history = {metric.step: metric.value for metric in client.get_metric_history(run_id, f"{tag}/{name}")}
        assert history.keys() == {2, 4, 6}
        if tag == "validation":
            assert_same(history, {row["step"]: row[name] for row in evaluations(folder)})
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()

    failing = tmp_path / "failing"
    options = [
        "--mlm",
        "--lr",
        1e30,
        "--n_steps",
        4,
        "--eval_every",
        2,
        "--tracker",
        "mlflow",
        "--output_dir",
        failing,
    ]
    with pytest.raises(TrainingFailed, match="training diverged"):
        call("pretraining_train.py", *pretraining, *options)
    assert mlflow.active_run() is None
    assert client.get_run(tracker_run_id(failing, "mlflow")).info.status == "FAILED"


@pytest.mark.slow
def test_clearml_offline(tracked, tmp_path, monkeypatch):
    cache = tmp_path / "clearml"
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(cache))
    folder, (run_id, resumed_id) = tracked("clearml")
    assert run_id == resumed_id
    scalars: dict[str, dict[int, float]] = {}
    for line in (cache / "offline" / run_id / "metrics.jsonl").read_text().splitlines():
        for event in json.loads(line):
            name = f"{event['metric']}/{event['variant']}"
            scalars.setdefault(name, {})[event["iter"]] = event["value"]
    for name in ("loss", "ppl"):
        expected = {row["step"]: row[name] for row in evaluations(folder)}
        assert scalars[f"validation/{name}"] == pytest.approx(expected)
    assert scalars["training/loss"].keys() == {2, 4, 6}
    assert not any(math.isnan(value) for values in scalars.values() for value in values.values())
    assert not any(SECRET.encode() in file.read_bytes() for file in cache.rglob("*") if file.is_file())
