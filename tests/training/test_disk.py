"""A disk that is full: what there was stays whole, the sentence says what is missing, and the run goes on."""

import re

import pytest
import torch
from helpers.runs import scalars
from helpers.tower import train

from checkpoints.atomic import atomic_write, sync
from checkpoints.files import (
    CHECKPOINTS,
    WEIGHTS,
    checkpoints_in,
    file_digest,
    load_weights,
    read_evaluations,
    save_weights,
    write_json,
)
from config.errors import TrainingFailed
from config.groups import OptimizationArguments

FLAGS = OptimizationArguments(lr=0.02, log_every=2)
OPTIONS = {"n_steps": 20, "save_every": 4, "eval_every": 5}


@pytest.mark.parametrize(
    ("when", "left", "culprit"),
    [(8, 4096, f"{CHECKPOINTS}/checkpoint_8.pt"), (10, 0, WEIGHTS)],
)
def test_a_run_says_what_it_cannot_write_and_goes_on(when, left, culprit, small_disk, tmp_path):
    disk, fill = small_disk
    run = disk / "run"
    before = {}

    def fill_disk(step, points):
        if step == when:
            fill(left)
            files = [run / WEIGHTS, *checkpoints_in(run / CHECKPOINTS)]
            before.update({file: file_digest(file) for file in files})

    with pytest.raises(TrainingFailed) as error:
        train(run, FLAGS, change=fill_disk, **OPTIONS)
    sentence = str(error.value)
    assert sentence.startswith(f"{run / culprit} cannot be written: No space left on device")
    needed, free = map(float, re.search(r"at least (\S+) MB, and (\S+) MB are free", sentence).groups())
    assert needed >= free
    kept = {file: digest for file, digest in before.items() if file.exists()}
    assert kept and all(file_digest(file) == digest for file, digest in kept.items())
    assert len(kept) >= len(before) - 1, "only the older of two checkpoints may go before the next is written"
    assert not list(run.rglob(".*")) and load_weights(run / WEIGHTS)

    (disk / "filler").unlink()
    resumed, *_ = train(run, FLAGS, is_resumed=True, **OPTIONS)
    whole, *_ = train(tmp_path / "whole", FLAGS, **OPTIONS)
    assert all(map(torch.equal, resumed.parameters(), whole.parameters()))
    assert read_evaluations(run) == read_evaluations(tmp_path / "whole")
    assert scalars(run) == scalars(tmp_path / "whole")


def test_weights_that_do_not_fit_leave_the_old_ones(small_disk):
    disk, fill = small_disk
    save_weights(disk / WEIGHTS, {"weight": torch.ones(3)})
    fill(4096)
    sentence = (
        r"model.safetensors cannot be written: No space .*; it takes at least 0.4 MB, and 0.0 MB are free"
    )
    with pytest.raises(TrainingFailed, match=sentence):
        save_weights(disk / WEIGHTS, {"weight": torch.zeros(100_000)})
    assert load_weights(disk / WEIGHTS)["weight"].sum() == 3
    assert {file.name for file in disk.iterdir()} == {WEIGHTS, "filler"}


def test_json_that_does_not_fit_leaves_the_old_one(small_disk):
    disk, fill = small_disk
    write_json(disk / "metrics.json", {"loss": 1.0})
    fill(4096)
    with pytest.raises(TrainingFailed, match="metrics.json cannot be written: No space left on device"):
        write_json(disk / "metrics.json", {"loss": [0.5] * 10_000})
    assert (disk / "metrics.json").read_text() == '{\n  "loss": 1.0\n}\n'


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("checkpoints.atomic.sync", lambda path: calls.append(("sync", path)) or sync(path))
    monkeypatch.setattr(
        "checkpoints.atomic.os.replace", lambda old, new: calls.append(("rename", new)) or old.rename(new)
    )
    with atomic_write(tmp_path / "file") as tmp_file:
        tmp_file.write_text("whole")
    assert calls == [("sync", tmp_file), ("rename", tmp_path / "file"), ("sync", tmp_path)]


def test_errors_of_the_writer_itself_stay_what_they_are(tmp_path):
    with pytest.raises(ConnectionError), atomic_write(tmp_path / "file"):
        raise ConnectionError("reset by peer")
    assert not list(tmp_path.iterdir())
