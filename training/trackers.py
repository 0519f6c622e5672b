"""Experiment trackers beside TensorBoard: W&B, MLflow and ClearML, through ignite's loggers.

Server, project and credentials are what each library's own settings say: `wandb login` and WANDB_PROJECT,
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, clearml.conf.
"""

import atexit
import contextlib
import math
from collections.abc import Iterator

from ignite.handlers import ClearMLLogger, MLflowLogger, WandBLogger

from checkpoints.files import read_run_config, write_json
from config.errors import UserError
from config.presets import read_json
from utils import Run, logger

RUN_IDS = "tracker.json"  # in the run folder, by the name of the tracker
PROJECT = "transfer-learning-in-nlp"  # in ClearML, which needs one


def open_tracker(run: Run) -> None:
    """Start a run of `--tracker`, or continue the one that a resumed run had, in the main process.

    Raises UserError if the library cannot start it, for lack of credentials for example.
    """
    name = run.config.tracker
    if name == "none" or not run.is_main:
        return
    file = run.folder / RUN_IDS
    run_ids = read_json(file) if file.is_file() else {}
    title = f"{run.folder.parent.name}/{run.folder.name}"
    arguments = read_run_config(run.folder, "run folder")["arguments"]  # without addresses to notify
    try:
        run.tracker = tracker = TRACKERS[name](run, title, arguments, run_ids.get(name))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--tracker {name} cannot start: {reason}") from error
    write_json(file, run_ids | {name: tracker.run_id})
    atexit.register(run.close)  # does nothing unless the run fails between training and its end


@contextlib.contextmanager
def warn_on_failure() -> Iterator[None]:
    """A tracker that cannot be reached is no reason to lose a training."""
    try:
        yield
    except Exception as error:
        logger.warning(f"the tracker failed: {' '.join(str(error).split())}")


class WandBTracker:
    def __init__(self, run: Run, title: str, arguments: dict, run_id: str | None):
        self.logger = WandBLogger(
            name=title,
            dir=run.folder,
            config=arguments,
            id=run_id,
            resume="allow",
            allow_val_change=True,
            settings={"x_disable_meta": bool(run.config.notify)},  # it holds the command line, with addresses
        )
        self.run_id = self.logger.run.id

    @warn_on_failure()
    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        self.logger.log({f"{tag}/{name}": value for name, value in values.items()}, step=step)

    @warn_on_failure()
    def close(self, metrics: dict[str, float] | None) -> None:
        self.logger.run.summary.update(metrics or {})
        self.logger.finish(exit_code=int(metrics is None))


class MLflowTracker:
    def __init__(self, run: Run, title: str, arguments: dict, run_id: str | None):
        import mlflow

        # `nested`, since the caller may have a run of its own; ignite's logger takes the innermost one.
        mlflow.start_run(run_id=run_id, run_name=title, nested=True)
        self.logger = MLflowLogger()
        self.run_id = self.logger.active_run.info.run_id
        if run_id is None:  # MLflow refuses to change them
            self.logger.log_params(arguments)

    @warn_on_failure()
    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        self.logger.log_metrics({f"{tag}/{name}": value for name, value in values.items()}, step=step)

    @warn_on_failure()
    def close(self, metrics: dict[str, float] | None) -> None:
        try:
            self.logger.log_metrics(metrics or {})
        finally:
            self.logger.end_run("FAILED" if metrics is None else "FINISHED")


class ClearMLTracker:
    def __init__(self, run: Run, title: str, arguments: dict, run_id: str | None):
        from clearml import Task

        # ClearML forks a process to report from, which deadlocks now and then, since torch has threads.
        Task._report_subprocess_enabled = False
        self.logger = ClearMLLogger(
            project_name=PROJECT,
            task_name=title,
            continue_last_task=run_id or False,
            reuse_last_task_id=False,
            auto_connect_arg_parser=False,  # it would store the addresses to notify
            auto_connect_frameworks=False,  # TensorBoard's scalars would come twice
        )
        self.task = self.logger.get_task()
        self.task.set_initial_iteration(0)  # steps of a resumed run go on where they were
        self.task.connect(arguments)
        self.run_id = self.task.id

    @warn_on_failure()
    def log_scalars(self, tag: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # ClearML would write 0 for the others
                self.logger.report_scalar(tag, name, value, step)

    @warn_on_failure()
    def close(self, metrics: dict[str, float] | None) -> None:
        for name, value in (metrics or {}).items():
            self.logger.report_single_value(name, value)
        if metrics is None:
            self.task.mark_failed()
        self.logger.close()


TRACKERS: dict[str, type[WandBTracker | MLflowTracker | ClearMLTracker]] = {
    "wandb": WandBTracker,
    "mlflow": MLflowTracker,
    "clearml": ClearMLTracker,
}
