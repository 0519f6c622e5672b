"""Workers that die, hang or are told to stop, of two that train together under torchrun.

They are processes because that is what dies.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.crashes import assert_same
from helpers.runs import ROOT, environment, free_port, launch, run

from checkpoints.files import CHECKPOINTS, checkpoints_in

pytestmark = pytest.mark.processes("it kills them, or tells them to stop")

STEPS = ["--n_steps", 60, "--save_every", 10, "--eval_every", 25, "--log_every", 4, "--train_batch_size", 2]
SCRIPT = "pretraining_train.py"


@pytest.fixture
def start(pretraining, tmp_path):
    """A function that starts a training in a new folder, and ends what is left of it after the test."""
    agents = []

    def start(folder: Path, *arguments, launcher: Sequence = (), steps: Sequence = STEPS) -> subprocess.Popen:
        folder.mkdir()
        words = [*launcher, ROOT / SCRIPT, *pretraining, *steps, "--output_dir", "run", *arguments]
        with open(folder / "log", "w") as log:
            command = [sys.executable, *map(str, words)]
            agents.append(subprocess.Popen(command, stderr=log, stdout=log, cwd=folder, env=environment()))
        return agents[-1]

    yield start
    for agent in agents:
        for worker in workers_of(agent):
            os.kill(worker, signal.SIGKILL)
        agent.kill()
        agent.wait()


def workers_of(agent: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    children = (
        Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text() if agent.poll() is None else ""
    )
    ranks = {}
    for pid in map(int, children.split()):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"RANK="):
                ranks[int(variable[5:])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for_checkpoint(folder: Path, agent: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints_in(folder / "run" / CHECKPOINTS):
        assert agent.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.01)  # a poll: the file appears in another process


@pytest.fixture(scope="module")
def undisturbed(pretraining, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(SCRIPT, *pretraining, *STEPS, "--output_dir", folder, launcher=launch("torch.distributed.run"))
    return folder


def test_torchrun_goes_on_after_the_death_of_a_worker(start, undisturbed, tmp_path):
    """Also with --overwrite, which is in its command the second time, too."""
    launcher = [*launch("torch.distributed.run"), "--max-restarts", 2]
    agent = start(tmp_path / "two", "--overwrite", launcher=launcher)
    wait_for_checkpoint(tmp_path / "two", agent)
    os.kill(workers_of(agent)[1], signal.SIGKILL)
    assert agent.wait(120) == 0 and "resuming after step" in (tmp_path / "two" / "log").read_text()
    assert_same(undisturbed, tmp_path / "two" / "run")


def test_all_workers_stop_where_one_is_told_to(start, undisturbed, tmp_path):
    agent = start(tmp_path / "two", "--n_steps", 10**6, launcher=launch("torch.distributed.run"))
    wait_for_checkpoint(tmp_path / "two", agent)
    os.kill(workers_of(agent)[1], signal.SIGUSR1)
    assert agent.wait(120) != 0
    log = (tmp_path / "two" / "log").read_text()
    file = checkpoints_in(tmp_path / "two" / "run" / CHECKPOINTS)[0]
    assert f"stopped by SIGUSR1 after step {file.stem.split('_')[1]}: run/checkpoints/{file.name}" in log
    assert "exitcode  : 138" in log, log  # torchrun may end the other one, which has nothing left to do
    assert torch.load(file, weights_only=True)["trainer"]["iteration"] == int(file.stem.split("_")[1])


@pytest.mark.slow
def test_a_worker_that_hangs_is_told(start, tmp_path):
    launcher = launch("torch.distributed.run")
    agent = start(tmp_path / "two", "--n_steps", 10**6, "--timeout", 5, launcher=launcher)
    wait_for_checkpoint(tmp_path / "two", agent)
    hanging = workers_of(agent)[1]
    os.kill(hanging, signal.SIGSTOP)
    stopped = time.monotonic()
    while "did not answer for 5 s (--timeout)" not in (tmp_path / "two" / "log").read_text():
        assert time.monotonic() < stopped + 30
        time.sleep(0.1)  # a poll
    os.kill(hanging, signal.SIGKILL)  # torchrun would wait for it for 30 s
    assert agent.wait(60) != 0


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_two_nodes_go_on_after_the_death_of_a_worker(rank, start, undisturbed, tmp_path):
    """Each has a folder of its own; only that of the main process has checkpoints."""
    elastic = ["--nnodes", 2, "--nproc_per_node", 1, "--max-restarts", 2, "--rdzv_backend", "c10d"]
    launcher = ["-m", "torch.distributed.run", *elastic, "--rdzv_endpoint", f"127.0.0.1:{free_port()}"]
    folders = [tmp_path / "one", tmp_path / "other"]
    agents = [start(folder, launcher=launcher) for folder in folders]
    deadline = time.monotonic() + 120
    while not (main := [folder for folder in folders if checkpoints_in(folder / "run" / CHECKPOINTS)]):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a poll
    victim = agents[folders.index(main[0])] if rank == 0 else agents[1 - folders.index(main[0])]
    os.kill(workers_of(victim)[0], signal.SIGKILL)
    assert [agent.wait(120) for agent in agents] == [0, 0]
    assert "resuming after step" in (main[0] / "log").read_text()
    assert_same(undisturbed, main[0] / "run")
