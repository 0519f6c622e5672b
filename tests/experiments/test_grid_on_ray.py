"""A grid on Ray whose workers or driver are killed ends like one that trains in one process."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.crashes import assert_same_runs
from helpers.grids import SCRIPT, command, start
from helpers.runs import spawn


@pytest.fixture(scope="module")
def long_grid(tasks, common, tmp_path_factory) -> tuple[dict, list, Path]:
    """A map, its flags, and the folder of its grid: trainings that are long enough to be killed."""
    content = {"from": [str(tasks / "one")], "to": [str(tasks / "three"), str(tasks / "two")]}
    flags = [*common, "--n_steps", "400", "--eval_every", "100", "--save_every", "10", "--restarts", "1"]
    folder = tmp_path_factory.mktemp("long") / "grid"
    start(content, folder, *flags)
    return content, flags, folder


def workers_of_ray(folder: Path) -> list[int]:
    """The processes that train in a grid: Ray calls them ray::<name of the job>, and each has its log."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_worker = (process / "cmdline").read_bytes().startswith(b"ray::")
            if is_worker and str(folder) in os.readlink(process / "fd" / "1"):
                found.append(int(process.name))
    return found


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("cells/*/*/42/checkpoints/*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)  # a poll: the checkpoint is written by a worker


@pytest.mark.slow
def test_killed_workers_cost_a_grid_on_ray_nothing(long_grid, tmp_path):
    content, flags, alone = long_grid
    folder = tmp_path / "grid"
    process = spawn(SCRIPT, *command(content, folder, *flags, "--workers", 2))
    wait_for_checkpoint(folder, process)
    killed = workers_of_ray(folder)
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and killed, errors
    assert "5 of 5 trainings finished" in errors
    logs = [file.read_text() for file in folder.glob("logs/**/*.log")]
    assert any("resuming after step" in log for log in logs)
    assert_same_runs(alone, folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_of_ray_takes_its_workers_along_and_goes_on(how, long_grid, tmp_path):
    content, flags, alone = long_grid
    folder = tmp_path / "grid"
    arguments = command(content, folder, *flags, "--workers", 2)
    process = spawn(SCRIPT, *arguments)
    wait_for_checkpoint(folder, process)
    workers = workers_of_ray(folder)
    process.send_signal(how)
    process.wait(timeout=60)
    process.stderr.close()
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("**/metrics.json")}
    again = spawn(SCRIPT, *arguments)  # while the last workers may still be there
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "resuming after step" in "".join(file.read_text() for file in folder.glob("logs/**/*.log"))
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    assert workers and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert_same_runs(alone, folder)
