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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.files import read_evaluations, read_run_config
from checkpoints.finetuned import choose_tokenizer, max_length
from checkpoints.multitask import Start, add_task, build_multitask, check_new_task, check_same_shape
from checkpoints.pretrained import base_reference, newest_checkpoint, open_start
from config.errors import UserError, suggestion
from config.flags import replace
from experiments.notify import notified
from experiments.sampling_plot import draw_sampling
from multitask_model import MultitaskTransformer, OneTask, TaskHead, join_batches, split_by_task
from processes import broadcast_from_main
from tasks.examples import Examples, choose_subset, count_labels
from tasks.glue import Submission, open_submission
from tasks.inference import evaluate, test_metrics
from tasks.mixing import MixedBatch, MixedBatches
from tasks.multitask import (
    LearnedTask,
    best_metrics,
    check_same_tasks,
    describe,
    loss_weights,
    open_tasks,
    summarize,
    task_name,
)
from tasks.sampling import TaskStream, build_sampler, take_statistics
from training.evaluation import BestWeights, restore_best
from training.loop import count_parameters, fit
from training.optimizers import build_optimizers
from training.resuming import check_resumable, rows_per_process, step_sizes
from training.step import LoopOptions, Objective, micro_batch_tokens
from utils import Batch, Run, finish_run, open_folder, show, start_run

SAMPLING_PLOT = "sampling.png"  # in the run folder
KEPT_BY_ADD_TASK = {"conditioning", "freeze_layers", "tuning", "adapters_dim", "pooling", "tokenizer"}

PAPER_LR = 2e-5  # of all parameters, in CA-MTL


