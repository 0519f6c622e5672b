"""A graph of trainings: what is done, resumed and left out, in this process and on Ray."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.counting import CountingConfig, count
from helpers.runs import ROOT

from checkpoints.files import write_json
from config.errors import TrainingFailed, UserError
from config.groups import EngineArguments
from experiments.engines import (
    TRAININGS_PER_WORKER,
    InOrder,
    check_reachable,
    importable_name,
    open_engine,
    share,
)
from experiments.graph import Graph, Job


def job(name: str, *needs: str, fails: str = "") -> Job:
    return Job(name, count, CountingConfig(fails=fails), needs)


def starts(folder: Path) -> list[str]:
    """For each time that a counting began: did it go on?"""
    return (folder / "starts").read_text().split()


# --------------------------------------------------------------------------------------------------- in order


def test_jobs_wait_for_what_they_need_and_fail_with_it(tmp_path):
    bad, wrong = job("bad", fails="AssertionError"), job("wrong", fails="UserError")
    jobs = [job("c", "a/1", "b"), job("a/1"), job("b"), bad, job("d", "bad", "b"), job("e", "d"), wrong]
    ended = []
    outcome = Graph(tmp_path, jobs).run(
        InOrder(), lambda job, outcome: ended.append((job.name, len(outcome.metrics)))
    )
    assert ended == [("a/1", 1), ("b", 2), ("c", 3)] and outcome.metrics["c"]["n"] == 42
    assert outcome.failures == {
        "bad": "AssertionError: it cannot count",
        "wrong": "the input is wrong",
        "d": "it needs bad, which failed",
        "e": "it needs d, which failed",
    }
    assert not (tmp_path / "d").exists() and not (tmp_path / "e").exists()


def test_what_is_finished_is_kept_and_what_was_begun_goes_on(tmp_path):
    for name in ("finished", "begun", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    write_json(tmp_path / "finished" / "metrics.json", {"n": 7})
    write_json(tmp_path / "begun" / "config.json", {})
    ended = []
    jobs = [job("finished"), job("begun"), job("empty"), job("after", "finished")]
    outcome = Graph(tmp_path, jobs).run(InOrder(), lambda job, outcome: ended.append(job.name))
    assert outcome.metrics["finished"] == {"n": 7} and not (tmp_path / "finished" / "starts").exists()
    assert ended == ["begun", "empty", "after"]
    assert starts(tmp_path / "begun") == ["True"] and starts(tmp_path / "empty") == ["False"]
    assert (tmp_path / "begun" / "model.safetensors").exists()
    assert not (tmp_path / "empty" / "model.safetensors").exists(), "killed before it wrote its config"


def test_finished_trainings_may_leave_no_checkpoints(tmp_path):
    """Also one whose process was killed before it had removed them."""
    (tmp_path / "finished" / "checkpoints").mkdir(parents=True)
    write_json(tmp_path / "finished" / "metrics.json", {"n": 7})
    Graph(tmp_path, [job("finished")], keeps_checkpoints=False).run(InOrder())
    assert [file.name for file in (tmp_path / "finished").iterdir()] == ["metrics.json"]


def test_what_others_have_made_in_a_folder_is_never_removed(tmp_path):
    others = tmp_path / "runs" / "mine" / "model.safetensors"
    others.parent.mkdir(parents=True)
    others.touch()
    Graph(tmp_path, [job("runs")]).run(InOrder(), keep_going=False)
    assert others.exists()


def test_the_first_failure_may_end_it(tmp_path):
    jobs = [job("wrong", fails="UserError"), job("after")]
    with pytest.raises(UserError, match="the input is wrong"):
        Graph(tmp_path, jobs).run(InOrder(), keep_going=False)
    assert not (tmp_path / "after").exists()


def test_a_broken_gpu_ends_the_process(tmp_path, monkeypatch):
    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    outcome = Graph(tmp_path, [job("a", fails="AssertionError"), job("b")]).run(InOrder())
    assert outcome.failures.keys() == {"a"}, "an error that is none of the GPU's"

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(TrainingFailed, match="a failed and left the GPU unusable for this process"):
        Graph(tmp_path, [job("a", fails="AssertionError"), job("c")]).run(InOrder())
    assert not (tmp_path / "c").exists()


# ----------------------------------------------------------------------------------------------------- on Ray


@pytest.mark.processes("it is about Ray's processes")
def test_ray_does_the_same_in_processes_that_may_be_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.chdir(tmp_path)
    jobs = [job("a/1"), job("killed", "a/1", fails="SIGKILL"), job("wrong", fails="UserError")]
    jobs += [job("after", "wrong"), job("finished")]
    (tmp_path / "graph" / "finished").mkdir(parents=True)
    write_json(tmp_path / "graph" / "finished" / "metrics.json", {"n": 7})
    ended = []
    with open_engine(EngineArguments(workers=2, max_retries=1)) as engine:
        outcome = Graph(Path("graph"), jobs).run(engine, lambda job, outcome: ended.append(job.name))
    graph, logs = tmp_path / "graph", tmp_path / "graph" / "logs"
    assert ended == ["a/1", "killed"]
    assert starts(graph / "killed") == ["False", "True"]
    wrong, after = "the input is wrong (graph/logs/wrong.log)", "it needs wrong, which failed"
    assert outcome.failures == {"wrong": wrong, "after": after}
    assert (logs / "a/1.log").read_text() == "counting\ncounted\n"
    assert (logs / "killed.log").read_text() == "counting\n" * 2 + "counted\n"

    first, second = outcome.metrics["a/1"], outcome.metrics["killed"]
    assert os.getpid() not in (first["pid"], second["pid"])
    assert first["cwd"] == str(tmp_path) and first["threads"] == int(os.environ["OMP_NUM_THREADS"])


@pytest.mark.slow
def test_ray_takes_a_graph_of_many_jobs(tmp_path, monkeypatch):
    """JOBS=2000 makes so many."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.chdir(tmp_path)
    n_jobs = int(os.environ.get("JOBS", 100))
    needs = [[f"source/{n // 20}"] if n % 20 else [] for n in range(n_jobs)]
    jobs = [job(f"cell/{n}" if n % 20 else f"source/{n // 20}", *needs[n]) for n in range(n_jobs)]
    with open_engine(EngineArguments(workers=os.cpu_count())) as engine:
        outcome = Graph(Path("graph"), jobs).run(engine)
    assert not outcome.failures and len(outcome.metrics) == n_jobs
    assert all(starts(Path("graph", job.name)) == ["False"] for job in jobs)
    n_processes = len({metrics["pid"] for metrics in outcome.metrics.values()})
    assert n_jobs / TRAININGS_PER_WORKER <= n_processes <= n_jobs / 5, "a process takes many, and not all"


