"""Many trainings as a graph of jobs, each with a run folder, that may need others to be finished before them.

What lasts is the run folders: a finished one is never trained again, and an unfinished one is resumed. So
killing a worker or the whole program costs only the time since the last checkpoint, and the same call goes
on. `engines.py` says where the trainings run.
"""

import functools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ignite.distributed as idist

from checkpoints.files import CHECKPOINTS, CONFIG, read_metrics
from config.errors import Stopped, TrainingFailed
from config.flags import replace
from config.groups import RunArguments
from experiments.notify import one_line
from processes import broadcast_from_main
from utils import logger, show

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One training: `function(config)` writes metrics.json into the run folder when it is finished.

    `name` is the run folder, relative to the folder of the graph; `needs` are the names of other jobs.
    `function` stands at the top level of its module, where other processes can import it.
    """

    name: str
    function: Callable[[Any], Metrics]
    config: RunArguments
    needs: tuple[str, ...] = ()


AnyJob = TypeVar("AnyJob", bound=Job)


class Engine(Protocol):
    """Where jobs run."""

    def submit(self, job: Job, folder: Path) -> None:
        """Take on a job whose needs are finished; `folder` is that of the graph."""

    def next_outcome(self) -> tuple[str, Metrics | Exception]:
        """Wait until any of the submitted jobs ends: its name, and its metrics or why it failed."""


@dataclass
class Outcome:
    """How the jobs of a graph have ended so far, by name."""

    metrics: dict[str, Metrics] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises TrainingFailed, with the first failure, if there are any."""
        if not self.failures:
            return
        name, sentence = next(iter(self.failures.items()))
        n_failed = f"{len(self.failures)} of {len(self.failures) + len(self.metrics)} trainings failed"
        raise TrainingFailed(
            f"{n_failed} (the same command tries them again); the first was {name}: {sentence}"
        )


@dataclass
class Graph(Generic[AnyJob]):
    """Jobs whose run folders lie in one folder."""

    folder: Path
    jobs: Sequence[AnyJob]
    keeps_checkpoints: bool = True  # of trainings that are finished

    def run(
        self,
        engine: Engine,
        finished: Callable[[AnyJob, Outcome], None] = lambda job, outcome: None,
        keep_going: bool = True,
    ) -> Outcome:
        """Run all jobs that are not finished yet; `finished` is called, in the driver, after each of them.

        A job that needs a failed one fails as well; the others go on, unless `keep_going` is False: then the
        first exception is raised.
        """
        jobs = {job.name: job for job in self.jobs}
        outcome = Outcome(self.finished_before())
        n_before, total = len(outcome.metrics), len(jobs)
        if n_before:
            show(f"{n_before} of {total} trainings in {self.folder} were finished before")
        sorter = TopologicalSorter({job.name: job.needs for job in self.jobs})
        sorter.prepare()
        while sorter.is_active():
            for name in (ready := sorter.get_ready()):
                if failed := next((need for need in jobs[name].needs if need in outcome.failures), None):
                    outcome.failures[name] = f"it needs {failed}, which failed"
                if name in outcome.metrics or failed:
                    sorter.done(name)
                else:
                    engine.submit(jobs[name], self.folder)
            if ready:  # what they were needed for may be ready now
                continue
            name, result = engine.next_outcome()
            if isinstance(result, Exception):
                if not keep_going:
                    raise result
                outcome.failures[name] = one_line(result)
                trace = result if os.environ.get("DEBUG") == "1" else None
                logger.error(f"{name} failed: {one_line(result)}", exc_info=trace)
            else:
                outcome.metrics[name] = result
                self.tidy(name)
                show(f"{len(outcome.metrics)} of {total} trainings finished: {name}, {summary(result)}")
                finished(jobs[name], outcome)
            sorter.done(name)
        return outcome

    def finished_before(self) -> dict[str, Metrics]:
        """The metrics of finished trainings, by name, whose process may have been killed before it tidied."""
        metrics = {}
        for job in self.jobs:
            if found := broadcast_from_main(functools.partial(read_metrics, self.folder / job.name)):
                metrics[job.name] = found
                self.tidy(job.name)
        return metrics

    def tidy(self, name: str) -> None:
        """Remove what a finished training no longer needs."""
        if not self.keeps_checkpoints:
            shutil.rmtree(self.folder / name / CHECKPOINTS, ignore_errors=True)


def train_or_resume(function: Callable[[Any], Metrics], config: RunArguments, run_folder: Path) -> Metrics:
    """Do a training, or go on with it, unless it is finished; return what its metrics.json holds."""
    if metrics := broadcast_from_main(lambda: read_metrics(run_folder)):
        return metrics
    is_begun = broadcast_from_main((run_folder / CONFIG).is_file)
    if not is_begun and idist.get_rank() == 0:
        remove_files(run_folder)  # of a run that was killed before it wrote its config
    resume = str(run_folder) if is_begun else None
    try:
        function(replace(config, output_dir=str(run_folder), resume=resume))
    except Stopped:
        show("this is one of several trainings: start them again as before (--restarts: with --resume)")
        raise
    metrics = broadcast_from_main(lambda: read_metrics(run_folder))
    if metrics is None:
        raise RuntimeError(f"{function.__name__} left no metrics in {run_folder}")
    return metrics


def remove_files(folder: Path) -> None:
    """Remove the files in a folder, if there is one; what lies deeper may be the work of others."""
    for file in folder.glob("*"):
        if file.is_file():
            file.unlink()


def summary(metrics: Metrics) -> str:
    """`valid_loss 0.5, valid_accuracy 0.8, 12 s`: the loss, the first of the other metrics, the time; of many
    tasks, the average and the time.
    """
    shown = [name for name in metrics if name == "average" or name.startswith("valid_")][:2]
    values = [f"{name} {metrics[name]:.4g}" for name in shown]
    return ", ".join([*values, f"{metrics['seconds']:.0f} s"] if "seconds" in metrics else values)
