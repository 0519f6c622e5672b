"""Several processes: started by torchrun, by SLURM, on machines that share no folder, and more or fewer of
them than before.
"""

import json
from pathlib import Path

import pytest
from helpers.processes import run_together
from helpers.runs import (
    NO_DROPOUT,
    ROOT,
    call,
    environment,
    evaluations,
    free_port,
    metrics,
    of_two,
    run,
    run_two,
)

from checkpoints.files import write_json
from config.errors import UserError
from finetuning_train import FinetuningConfig
from training.resuming import check_resumable, rows_per_process
from utils import Run, gpu_index

pytestmark = pytest.mark.processes("it is about several of them")

UNDER_SLURM = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS": "2"}
# A machine with one GPU, as ignite would see it.
ONE_GPU = """
import os, torch
def set_device(device):
    assert int(device) < 1, "invalid device ordinal"
torch.cuda.set_device = set_device
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
torch.cuda.current_device = lambda: 0
"""


@pytest.fixture(scope="module")
def short_run(finetuning) -> list:
    return [*finetuning, *NO_DROPOUT, "--n_steps", 4, "--eval_every", 2]


@pytest.fixture(scope="module")
def alone(short_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    call("finetuning_train.py", *short_run, "--output_dir", folder)
    return folder


def assert_equal_runs(one: Path, other: Path) -> None:
    for first, second in zip(evaluations(one), evaluations(other), strict=True):
        assert first["step"] == second["step"] and first["loss"] == pytest.approx(second["loss"], abs=1e-4)
    assert metrics(one)["test_loss"] == pytest.approx(metrics(other)["test_loss"], abs=1e-4)


@pytest.mark.parametrize("more", [{}, {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}], ids=["salloc", "srun"])
def test_torchrun_counts_under_slurm(more, short_run, alone, tmp_path, monkeypatch):
    variables = {"SLURM_JOB_ID": "7"} | ({"SLURM_STEP_NUM_TASKS": "1"} | UNDER_SLURM | more if more else {})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    run_two("finetuning_train.py", *short_run, "--train_batch_size", 2, "--output_dir", tmp_path / "two")
    assert_equal_runs(alone, tmp_path / "two")


def test_srun_needs_no_torchrun(short_run, alone, tmp_path):
    common = {"SLURM_JOB_ID": str(free_port() - 15_000), "SLURM_STEP_NUM_TASKS": "2"} | UNDER_SLURM
    arguments = [*short_run, "--train_batch_size", 2, "--output_dir", tmp_path / "two"]
    environments = [environment() | common | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    run_together(ROOT / "finetuning_train.py", [arguments] * 2, environments, [tmp_path] * 2)
    assert_equal_runs(alone, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["world_size"] == 2


def start_on_two_machines(*arguments, folders: list[Path]) -> None:
    """Run the fine-tuning script, one process on each machine, in its own folder."""
    environments = [variables | {"LOCAL_RANK": "0"} for variables in of_two()]
    run_together(ROOT / "finetuning_train.py", [[*arguments]] * 2, environments, folders)


@pytest.fixture
def machines(tmp_path) -> list[Path]:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_machines_need_no_common_folder(short_run, alone, machines):
    options = [*short_run, "--train_batch_size", 2, "--save_every", 2]
    start_on_two_machines(*options, "--n_steps", 2, "--output_dir", "run", folders=machines)
    start_on_two_machines("--resume", "run", "--n_steps", 4, folders=machines)
    assert_equal_runs(alone, machines[0] / "run")
    assert [file.name for file in (machines[1] / "run").iterdir()] == ["config.json"]


@pytest.mark.slow
def test_machines_without_a_common_folder_train_several_times(short_run, machines):
    start_on_two_machines(*short_run, "--restarts", 2, "--output_dir", "run", folders=machines)
    finished = metrics(machines[0] / "run")["restarts"]
    start_on_two_machines("--resume", "run", folders=machines)
    assert metrics(machines[0] / "run")["restarts"] == finished


SAME_SECOND = """
import datetime, os, sys
from pathlib import Path
import utils

class Clock(datetime.datetime):
    @classmethod
    def now(cls):
        return cls(2026, 11, 24)

utils.datetime.datetime = Clock
run = utils.start_run(utils.RunArguments(device="cpu"))
if sys.argv[1] == "write":
    Path(f"{os.getpid()}.txt").write_text(str(run.folder))
    utils.open_folder(run)
    utils.finish_run(run, {})
"""


def test_processes_of_a_run_agree_on_a_folder_that_no_other_run_has(tmp_path):
    script = tmp_path / "start.py"
    script.write_text(SAME_SECOND)
    environments = [*of_two(), *of_two(), environment()]
    run_together(script, [["write"]] * 4 + [["fail"]], environments, [tmp_path] * 5)
    chosen = [file.read_text() for file in tmp_path.glob("*.txt")]
    written = {str(folder.relative_to(tmp_path)) for folder in (tmp_path / "runs").iterdir()}
    assert len(written) == 2, "the one that wrote nothing has left nothing"
    assert sorted(chosen.count(folder) for folder in written) == [2, 2]


def test_fewer_processes_go_on_with_the_same_steps(short_run, alone, tmp_path):
    folder, steps = tmp_path / "run", ["--n_steps", 2, "--save_every", 2]
    run_two("finetuning_train.py", *short_run, "--train_batch_size", 2, *steps, "--output_dir", folder)
    resumed = run("finetuning_train.py", "--resume", folder, "--n_steps", 4)
    assert (
        "an optimizer step keeps its 4 rows: one process takes them, at most 2 in one forward pass"
        in resumed.stderr
    )
    assert_equal_runs(alone, folder)


def test_more_processes_go_on_with_the_same_steps(short_run, alone, tmp_path):
    folder = tmp_path / "run"
    call("finetuning_train.py", *short_run, "--n_steps", 2, "--save_every", 2, "--output_dir", folder)
    run_two("finetuning_train.py", "--resume", folder, "--n_steps", 4)
    assert_equal_runs(alone, folder)


def test_what_cannot_go_on_is_said_before_anything_is_written(short_run, alone, task, tmp_path):
    before = (alone / "config.json").read_text()
    (tmp_path / "train.jsonl").write_text(
        (task / "train.jsonl").read_text() + "\n" + (task / "valid.jsonl").read_text()
    )
    (tmp_path / "valid.jsonl").write_text((task / "valid.jsonl").read_text())
    for flags, words in (
        (["--gradient_accumulation_steps", 2], "--gradient_accumulation_steps 2: an optimizer step"),
        (["--dataset_path", tmp_path], "an epoch had 30 optimizer steps and would now have 41"),
    ):
        with pytest.raises(UserError, match=words):
            call("finetuning_train.py", "--resume", alone, *flags)
    three = Run(
        FinetuningConfig(resume=str(alone), train_batch_size=4), alone, "cpu", "float32", 0, world_size=3
    )
    with pytest.raises(UserError, match="4 rows, which 3 processes cannot share evenly"):
        rows_per_process(three.config, three)
    assert (alone / "config.json").read_text() == before


def test_a_run_of_an_older_version_goes_on_as_it_was(tmp_path):
    write_json(
        tmp_path / "config.json",
        {"world_size": 4, "arguments": {"train_batch_size": 8, "gradient_accumulation_steps": 2}},
    )
    fewer = Run(
        FinetuningConfig(resume=str(tmp_path), train_batch_size=8, gradient_accumulation_steps=2),
        tmp_path,
        "cpu",
        "float32",
        0,
        world_size=2,
    )
    assert rows_per_process(fewer.config, fewer) == 32
    check_resumable(fewer.config, fewer, 17)


def test_a_resumed_run_may_compute_its_steps_in_smaller_parts(alone):
    smaller = Run(FinetuningConfig(resume=str(alone), train_batch_size=1), alone, "cpu", "float32", 0, 1)
    assert rows_per_process(smaller.config, smaller) == 4


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert gpu_index(1, 2) == 1
    with pytest.raises(UserError, match="process 3 of this machine has no GPU, there are 2"):
        gpu_index(2, 2)
    monkeypatch.delenv("LOCAL_RANK")
    assert gpu_index(3, 1) == 0, "srun shows each process its own alone"


def test_more_processes_than_gpus_may_use_the_cpu(short_run, alone, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(ONE_GPU)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = ["--train_batch_size", 2, "--device", "cpu", "--output_dir", tmp_path / "two"]
    run_two("finetuning_train.py", *short_run, *options)
    assert_equal_runs(alone, tmp_path / "two")
