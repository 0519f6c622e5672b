# PYTHON_ARGCOMPLETE_OK
"""Train one transformer on many tasks, conditioned on the task (CA-MTL: Pilault et al. 2021).

python multitask_train.py --tasks trec,rte,my_folder --model_checkpoint hf:bert-base-cased
python multitask_train.py --tasks trec,rte --sampling uncertainty         what the model is least sure of
python multitask_train.py --tasks trec,rte --conditioning none            plain multi-task learning
python multitask_train.py multitask_glue                                  the recipe of the paper
python multitask_train.py --add_task cola --model_checkpoint RUN_FOLDER   one more task, all else frozen
"""

from config.command_line import parse_arguments, run_script
from config.multitask import MultitaskConfig

if __name__ == "__main__":
    config = parse_arguments(MultitaskConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.files import read_run_config
from checkpoints.finetuned import choose_tokenizer, max_length
from checkpoints.multitask import Start, add_task, build_multitask
from checkpoints.pretrained import base_reference, open_start
from config.errors import UserError, suggestion
from config.finetuning import InputArguments, TaskArguments, with_task
from experiments.notify import notified
from multitask_model import MultitaskTransformer, OneTask, TaskHead, join_batches, split_by_task
from tasks.examples import Collator, Examples, choose_subset, count_labels
from tasks.inference import evaluate, test_metrics
from tasks.mixing import MixedBatch, MixedBatches
from tasks.sampling import STATISTICS, TaskSampler, TaskStream, build_sampler
from tasks.task import Task, open_task
from training.evaluation import BestWeights, restore_best
from training.loop import count_parameters, fit
from training.optimizers import build_optimizers
from training.resuming import check_resumable, rows_per_process, step_sizes
from training.step import LoopOptions, Objective, micro_batch_tokens
from utils import Batch, Run, broadcast_from_main, finish_run, open_folder, show, start_run


@dataclass
class LearnedTask:
    """A task, and how the flags and its file want it learned."""

    arguments: TaskArguments
    task: Task

    @property
    def metric(self) -> str:
        """What counts in the average of all tasks."""
        return self.task.kind.best_metric(self.arguments.patience_metric)

    @property
    def head(self) -> TaskHead:
        return TaskHead(self.task.kind.model_class, self.task.kind.num_outputs)


@notified
def train_multitask(config: MultitaskConfig) -> dict:
    """Train on all tasks; return the `average` of their main metrics at the best evaluation, the `valid_…`
    and `test_…` metrics of each in `tasks`, `examples_per_second`, ….

    Raises UserError for input that cannot be used.
    """
    run = start_run(config)

    # The tasks determine the heads. The model is on its device before the optimizers see it.
    start, tasks = open_model_and_tasks(config)
    model = start.model
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    optimizers = build_optimizers(model.to(run.device), config)
    best = best_weights(config, tasks, start, run)
    n_parameters, n_trained = count_parameters(model)

    # A step is a function of the seed, its number, and of what the model says that it is unsure of.
    collators = {name: build_collator(learned, model) for name, learned in tasks.items()}
    streams = [
        training_stream(number, name, tasks[name], collators[name], config.seed)
        for number, name in enumerate(tasks)
    ]
    batches = training_batches(config, streams, model, run)
    valid = {name: model_inputs(tasks[name].task, "valid", collators[name]) for name in tasks}

    # All input has been read. Only now is the folder written, so that a mistake overwrites nothing.
    write_run_folder(run, start, tasks, batches)
    sizes = ", ".join(f"{stream.name} {len(stream):,}" for stream in streams)
    show(f"{n_trained:,} of {n_parameters:,} parameters train ({n_trained / n_parameters:.2%}) · {sizes}")

    # What is best is decided by the validation splits alone.
    def measure(name: str, examples: Examples) -> dict[str, float]:
        kind, head = tasks[name].task.kind, model.head(name)
        arguments = (examples, collators[name], config.valid_batch_size, run)
        return evaluate(OneTask(model, name), head.loss, kind, *arguments)

    def validate() -> dict[str, float]:
        metrics = {name: measure(name, examples) for name, examples in valid.items()}
        return summarize(metrics, tasks) | take_statistics(batches.sampler)

    options = loop_options(config, batches, run)
    progress = fit(model, optimizers, multitask_objective(tasks), batches, validate, best, run, options)

    # The best weights count, not the last ones: in the test metrics as in the run folder.
    restore_best(model, run)
    metrics = best_metrics(best.best, tasks)
    if config.eval_test:
        for name, learned in tasks.items():
            metrics["tasks"][name] |= test_metrics(learned.task, collators[name], partial(measure, name))
    metrics |= {"n_steps": progress.n_steps, "examples_per_second": progress.examples_per_second}
    return finish_run(run, metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


# ---------------------------------------------------------------------------------------- tasks and the model


def open_model_and_tasks(config: MultitaskConfig) -> tuple[Start, dict[str, LearnedTask]]:
    """The model and the tasks that it learns, by name. Raises UserError if there is none."""
    if config.add_task:
        folder = config.model_checkpoint
        if not folder or config.tasks:
            raise UserError("--add_task takes the run folder of --model_checkpoint, without --tasks")
        tasks = open_tasks(config, config.add_task, folder)
        (name, learned), *others = tasks.items()
        if others:
            raise UserError(f"--add_task {config.add_task}: one task at a time")
        return add_task(folder, name, learned.head), tasks
    checkpoint = open_start(config.model_checkpoint)[1]
    tasks = open_tasks(config, config.tasks, choose_tokenizer(config, checkpoint))
    heads = {name: learned.head for name, learned in tasks.items()}
    inputs = [learned.arguments for learned in tasks.values()]
    vocab_size = len(next(iter(tasks.values())).task.tokenizer)
    return build_multitask(config, heads, inputs, vocab_size, checkpoint), tasks


def open_tasks(config: MultitaskConfig, names: str | None, tokenizer: str) -> dict[str, LearnedTask]:
    """The tasks by name. Raises UserError for one that cannot be read, or that is named twice."""
    if not names:
        raise UserError("there is nothing to learn; name tasks with --tasks, like trec,rte,my_folder")
    if tokenizer.startswith("train:"):
        raise UserError(f"--tokenizer {tokenizer}: all tasks share one; name one that is trained")
    tasks: dict[str, LearnedTask] = {}
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(InputArguments)}
    for dataset_path in names.split(","):
        name = task_name(dataset_path)
        if name in tasks:
            raise UserError(f"--tasks names two tasks {name}; leave one out, or rename its folder or file")
        arguments = TaskArguments(dataset_path=dataset_path, **shared)
        arguments.explicit_flags = config.explicit_flags
        arguments = with_task(arguments)
        tasks[name] = LearnedTask(arguments, open_task(arguments, tokenizer))
    return tasks


def task_name(dataset_path: str) -> str:
    """The name of a task: of its file in run_configs/, or the last part of its path; it has no dots."""
    name = Path(dataset_path.removesuffix(".json").rstrip("/")).name
    return name.replace(".", "_")


def build_collator(learned: LearnedTask, model: MultitaskTransformer) -> Collator:
    """What makes batches of a task: inputs as long as the task and the model allow."""
    arguments, task = learned.arguments, learned.task
    length = min(max_length(arguments, model.config), model.shape.max_length)
    return task.kind.collator_class.for_model(model.config, task.tokenizer, length, arguments.truncation)


def model_inputs(task: Task, split: str, collate: Collator) -> Examples:
    """What the model reads of a split. Raises UserError if there is none."""
    return task.kind.model_inputs(task.examples(split), collate)


def write_run_folder(run: Run, start: Start, tasks: dict[str, LearnedTask], batches: MixedBatches) -> None:
    """Make the run folder self-contained: config.json with labels and columns of tasks, and the tokenizer."""
    model = start.model
    descriptions = {
        name: {
            "model_class": learned.head.model_class,
            "kind": learned.task.kind.name,
            "options": dataclasses.asdict(learned.task.kind.options),
            "labels": learned.task.kind.label_names,
            "is_pair": learned.task.is_pair,
            "arguments": dataclasses.asdict(learned.arguments),
        }
        for name, learned in tasks.items()
    }
    open_folder(
        run,
        model=dataclasses.asdict(model.config),
        multitask=dataclasses.asdict(model.shape),
        tasks=start.tasks | descriptions,
        base=None if start.base is None else base_reference(start.base, run.folder),
        draws_per_step=batches.sampler.draws_per_step,
        **step_sizes(batches),
    )
    if run.is_main:
        tokenizer = next(iter(tasks.values())).task.tokenizer
        tokenizer.save(run.folder / tokenizer.file)


# ------------------------------------------------------------------------------------------------ the batches


def training_stream(number: int, name: str, learned: LearnedTask, collate: Collator, seed: int) -> TaskStream:
    """The training examples of a task, in an order of their own."""
    train, n_chosen = learned.task.train, learned.arguments.train_subset_size
    subset, kind = choose_subset(train.labels, n_chosen or len(train), seed), learned.task.kind
    inputs = kind.model_inputs(train, collate)
    return TaskStream(name, inputs, inputs.indices_of(subset), collate, (seed, number), kind.has_entropy)


def training_batches(
    config: MultitaskConfig, streams: list[TaskStream], model: MultitaskTransformer, run: Run
) -> MixedBatches:
    """This process's batches. Raises UserError if a resumed run had others."""
    n_rows = rows_per_process(config, run) * run.world_size
    n_draws = config.gradient_accumulation_steps * run.world_size
    if run.is_resumed:  # by more or fewer processes, perhaps
        n_draws = broadcast_from_main(lambda: read_run_config(run.folder, "--resume"))["draws_per_step"]
    sampler = build_sampler(config, streams, n_rows, n_draws)
    n_tokens = micro_batch_tokens(config.part_tokens, run)
    entropies_of = partial(predictive_entropies, model, run)
    batches = MixedBatches(
        sampler, join_batches, entropies_of, config.train_batch_size, n_tokens, run.rank, run.world_size
    )
    check_resumable(config, run, len(batches))
    return batches


@torch.inference_mode()
def predictive_entropies(model: MultitaskTransformer, run: Run, batch: Batch) -> np.ndarray:
    """[examples], task by task: the relative entropies of the predictions for a batch without labels."""
    model.eval()
    batch = run.to_device(batch)
    with run.autocast():
        logits = model(**batch)
    inputs = split_by_task(batch)
    entropies = [model.head(name).entropy(logits[name], inputs[name]) for name in logits]
    return torch.cat(entropies).cpu().numpy()


def loop_options(config: MultitaskConfig, batches: MixedBatches, run: Run) -> LoopOptions:
    """The flags of the loop. Processes may have different tasks, so that some have no use for some heads."""
    return LoopOptions.from_flags(config, batches, parts_are_unused=True)


# ----------------------------------------------------------------------------------------- losses and metrics


def multitask_objective(tasks: dict[str, LearnedTask]) -> Objective:
    """The mean over the tasks in a batch of each task's mean loss."""

    def losses(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        return model(**batch)

    def counts(batch: MixedBatch) -> dict[str, Tensor | int]:
        totals: dict[str, Tensor | int] = dict.fromkeys(tasks, 0)
        for micro_batch in batch.micro_batches:
            for name, inputs in split_by_task(micro_batch).items():
                totals[name] += max(1, count_labels(inputs["labels"], inputs)) * batch.n_tasks
        return totals

    return Objective(losses, counts, dict.fromkeys(tasks, 1.0))


def summarize(metrics: dict[str, dict[str, float]], tasks: dict[str, LearnedTask]) -> dict[str, float]:
    """The metrics of each task as `task.metric`, and the `average` of their main ones."""
    average = float(np.mean([metrics[name][learned.metric] for name, learned in tasks.items()]))
    each = {f"{name}.{key}": value for name in tasks for key, value in metrics[name].items()}
    return {"average": average} | each


def take_statistics(sampler: TaskSampler) -> dict[str, float]:
    """What was sampled since the last evaluation, as `task.share` and maybe `task.entropy`."""
    statistics = sampler.statistics()
    sampler.reset_statistics()
    return {
        f"{stream.name}.{key}": float(value)
        for key, values in statistics.items()
        for stream, value in zip(sampler.streams, values, strict=True)
        if np.isfinite(value)
    }


def best_weights(
    config: MultitaskConfig, tasks: dict[str, LearnedTask], start: Start, run: Run
) -> BestWeights:
    """Keeps the best weights by `--patience_metric`. Raises UserError if there is no such metric."""
    name, _, metric = config.patience_metric.rpartition(".")
    if config.patience_metric != "average":
        if name not in tasks:
            hint = suggestion(name, tasks)
            raise UserError(
                f"--patience_metric {config.patience_metric}: write average, or TASK.metric{hint}"
            )
        tasks[name].task.kind.best_metric(metric)

    def weights() -> dict[str, Tensor]:
        return {
            name: tensor for name, tensor in start.model.state_dict().items() if name in start.saved_names
        }

    return BestWeights(run, weights, config.patience_metric, metric != "loss", config.patience)


def best_metrics(best: dict[str, float], tasks: dict[str, LearnedTask]) -> dict:
    """metrics.json of the best evaluation: `average`, `best_step`, and the `valid_…` metrics of each task."""
    metrics: dict = {"average": best["average"], "best_step": best["step"], "tasks": {}}
    for name in tasks:
        own = {
            key.removeprefix(f"{name}."): value for key, value in best.items() if key.startswith(f"{name}.")
        }
        metrics["tasks"][name] = {
            f"valid_{key}": value for key, value in own.items() if key not in STATISTICS
        }
    return metrics


if __name__ == "__main__":
    run_script(train_multitask, config)
