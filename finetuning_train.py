# PYTHON_ARGCOMPLETE_OK
"""Fine-tune a pretrained transformer on a labelled task: in full, with adapters, or from scratch.

python finetuning_train.py --model_checkpoint RUN_FOLDER                       IMDb
python finetuning_train.py --model_checkpoint RUN_FOLDER --adapters_dim 32     train adapters alone
python finetuning_train.py --model_checkpoint hf:roberta-base --tuning lora    another model, with LoRA
python finetuning_train.py --model_checkpoint RUN_FOLDER --tuning fusion --adapters runs/a,runs/b
python finetuning_train.py --model_checkpoint runs/mnli --dataset_path rte     from another task's model
python finetuning_train.py --model_checkpoint none --tokenizer bert-base-cased from scratch
python finetuning_train.py --dataset_path my_folder                            train, valid, test files
python finetuning_train.py squad --model_checkpoint hf:bert-base-uncased       a task of run_configs/
"""

from config.command_line import parse_arguments, run_script
from config.finetuning import FinetuningConfig, with_task
from config.flags import replace

if __name__ == "__main__":
    config = parse_arguments(FinetuningConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from checkpoints.finetuned import build_model, choose_tokenizer, max_length
from checkpoints.pretrained import Checkpoint, base_reference, newest_checkpoint, open_start
from config.constants import IGNORE_INDEX
from data.masking import Masking
from experiments.notify import notified
from experiments.restarts import train_restarts
from finetuning_model import TransformerWithClfHead
from layers.adapters import saved_names
from tasks.examples import Collator, Examples, TaskBatches, choose_subset, count_labels
from tasks.inference import evaluate, test_metrics
from tasks.task import Task, open_task
from training.evaluation import BestWeights, restore_best
from training.loop import count_parameters, fit
from training.optimizers import build_optimizers
from training.resuming import check_resumable, rows_per_process, step_sizes
from training.step import Batches, LoopOptions, Objective, micro_batch_tokens
from utils import Batch, Run, finish_run, open_folder, show, start_run


@notified
def finetune(config: FinetuningConfig) -> dict[str, float]:
    """Fine-tune a model; return `valid_…` metrics of its best evaluation, `test_…`, `examples_per_second`, ….

    With `restarts`, these are means. Raises UserError for input that cannot be used.
    """
    config = config if config.resume else with_task(config)
    config = replace(config, model_checkpoint=config.model_checkpoint or newest_checkpoint())
    return finetune_once(config) if config.restarts == 1 else train_restarts(config, finetune)


def finetune_once(config: FinetuningConfig) -> dict[str, float]:
    """One training."""
    # A checkpoint that cannot be read is an error before anything starts.
    _, checkpoint = open_start(config.model_checkpoint)
    run = start_run(config)

    # The task determines the size of the head. The model is on its device before the optimizers see it.
    task = open_task(config, choose_tokenizer(config, checkpoint))
    model = build_model(config, task.kind.model_class, task.kind.num_outputs, len(task.tokenizer), checkpoint)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    model.adversarial_epsilon = config.adversarial_epsilon
    optimizers = build_optimizers(model.to(run.device), config)
    best = best_weights(config, task, model, run)
    n_parameters, n_trained = count_parameters(model)

    # A batch is a function of seed, step and rank alone, so that a resumed run sees the same ones.
    length = max_length(config, model.config)
    collate = task.kind.collator_class.for_model(model.config, task.tokenizer, length, config.truncation)
    subset = choose_subset(task.train.labels, config.train_subset_size or len(task.train), config.seed)
    batches = training_batches(config, task, model, subset, collate, run)
    valid = task.kind.model_inputs(task.examples("valid"), collate)

    # All input has been read. Only now is the folder written, so that a mistake overwrites nothing.
    write_run_folder(run, task, model, checkpoint, step_sizes(batches))
    show(
        f"{n_trained:,} of {n_parameters:,} parameters train ({n_trained / n_parameters:.2%})"
        f" · {len(subset):,} training examples · {summarize_kind(task)}"
    )

    # What is best is decided by the validation split alone.
    measure = create_evaluation(config, task, model, collate, run)
    validate, options = functools.partial(measure, valid), loop_options(config, batches, run)
    progress = fit(model, optimizers, finetuning_objective(config), batches, validate, best, run, options)

    # The best weights count, not the last ones: in the test metrics as in the run folder.
    restore_best(model, run)
    metrics = {f"valid_{name}": value for name, value in best.best.items() if name != "step"}
    metrics["best_step"] = best.best["step"]
    metrics |= test_metrics(task, collate, measure) if config.eval_test else {}
    metrics |= {"n_labels": len(subset), "n_steps": progress.n_steps}
    metrics |= {"examples_per_second": progress.examples_per_second}
    return finish_run(run, metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


# ------------------------------------------------------------------------------------- the task and the model


def training_batches(
    config: FinetuningConfig,
    task: Task,
    model: TransformerWithClfHead,
    subset: np.ndarray,
    collate: Collator,
    run: Run,
) -> TaskBatches:
    """This process's batches of the training examples. Raises UserError if a resumed run had others."""
    train, n_rows = task.kind.model_inputs(task.train, collate), rows_per_process(config, run)
    arguments = (train, train.indices_of(subset), collate, n_rows, config.seed, run.rank, run.world_size)
    batches = TaskBatches(*arguments)
    if config.lm_loss_coef:
        mask = None if model.config.causal else Masking(task.tokenizer, config.mlm_probability)
        batches = TaskBatchesWithLMLabels(*arguments, mask=mask)
    check_resumable(config, run, len(batches))
    return batches


def write_run_folder(
    run: Run, task: Task, model: TransformerWithClfHead, checkpoint: Checkpoint | None, sizes: dict[str, int]
) -> None:
    """Make the run folder self-contained: config.json, with the base of adapters, and the tokenizer."""
    base = None if checkpoint is None or model.head.tuning.is_full else base_reference(checkpoint, run.folder)
    open_folder(
        run,
        model=dataclasses.asdict(model.config),
        head=dataclasses.asdict(model.head),
        model_class=type(model).__name__,
        kind=task.kind.name,
        options=dataclasses.asdict(task.kind.options),
        labels=task.kind.label_names,
        is_pair=task.is_pair,
        base=base,
        **sizes,
    )
    if run.is_main:
        task.tokenizer.save(run.folder / task.tokenizer.file)


def summarize_kind(task: Task) -> str:
    """The kind of a task, and how many labels it has, for the screen."""
    kind, labels = task.kind.name.replace("_", " "), task.kind.label_names
    return f"{kind}, {len(labels)} labels" if labels else kind


def loop_options(config: FinetuningConfig, batches: Batches, run: Run) -> LoopOptions:
    """The flags of the loop, with micro-batches of as many tokens as suit the device."""
    return LoopOptions.from_flags(config, batches, part_tokens=micro_batch_tokens(config.part_tokens, run))


# ----------------------------------------------------------------------------------------- losses and metrics


def finetuning_objective(config: FinetuningConfig) -> Objective:
    """Classification loss per example plus, if asked for, the language-modelling loss per token."""

    def losses(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        return model(**batch)

    def count(batch: Batch) -> dict[str, Tensor | int]:
        counts: dict[str, Tensor | int] = {"clf": max(1, count_labels(batch["labels"], batch))}
        if "lm_labels" in batch:
            counts["lm"] = (batch["lm_labels"] != IGNORE_INDEX).sum().clamp(min=1)
        return counts

    return Objective(losses, count, {"clf": config.clf_loss_coef, "lm": config.lm_loss_coef})


@dataclass
class TaskBatchesWithLMLabels(TaskBatches):
    """Batches with the labels of the auxiliary language-modelling loss."""

    mask: Masking | None = (
        None  # of a bidirectional model; without one, each position predicts the next token
    )

    def __getitem__(self, step: int) -> Batch:
        """As of TaskBatches, with `lm_labels` like input_ids, and masked input_ids."""
        batch = super().__getitem__(step)
        input_ids = batch["input_ids"]
        if self.mask is None:
            next_tokens = input_ids.masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)[..., 1:]
            return batch | {"lm_labels": torch.nn.functional.pad(next_tokens, (0, 1), value=IGNORE_INDEX)}
        rows, key = input_ids.flatten(0, -2), (self.seed, step, self.rank)
        masked = self.mask(rows, key, slice(0, len(rows)), len(rows))
        ids, labels = (masked[name].view_as(input_ids) for name in ("input_ids", "labels"))
        return batch | {"input_ids": ids, "lm_labels": labels}


def create_evaluation(
    config: FinetuningConfig, task: Task, model: TransformerWithClfHead, collate: Collator, run: Run
) -> Callable[[Examples], dict[str, float]]:
    """A function that computes loss and metrics of the model on a split, all processes together."""
    loss, batch_size = model.classification_head.loss, config.valid_batch_size
    return lambda examples: evaluate(model, loss, task.kind, examples, collate, batch_size, run)


def best_weights(
    config: FinetuningConfig, task: Task, model: TransformerWithClfHead, run: Run
) -> BestWeights:
    """Keeps the best weights by `--patience_metric`; of a frozen model, only those that its base lacks."""
    metric = task.kind.best_metric(config.patience_metric)
    names = saved_names(model, model.head.tuning)

    def weights() -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name in names}

    return BestWeights(run, weights, metric, higher_is_better=metric != "loss", patience=config.patience)


if __name__ == "__main__":
    run_script(finetune, config)