@notified
def train_multitask(config: MultitaskConfig) -> dict:
    """Train on all tasks; return the `average` of their main metrics at the best evaluation, the `valid_…`
    and `test_…` metrics of each in `tasks`, `examples_per_second`, ….

    Raises UserError for input that cannot be used.
    """
    run = start_run(config := with_start(config))

    # The tasks determine the heads. The model is on its device before the optimizers see it.
    start, tasks = open_model_and_tasks(config)
    check_resumed(run, start)
    model = start.model
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    optimizers = build_optimizers(model.to(run.device), config, learning_rate_scales(model, config))
    best = best_weights(config, tasks, start, run)
    n_parameters, n_trained = count_parameters(model)

    # A step is a function of the seed, its number, and of what the model says that it is unsure of.
    batches = training_batches(config, training_streams(config, tasks), model, run)
    valid = {name: learned.model_inputs("valid") for name, learned in tasks.items()}
    submission = open_glue_submission(config, tasks, model, run)

    # All input has been read. Only now is the folder written, so that a mistake overwrites nothing.
    write_run_folder(run, start, tasks, batches)
    sizes = ", ".join(f"{stream.name} {len(stream):,}" for stream in batches.sampler.streams)
    show(f"{n_trained:,} of {n_parameters:,} parameters train ({n_trained / n_parameters:.2%}) · {sizes}")

    # What is best is decided by the validation splits alone.
    measure = create_evaluation(config, tasks, model, run)

    def validate() -> dict[str, float]:
        metrics = {name: measure(name, examples) for name, examples in valid.items()}
        return summarize(metrics, tasks) | take_statistics(batches.sampler)

    objective, options = multitask_objective(loss_weights(tasks)), loop_options(config, batches, run)
    progress = fit(model, optimizers, objective, batches, validate, best, run, options)

    # The best weights count, not the last ones: in the test metrics as in the run folder.
    restore_best(model, run)
    metrics = best_metrics(best.best, tasks)
    for name, learned in tasks.items() if config.eval_test else ():
        metrics["tasks"][name] |= test_metrics(learned.task, learned.collate, partial(measure, name))
    write_extras(run, tasks, submission)
    metrics |= {"n_steps": progress.n_steps, "examples_per_second": progress.examples_per_second}
    return finish_run(run, metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


# ---------------------------------------------------------------------------------------- tasks and the model


def with_start(config: MultitaskConfig) -> MultitaskConfig:
    """The config with what the training starts from. Raises UserError if the flags do not say what to learn,
    or contradict each other."""
    if not config.add_task:
        if not config.tasks:
            raise UserError("there is nothing to learn; name tasks with --tasks, like trec,rte,my_folder")
        return replace(config, model_checkpoint=config.model_checkpoint or newest_checkpoint())
    flag = f"--add_task {config.add_task}"
    if config.tasks or not config.model_checkpoint:
        raise UserError(f"{flag} learns one task on top of the run of --model_checkpoint, without --tasks")
    if without_effect := sorted(config.explicit_flags & KEPT_BY_ADD_TASK):
        raise UserError(
            f"{flag} keeps the model as it is, so --{without_effect[0]} has no effect; leave it out"
        )
    if "," in config.add_task:
        raise UserError(f"{flag}: one task at a time")
    return config


def open_model_and_tasks(config: MultitaskConfig) -> tuple[Start, dict[str, LearnedTask]]:
    """The model and the tasks that it learns, by name. Raises UserError for input that cannot be used."""
    if config.add_task:
        folder = str(config.model_checkpoint)
        check_new_task(folder, task_name(config.add_task, "--add_task"))
        tasks = open_tasks(config, "--add_task", config.add_task, folder)
        ((name, head),) = heads_of(tasks).items()
        return prepared(add_task(folder, name, head), tasks), tasks
    checkpoint = open_start(config.model_checkpoint)[1]
    tasks = open_tasks(config, "--tasks", str(config.tasks), choose_tokenizer(config, checkpoint))
    inputs = [learned.arguments for learned in tasks.values()]
    vocab_size = len(next(iter(tasks.values())).task.tokenizer)
    start = build_multitask(config, heads_of(tasks), inputs, vocab_size, checkpoint)
    return prepared(start, tasks), tasks


def learning_rate_scales(model: MultitaskTransformer, config: MultitaskConfig) -> dict[str, float]:
    """For what makes γ and β: `--conditioning_lr`, relative to `lr`.

    Adam moves a shift β(z) by about lr * |z|₁ in a step, and |z|₁ is embed_dim / 2 at first. At the rates of
    small models, 1e-3 say, that is more than their embeddings are large, and what was pretrained is lost
    (docs/multitask.md).
    """
    lr = config.conditioning_lr
    if lr is None:  # one more task moves nothing but its own vector
        lr = config.lr if config.add_task else min(config.lr, PAPER_LR)
    return dict.fromkeys(model.conditioning_parameters(), lr / config.lr if config.lr else 1.0)


def prepared(start: Start, tasks: dict[str, LearnedTask]) -> Start:
    """Let the tasks make batches for the model, and config.json describe them after those learned before."""
    model = start.model
    for learned in tasks.values():
        learned.prepare_for(
            model.config, min(max_length(learned.arguments, model.config), model.shape.max_length)
        )
    return dataclasses.replace(start, tasks=start.tasks | describe(tasks))


def check_resumed(run: Run, start: Start) -> None:
    """Raises UserError if a run to resume had other tasks, or a model of another shape."""
    if run.is_resumed:
        check_same_tasks(run, start.tasks)
        check_same_shape(run.folder, start.model.shape)


def heads_of(tasks: dict[str, LearnedTask]) -> dict[str, TaskHead]:
    """What the model has for each task."""
    kinds = {name: learned.task.kind for name, learned in tasks.items()}
    return {name: TaskHead(kind.model_class, kind.num_outputs) for name, kind in kinds.items()}


def open_glue_submission(
    config: MultitaskConfig, tasks: dict[str, LearnedTask], model: MultitaskTransformer, run: Run
) -> Submission | None:
    """The files that `--glue_submission` asks for. Raises UserError if they cannot be made."""
    if not config.glue_submission:
        return None
    predictors = {
        name: learned.predictor(OneTask(model, name), config.valid_batch_size, run)
        for name, learned in tasks.items()
    }
    return open_submission(Path(config.glue_submission), tasks, predictors)


def write_run_folder(run: Run, start: Start, tasks: dict[str, LearnedTask], batches: MixedBatches) -> None:
    """Make the run folder self-contained: config.json with labels and columns of tasks, and the tokenizer."""
    open_folder(
        run,
        model=dataclasses.asdict(start.model.config),
        multitask=dataclasses.asdict(start.model.shape),
        tasks=start.tasks,
        base=None if start.base is None else base_reference(start.base, run.folder),
        draws_per_step=batches.sampler.draws_per_step,
        **step_sizes(batches),
    )
    if run.is_main:
        tokenizer = next(iter(tasks.values())).task.tokenizer
        tokenizer.save(run.folder / tokenizer.file)


# ------------------------------------------------------------------------------------------------ the batches


def training_streams(config: MultitaskConfig, tasks: dict[str, LearnedTask]) -> list[TaskStream]:
    """The training examples of the tasks, each in an order of its own."""
    streams = []
    for number, (name, learned) in enumerate(tasks.items()):
        train, n_chosen = learned.task.train, learned.arguments.train_subset_size
        subset = choose_subset(train.labels, n_chosen or len(train), config.seed)
        inputs, seed = learned.model_inputs("train"), (config.seed, number)
        indices, has_entropy = inputs.indices_of(subset), learned.task.kind.has_entropy
        streams.append(TaskStream(name, inputs, indices, learned.collate, seed, has_entropy))
    return streams


def training_batches(
    config: MultitaskConfig, streams: list[TaskStream], model: MultitaskTransformer, run: Run
) -> MixedBatches:
    """This process's batches. Raises UserError if a resumed run had others."""
    n_rows = rows_per_process(config, run) * run.world_size
    sampler = build_sampler(config, streams, n_rows, draws_per_step(config, n_rows, run))
    n_tokens = micro_batch_tokens(config.part_tokens, run)
    entropies_of = partial(predictive_entropies, model, run)
    batches = MixedBatches(
        sampler, join_batches, entropies_of, config.train_batch_size, n_tokens, run.rank, run.world_size
    )
    check_resumable(config, run, len(batches))
    return batches


def draws_per_step(config: MultitaskConfig, n_rows: int, run: Run) -> int:
    """How often a task is drawn for the rows of an optimizer step; in a resumed run, as often as before."""
    if run.is_resumed:
        return broadcast_from_main(lambda: read_run_config(run.folder, "--resume"))["draws_per_step"]
    n_draws, n_left = divmod(n_rows, config.rows_per_draw or config.train_batch_size)
    if n_left:
        flag = f"--rows_per_draw {config.rows_per_draw}"
        raise UserError(f"{flag} does not divide the {n_rows} rows of an optimizer step; take a divisor")
    return n_draws


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


def multitask_objective(weights: dict[str, float]) -> Objective:
    """The mean over the tasks in a batch of each one's mean loss times its weight, of `weights` by name."""

    def losses(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        return model(**batch)

    def counts(batch: MixedBatch) -> dict[str, Tensor | int]:
        n_labels = dict.fromkeys(weights, 0)
        for micro_batch in batch.micro_batches:
            for name, inputs in split_by_task(micro_batch).items():
                n_labels[name] += count_labels(inputs["labels"], inputs)
        # Without labels a loss is 0, and must not become 0 / 0. A count of 1 would be too many where another
        # process has labels of the task.
        return {name: torch.tensor(max(float(n), 1e-9) * batch.n_tasks) for name, n in n_labels.items()}

    return Objective(losses, counts, weights)


def create_evaluation(
    config: MultitaskConfig, tasks: dict[str, LearnedTask], model: MultitaskTransformer, run: Run
) -> Callable[[str, Examples], dict[str, float]]:
    """A function that computes loss and metrics of a task on a split, all processes together."""

    def measure(name: str, examples: Examples) -> dict[str, float]:
        learned, loss = tasks[name], model.head(name).loss
        arguments = (examples, learned.collate, config.valid_batch_size, run)
        return evaluate(OneTask(model, name), loss, learned.task.kind, *arguments)

    return measure


def best_weights(
    config: MultitaskConfig, tasks: dict[str, LearnedTask], start: Start, run: Run
) -> BestWeights:
    """Keeps the best weights by `--patience_metric`. Raises UserError if there is no such metric."""
    name, _, metric = config.patience_metric.rpartition(".")
    if config.patience_metric != "average":
        flag = f"--patience_metric {config.patience_metric}"
        if name not in tasks:
            raise UserError(f"{flag}: write average, or TASK.metric{suggestion(name, tasks)}")
        kind = tasks[name].task.kind
        if not kind.has_metric(metric):
            known = ", ".join(filter(kind.has_metric, kind.metrics))
            raise UserError(f"{flag} does not apply to {name}, a {kind.name}; use {known}")

    def weights() -> dict[str, Tensor]:
        return {
            name: tensor for name, tensor in start.model.state_dict().items() if name in start.saved_names
        }

    return BestWeights(run, weights, config.patience_metric, metric != "loss", config.patience)


def write_extras(run: Run, tasks: dict[str, LearnedTask], submission: Submission | None) -> None:
    """What a run leaves besides its metrics: the plot of what it sampled, and files for GLUE."""
    if submission:
        submission.write(run)
    if run.is_main:
        draw_sampling(read_evaluations(run.folder), list(tasks), run.folder / SAMPLING_PLOT)


if __name__ == "__main__":
    run_script(train_multitask, config)
