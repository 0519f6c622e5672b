# PYTHON_ARGCOMPLETE_OK
"""Fine-tune a pretrained transformer on a labelled task: in full, with adapters, or from scratch for
comparison.

python finetuning_train.py --model_checkpoint RUN_FOLDER                       IMDb python finetuning_train.py
--model_checkpoint RUN_FOLDER --adapters_dim 32     train adapters alone python finetuning_train.py
--model_checkpoint hf:roberta-base --tuning lora    somebody else's model, by LoRA python finetuning_train.py
--model_checkpoint RUN_FOLDER --tuning fusion --adapters runs/a,runs/b python finetuning_train.py
--model_checkpoint runs/mnli --dataset_path rte     sequential transfer: on from another task python
finetuning_train.py --model_checkpoint none --tokenizer bert-base-cased from scratch python
finetuning_train.py --dataset_path my_folder                            train/valid/test files of your own
python finetuning_train.py squad --model_checkpoint hf:bert-base-uncased       a task of run_configs/
"""

from config.command_line import parse_arguments, run_script
from config.finetuning import FinetuningConfig, with_task

if __name__ == "__main__":
    config = parse_arguments(FinetuningConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.finetuned import build_model, max_length
from checkpoints.pretrained import Checkpoint, describe_base, newest_checkpoint, open_checkpoint
from config.constants import IGNORE_INDEX
from config.errors import UserError
from data.masking import Masking
from experiments.notify import notified
from experiments.restarts import train_restarts
from finetuning_model import TransformerWithClfHead
from layers.adapters import saved_names
from tasks.examples import Collator, Examples, TaskBatches, choose_subset, count_labels, evaluation_batches
from tasks.inference import run_inference
from tasks.task import Task, open_task
from training.evaluation import BestWeights, restore_best
from training.loop import count_parameters, fit
from training.optimizers import build_optimizers
from training.resuming import check_resumable, rows_per_process, step_sizes
from training.step import LoopOptions, Objective
from utils import Batch, Run, finish_run, open_folder, show, start_run


@notified
def finetune(config: FinetuningConfig) -> dict[str, float]:
    """Fine-tune a model; return `valid_accuracy` and the like of its best evaluation, `test_…`,
    `examples_per_second`, ….

    With `restarts`, these are means. Raises UserError for input that cannot be used.
    """
    config = config if config.resume else with_task(config)
    config = dataclasses.replace(config, model_checkpoint=config.model_checkpoint or newest_checkpoint())
    return finetune_once(config) if config.restarts == 1 else train_restarts(config, finetune)


def finetune_once(config: FinetuningConfig) -> dict[str, float]:
    """One training."""
    checkpoint = (
        None
        if config.model_checkpoint == "none"
        else open_checkpoint(config.model_checkpoint, "--model_checkpoint")
    )
    run = start_run(config)

    # The task, and a model with a head for it that begins where the checkpoint ends.
    task = open_task(
        config, config.tokenizer or (str(checkpoint.folder) if checkpoint else "bert-base-cased")
    )
    model = build_model(config, task.kind.model_class, task.kind.num_outputs, len(task.tokenizer), checkpoint)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    optimizers = build_optimizers(model.to(run.device), config)
    n_parameters, n_trained = count_parameters(model)
    best = best_weights(config, task, model, run)

    # Its examples as the model reads them.
    length = max_length(config, model.config)
    collate = task.kind.collator_class.for_model(model.config, task.tokenizer, length, config.truncation)
    train, valid = (task.kind.model_inputs(split, collate) for split in (task.train, task.examples("valid")))
    chosen = choose_subset(task.train.labels, config.train_subset_size or len(task.train), config.seed)
    n_rows = rows_per_process(config, run)
    batches = TaskBatches(
        train, train.indices_of(chosen), collate, n_rows, config.seed, run.rank, run.world_size
    )
    check_resumable(config, run, len(batches))
    mask = (
        Masking(task.tokenizer, config.mlm_probability)
        if config.lm_loss_coef and not model.config.causal
        else None
    )

    # All input has been read: from here on, there is a run folder.
    describe(run, task, model, checkpoint, len(chosen), step_sizes(batches))

    def evaluate_on(examples: Examples) -> dict[str, float]:
        return evaluate(task, examples, model, collate, run, config.valid_batch_size)

    part_tokens = config.part_tokens or (1024 if run.device.type == "cpu" else 16_384)
    options = LoopOptions.from_flags(config, batches, part_tokens=part_tokens)
    if config.lm_loss_coef:
        batches = WithLMLabels(batches, mask)
    validate = functools.partial(evaluate_on, valid)
    progress = fit(model, optimizers, finetuning_objective(config), batches, validate, best, run, options)

    # The best weights are what counts, in the metrics as in the run folder.
    restore_best(model, run)
    metrics = {f"valid_{name}": value for name, value in best.best.items() if name != "step"} | {
        "best_step": best.best["step"]
    }
    if config.eval_test:
        metrics |= test_metrics(task, collate, evaluate_on)
    metrics |= {
        "n_labels": len(chosen),
        "n_steps": progress.n_steps,
        "examples_per_second": progress.examples_per_second,
    }
    return finish_run(run, metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


# ------------------------------------------------------------------------------------- the task and the model


def describe(
    run: Run,
    task: Task,
    model: TransformerWithClfHead,
    checkpoint: Checkpoint | None,
    n_examples: int,
    sizes: dict,
) -> None:
    """Make the run folder self-contained: config.json and the tokenizer; adapters name the base that they
    belong to.
    """
    shape = {"model": dataclasses.asdict(model.config), "head": dataclasses.asdict(model.head)}
    kind = {
        "kind": task.kind.name,
        "options": dataclasses.asdict(task.kind.options),
        "labels": task.kind.label_names,
        "is_pair": task.is_pair,
    }
    base = None if model.head.tuning.is_full else describe_base(checkpoint, run.folder)
    open_folder(run, **shape, model_class=type(model).__name__, **kind, base=base, **sizes)
    if run.is_main:
        task.tokenizer.save(run.folder / task.tokenizer.file)
    n_parameters, n_trained = count_parameters(model)
    kind = task.kind.name.replace("_", " ") + (
        f", {len(task.kind.label_names)} labels" if task.kind.label_names else ""
    )
    show(
        f"{n_trained:,} of {n_parameters:,} parameters train ({n_trained / n_parameters:.2%}) · {n_examples:,} training examples · {kind}"
    )


# ----------------------------------------------------------------------------------------- losses and metrics


def finetuning_objective(config: FinetuningConfig) -> Objective:
    """Classification loss per example plus, if asked for, the language-modelling loss per token."""

    def losses(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        return model(**batch)

    def count(batch: Batch) -> dict[str, Tensor | int]:
        counts = {"clf": max(1, count_labels(batch["labels"], batch))}
        if "lm_labels" in batch:
            counts["lm"] = (batch["lm_labels"] != IGNORE_INDEX).sum().clamp(min=1)
        return counts

    return Objective(losses, count, {"clf": config.clf_loss_coef, "lm": config.lm_loss_coef})


@dataclass
class WithLMLabels:
    """Batches of a task with the labels of the auxiliary language-modelling loss: the next tokens, or those
    that `mask` hides.
    """

    batches: TaskBatches
    mask: Masking | None

    def __len__(self) -> int:
        return len(self.batches)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        for number, batch in enumerate(self.batches.starting_at(step), start=step):
            yield batch | (
                self.next_tokens(batch) if self.mask is None else self.masked_tokens(batch, number)
            )

    def next_tokens(self, batch: Batch) -> Batch:
        """For a causal model."""
        next_tokens = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)[..., 1:]
        return {"lm_labels": torch.nn.functional.pad(next_tokens, (0, 1), value=IGNORE_INDEX)}

    def masked_tokens(self, batch: Batch, step: int) -> Batch:
        """For a bidirectional model, with the inputs that they are hidden in."""
        input_ids = batch["input_ids"].flatten(0, -2)
        key = (self.batches.seed, step, self.batches.rank)
        masked = self.mask(input_ids, key, slice(0, len(input_ids)), len(input_ids))
        ids, labels = (masked[key].view_as(batch["input_ids"]) for key in ("input_ids", "labels"))
        return {"input_ids": ids, "lm_labels": labels}


def evaluate(
    task: Task,
    examples: Examples,
    model: TransformerWithClfHead,
    collate: Collator,
    run: Run,
    batch_size: int,
) -> dict[str, float]:
    """Loss and metrics of the model on what it reads of a split, computed by all processes together."""
    batches = evaluation_batches(examples, collate, batch_size, run.rank, run.world_size)
    outputs, totals = run_inference(
        model, task.kind, examples, collate, batches, run.to_device, run.autocast, model.task_loss
    )
    if run.world_size > 1:
        parts = [None] * run.world_size
        torch.distributed.all_gather_object(parts, (outputs, totals))
        outputs = {index: output for part, _ in parts for index, output in part.items()}
        totals = sum(part for _, part in parts)
    loss = (totals[0] / totals[1].clamp(min=1)).item()
    return {"loss": loss} | task.kind.measure(examples, [outputs[index] for index in range(len(examples))])


def best_weights(
    config: FinetuningConfig, task: Task, model: TransformerWithClfHead, run: Run
) -> BestWeights:
    """Keep the best model by `--patience_metric`; of a frozen one, only what its base does not have."""
    metric = task.kind.metrics[0] if config.patience_metric == "auto" else config.patience_metric
    if not task.kind.has_metric(metric):
        known = ", ".join(filter(task.kind.has_metric, task.kind.metrics))
        raise UserError(f"--patience_metric {metric} does not apply to {task.kind.name}; take {known}")

    names = saved_names(model, model.head.tuning)

    def weights() -> dict[str, Tensor]:
        return {name: tensor for name, tensor in model.state_dict().items() if name in names}

    return BestWeights(run, weights, metric, higher_is_better=metric != "loss", patience=config.patience)


def test_metrics(
    task: Task, collate: Collator, evaluate_on: Callable[[Examples], dict[str, float]]
) -> dict[str, float]:
    """Metrics of the test split, if there is one that can be read."""
    try:
        test = task.kind.model_inputs(task.examples("test"), collate)
    except UserError as error:
        show(f"no test metrics: {error}")
        return {}
    return {f"test_{name}": value for name, value in evaluate_on(test).items()}


if __name__ == "__main__":
    run_script(finetune, config)