DRIVE = """
import json, sys
from pathlib import Path
from config.errors import UserError
from config.groups import EngineArguments
from experiments.engines import open_engine
from experiments.graph import Graph, Job
from helpers.counting import CountingConfig, count

jobs = [Job("a", count, CountingConfig()), Job("doomed", count, CountingConfig(fails="SIGKILL always"))]
address = sys.argv[1]
with open_engine(EngineArguments(ray_address=address, gpus_per_training=0.5, max_retries=1)) as engine:
    outcome = Graph(Path("graph"), jobs).run(engine)
try:
    with open_engine(EngineArguments(ray_address=address, gpus_per_training=2)):
        refusal = None
except UserError as error:
    refusal = str(error)
print(json.dumps([outcome.metrics, outcome.failures, refusal]))
"""


@pytest.mark.slow
def test_a_cluster_takes_trainings_and_one_that_always_dies_fails(tmp_path, run_script):
    """A cluster that `ray start` began in another folder, with a GPU that its machine may not have."""
    address = f"127.0.0.1:{random.SystemRandom().randrange(20_000, 32_000)}"
    options = ["--port", address.rpartition(":")[2], "--num-cpus", "4", "--num-gpus", "1", "--block"]
    options += ["--include-dashboard", "false", "--disable-usage-stats"]
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options],
        cwd=tmp_path,
        env=os.environ | secret,
        start_new_session=True,
    )
    try:
        wait_until_open(address)
        (tmp_path / "here").mkdir()
        environment = secret | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        driver = run_script("-c", DRIVE, address, env=environment, cwd=tmp_path / "here")
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    assert driver.returncode == 0, driver.stderr
    metrics, failures, refusal = json.loads(driver.stdout.splitlines()[-1])
    assert metrics.keys() == {"a"} and metrics["a"]["cwd"] == str(tmp_path / "here")
    assert list(failures) == ["doomed"] and "its process ended 2 times" in failures["doomed"]
    assert starts(tmp_path / "here/graph/doomed") == ["False", "True"]
    assert "no machine of the cluster has more than 1" in refusal


def wait_until_open(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return check_reachable(address)
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.2)  # a poll: Ray says nowhere that its head listens


def test_cores_and_gpus_are_shared_out():
    def shares(nodes, **flags):
        return share(nodes, EngineArguments(**flags))

    laptop, server = {"CPU": 8.0}, {"CPU": 64.0, "GPU": 8.0}
    assert shares([laptop], workers=3) == (2, 0, 3)
    assert shares([laptop], workers=16) == (0.5, 0, 16)
    assert shares([laptop, laptop]) == (1, 0, 16)
    assert shares([server], workers=8) == (8, 1, 8) == shares([server])
    assert shares([server], workers=2) == (32, 1, 2)
    assert shares([server], workers=16) == (4, 0.5, 16)
    assert shares([server, server], gpus_per_training=0.5) == (4, 0.5, 32)
    assert shares([server, laptop], workers=1) == (64, 1, 1)
    assert shares([server], workers=4, gpus_per_training=0) == (16, 0, 4)
    for nodes, n_gpus, words in [
        ([laptop], 1, "no machine of the cluster has more than 0"),
        ([server, server], 9, "no machine of the cluster has more than 8"),
        ([server], 1.5, "must be a whole number, or less than 1"),
    ]:
        with pytest.raises(UserError, match=words):
            shares(nodes, gpus_per_training=n_gpus)


def test_what_cannot_be_an_engine_is_one_sentence(monkeypatch):
    assert isinstance(open_engine(EngineArguments()), InOrder)
    with pytest.raises(UserError, match="no Ray cluster answers at 127.0.0.1:9"):
        open_engine(EngineArguments(ray_address="127.0.0.1:9"))
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:9")
        with pytest.raises(UserError, match="no Ray cluster answers at 127.0.0.1:9"):
            open_engine(EngineArguments())
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="torchrun and Ray do not go together"):
            open_engine(EngineArguments(workers=2))
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install -r requirements-grid.txt"):
        open_engine(EngineArguments(workers=2))


def test_a_function_of_the_script_that_runs_is_found_by_the_name_of_its_file(monkeypatch):
    def train(config):
        """It says where it is defined."""

    train.__module__, train.__qualname__ = "__main__", "finetune"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "finetuning_train.py"), raising=False)
    assert importable_name(train) == ("finetuning_train", "finetune")
    assert importable_name(count) == ("helpers.counting", "count")


def test_the_tests_have_the_ray_that_users_get():
    pinned = (ROOT / "requirements-grid.txt").read_text().splitlines()
    assert set(pinned) <= set((ROOT / "tests" / "requirements.txt").read_text().splitlines())
