"""Weights that have changed since they were written are told; folders belong to one process at a time."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import safetensors.torch
import torch
from helpers.runs import call, parse

import pretraining_train
from checkpoints.atomic import LOCK, is_unused
from checkpoints.files import METRICS, WEIGHTS, load_weights, save_weights
from config.errors import UserError
from pretraining_train import pretrain

TENSORS = {
    "matrix": torch.arange(6.0).view(2, 3).T,  # which is not contiguous
    "half": torch.ones(3, dtype=torch.bfloat16),
    "number": torch.tensor(1.5),
    "nothing": torch.empty(0, 3),
    "mask": torch.tensor([True, False]),
}


def test_weights_come_back_as_they_were(tmp_path):
    save_weights(tmp_path / WEIGHTS, TENSORS)
    read = load_weights(tmp_path / WEIGHTS)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_the_same_weights_are_the_same_bytes(tmp_path):
    for name in "abcdefgh":
        save_weights(tmp_path / name, TENSORS)
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


def test_a_flipped_bit_of_any_byte_is_told(tmp_path):
    file = tmp_path / WEIGHTS
    save_weights(file, TENSORS)
    content = file.read_bytes()
    for place in range(8, len(content)):  # the first eight bytes are the size of the header
        flipped = bytearray(content)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        try:
            read = load_weights(file)
        except UserError as error:
            assert str(file) in str(error)
        else:  # padding, or the name of the checksum
            assert read.keys() == TENSORS.keys()
            assert all(torch.equal(read[name], TENSORS[name]) for name in read), place


def test_weights_of_others_need_no_checksum(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(tensors, tmp_path / WEIGHTS)
    assert load_weights(tmp_path / WEIGHTS).keys() == TENSORS.keys()


HOLD = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.processes("locks are between processes")
def test_a_run_folder_belongs_to_one_process_and_a_killed_one_lets_go_of_it(pretraining, tmp_path):
    folder = tmp_path / "run"
    flags = [*pretraining, "--n_steps", 2]
    call("pretraining_train.py", *flags, "--output_dir", folder)
    written = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for how in (["--resume", folder, "--n_steps", 4], [*flags, "--output_dir", folder, "--overwrite"]):
            with pytest.raises(UserError, match=f"another process works in {folder}; wait until it ends"):
                pretrain(parse("pretraining_train.py", *how))
        assert written == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        other.send_signal(signal.SIGKILL)
    call("pretraining_train.py", "--resume", folder, "--n_steps", 4)
    call("pretraining_train.py", *flags, "--output_dir", folder, "--overwrite")
    assert (folder / METRICS).is_file()


def test_a_process_may_start_a_run_again_that_failed_and_others_may_when_it_is_done(
    pretraining, tmp_path, monkeypatch
):
    config = parse("pretraining_train.py", *pretraining, "--n_steps", 1, "--output_dir", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_train, "fit", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError) as failed:  # which keeps the run, as a notebook does
            pretrain(config)
    assert is_locked(tmp_path / "run")
    pretrain(dataclasses.replace(config, overwrite=True))
    assert not is_locked(tmp_path / "run")
    del failed


def is_locked(folder: Path) -> bool:
    """For other processes, as the system counts them: one that opens the file of the lock again."""
    try:
        filelock.FileLock(folder / LOCK, blocking=False).acquire().lock.release()
    except filelock.Timeout:
        return True
    return False


def test_a_lock_alone_is_no_use_of_a_folder(tmp_path):
    (tmp_path / LOCK).touch()
    assert is_unused(tmp_path)
