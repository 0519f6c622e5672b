"""Fine-tune a pretrained transformer on a labelled task: in full, with adapters, or from scratch for comparison.

    python finetuning_train.py --model_checkpoint RUN_FOLDER                       IMDb
    python finetuning_train.py --model_checkpoint RUN_FOLDER --adapters_dim 32     train adapters alone
    python finetuning_train.py --model_checkpoint none --tokenizer bert-base-cased from scratch
    python finetuning_train.py --dataset_path my_folder                            train/valid/test files of your own
"""
from dataclasses import dataclass

from arguments import ModelArguments, OptimizationArguments, RunArguments, flag, parse_arguments, run_script


@dataclass
class FinetuningConfig(ModelArguments, OptimizationArguments, RunArguments):
    """task"""

    model_checkpoint: str | None = flag(None, "run folder of a pretraining, or none: from scratch (default: the newest in runs/)")
    finetuning_model_class: str = flag("TransformerWithClfHead", "class of finetuning_model.py to fine-tune")
    dataset_path: str = flag("imdb", "task: a short name, hub:owner/name[:config], a folder or a file")
    text_column: str | None = flag(None, "column of the texts (default: text)")
    text_pair_column: str | None = flag(None, "column of the second texts of pairs (default: text_pair, if there is one)")
    label_column: str | None = flag(None, "column of the labels (default: label)")
    dataset_cache: str = flag("dataset_cache", "folder for encoded datasets")
    tokenizer: str | None = flag(None, "as in pretraining (default: the checkpoint's own)")
    num_classes: int | None = flag(None, "number of classes; 1: regression (default: inferred from the labels)", least=1)
    train_subset_size: int | None = flag(None, "train on so many examples, drawn by the seed (default: all)", least=1)
    max_length: int | None = flag(None, "longest input, in tokens (default: num_max_positions)", least=4)
    truncation: str = flag("head", "which end of a longer text to keep; both: a quarter of head, the rest of tail", ("head", "tail", "both"))
    pooling: str = flag("cls", "what the head sees: the state of [CLS], the mean or maximum over the text, or several of them",
                        ("cls", "mean", "max", "cls_mean", "cls_mean_max"))  # fmt: skip
    adapters_dim: int = flag(0, "width of the adapters; 0: train the whole model", least=0)
    clf_loss_coef: float = flag(1.0, "weight of the classification loss", least=0)
    lm_loss_coef: float = flag(0.0, "weight of the auxiliary language-modelling loss; 0: not computed", least=0)
    mlm_probability: float = flag(0.15, "fraction of the tokens to predict, for the auxiliary loss of an mlm model", least=0.001, most=1)
    patience: int = flag(0, "stop after so many evaluations without progress; 0: never", least=0)
    patience_metric: str = flag("auto", "what progress is (auto: accuracy, or pearson for regression)",
                                ("auto", "accuracy", "macro_f1", "matthews", "pearson", "spearman", "loss"))  # fmt: skip
    eval_test: bool = flag(True, "measure the best model on the test split, if there is one")

    # The defaults that differ from pretraining's.
    train_batch_size: int = flag(16, "sequences per process and forward pass", least=1)
    part_tokens: int | None = flag(None, "tokens of a batch that are computed at once, in sequences of similar length (default: 1,024 on a CPU, 16,384 on a GPU)", least=1)
    valid_batch_size: int = flag(32, "sequences per process in an evaluation", least=1)
    lr: float = flag(6e-5, "peak learning rate of AdamW", least=0)
    n_epochs: int = flag(3, "passes over the training data", least=0)
    n_warmup: int = flag(500, "optimizer steps of linear warm-up", least=0)
    schedule: str = flag("linear", "decay of the learning rate to 0 after the warm-up", ("cosine", "linear"))


if __name__ == "__main__":
    config = parse_arguments(FinetuningConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

import finetuning_model
from arguments import UserError
from data import Batch, Masking
from finetuning_model import HeadConfig, TransformerWithClfHead, added_parameters, find_model_class
from pretraining_model import TransformerConfig
from pretraining_train import model_config
from tasks import Collator, Examples, Task, TaskBatches, choose_subset, evaluation_batches, labelled_batch
from training import (
    BestWeights,
    Objective,
    attach_checkpoints,
    attach_evaluation,
    attach_logging,
    attach_schedule,
    build_optimizers,
    create_trainer,
    restore_best,
    run_training,
    wrap_model,
)
from utils import (
    CONFIG,
    IGNORE_INDEX,
    WEIGHTS,
    Run,
    count_parameters,
    file_digest,
    finish_run,
    load_into,
    load_weights,
    open_folder,
    read_run_config,
    show,
    start_run,
)


def finetune(config: FinetuningConfig) -> dict[str, float]:
    """Fine-tune a model; return `valid_accuracy` and the like of its best evaluation, `test_…`, `examples_per_second`, ….

    Raises UserError for input that cannot be used.
    """
    config = dataclasses.replace(config, model_checkpoint=config.model_checkpoint or newest_checkpoint())
    checkpoint = None if config.model_checkpoint == "none" else config.model_checkpoint
    pretrained = read_run_config(checkpoint, "--model_checkpoint") if checkpoint else None
    run = start_run(config)
    columns = {"text": config.text_column, "text_pair": config.text_pair_column, "label": config.label_column}
    tokenizer = config.tokenizer or checkpoint or "bert-base-cased"
    task = Task(config.dataset_path, tokenizer, config.dataset_cache, columns, config.num_classes)
    model = build_model(config, task, pretrained, checkpoint)
    collate = Collator(task.tokenizer, max_length(config, model.config), model.config.causal, config.truncation)
    valid = task.examples("valid")
    best = best_weights(config, task, model, run)
    describe(run, task, model, checkpoint)

    chosen = choose_subset(task.train.labels, config.train_subset_size or len(task.train), config.seed)
    n_rows = config.train_batch_size * config.gradient_accumulation_steps
    batches = TaskBatches(task.train, chosen, collate, n_rows, config.seed, run.rank, run.world_size)
    n_steps = len(batches) * config.n_epochs if config.n_steps is None else config.n_steps

    wrapped = wrap_model(model, run)
    optimizers = build_optimizers(model, config)
    part_tokens = config.part_tokens or (1024 if run.device.type == "cpu" else 16_384)
    trainer = create_trainer(wrapped, optimizers, finetuning_objective(config), run, part_tokens)

    attach_schedule(trainer, optimizers, config, n_steps)
    timer = attach_logging(trainer, optimizers, run)
    attach_evaluation(trainer, lambda: measure(task, valid, predict(model, valid, collate, run)), best, run, len(batches))
    attach_checkpoints(trainer, model, optimizers, best, run)
    run_training(trainer, lambda step: with_lm_labels(batches, step, config, model, task), len(batches), n_steps)

    metrics = {f"valid_{name}": value for name, value in best.best.items() if name != "step"} | {"best_step": best.best["step"]}
    metrics |= test_metrics(config, task, model, collate, run)
    n_parameters, n_trained = count_parameters(model)
    speed = trainer.n_examples / timer.value() if trainer.n_examples else 0.0
    metrics |= {"n_labels": len(chosen), "n_steps": trainer.state.iteration, "examples_per_second": speed}
    return finish_run(run, metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


# ------------------------------------------------------------------------------------------------------ the model


def newest_checkpoint() -> str:
    """The newest pretraining run under runs/. Raises UserError if there is none."""
    folders = [file.parent for file in Path("runs").glob(f"**/{WEIGHTS}") if (file.parent / CONFIG).is_file()]
    folders = [folder for folder in folders if "labels" not in read_run_config(folder, "runs")]
    if not folders:
        raise UserError("there is no pretrained model under runs/; run pretraining_train.py first, name a run folder with --model_checkpoint, or none to train from scratch")
    return str(max(folders, key=lambda folder: (folder / WEIGHTS).stat().st_mtime))


def build_model(config: FinetuningConfig, task: Task, pretrained: dict | None, checkpoint: str | None) -> TransformerWithClfHead:
    """A model with a new head and the checkpoint's weights. Raises UserError if they do not fit."""
    if pretrained:
        shape = TransformerConfig(**pretrained["model"] | {"dropout": config.dropout, "attention_dropout": config.attention_dropout})
        if shape.num_embeddings != len(task.tokenizer):
            raise UserError(f"--tokenizer has {len(task.tokenizer)} tokens, but {checkpoint} was pretrained with {shape.num_embeddings}; leave --tokenizer out")
    else:
        shape = model_config(config, len(task.tokenizer))
    head = HeadConfig(len(task.label_names or [None]), config.pooling, config.adapters_dim, config.initializer_range)
    if config.adapters_dim and not checkpoint:
        raise UserError("--adapters_dim needs a pretrained model to adapt; name one with --model_checkpoint")
    model = find_model_class(config.finetuning_model_class)(shape, head)
    if model.output_bias is not None and not config.lm_loss_coef:
        model.output_bias.requires_grad = False  # several processes would wait for its gradient, which never comes
    if checkpoint:
        load_into(model, load_weights(Path(checkpoint) / WEIGHTS), f"--model_checkpoint {checkpoint}", added_parameters(model))
    return model


def max_length(config: FinetuningConfig, shape: TransformerConfig) -> int:
    """The longest input. Raises UserError if the model has fewer positions."""
    if config.max_length and config.max_length > shape.num_max_positions:
        raise UserError(f"--max_length {config.max_length} is more than the model's {shape.num_max_positions} positions")
    return config.max_length or shape.num_max_positions


def describe(run: Run, task: Task, model: TransformerWithClfHead, checkpoint: str | None) -> None:
    """Make the run folder self-contained: config.json and vocab.txt; adapters name the base that they belong to."""
    base = None
    if model.head.adapters_dim and checkpoint:
        folder = Path(checkpoint).resolve()
        base = {"path": str(folder), "relative_path": os.path.relpath(folder, run.folder.resolve()), "sha256": file_digest(folder / WEIGHTS)}
    shape = {"model": dataclasses.asdict(model.config), "head": dataclasses.asdict(model.head)}
    open_folder(run, **shape, labels=task.label_names, texts_per_example=task.train.texts_per_example, base=base)
    if run.is_main:
        task.tokenizer.save(run.folder / "vocab.txt")
    n_parameters, n_trained = count_parameters(model)
    kind = f"{len(task.label_names)} classes" if task.label_names else "regression"
    show(f"{n_trained:,} of {n_parameters:,} parameters train ({n_trained / n_parameters:.2%}) · {len(task.train):,} training examples · {kind}")


# ------------------------------------------------------------------------------------------------- losses and metrics


def finetuning_objective(config: FinetuningConfig) -> Objective:
    """Classification loss per example plus, if asked for, the language-modelling loss per token."""

    def losses(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        return model(**batch)

    def counts(batch: Batch) -> dict[str, Tensor | int]:
        found = {"clf": len(batch["labels"])}
        if "lm_labels" in batch:
            found["lm"] = (batch["lm_labels"] != IGNORE_INDEX).sum().clamp(min=1)
        return found

    return Objective(losses, counts, {"clf": config.clf_loss_coef, "lm": config.lm_loss_coef})


def with_lm_labels(batches: TaskBatches, step: int, config: FinetuningConfig, model: TransformerWithClfHead, task: Task) -> Iterator[Batch]:
    """The stream of batches from a step on, with the labels of the auxiliary loss if it is asked for."""
    mask = Masking(task.tokenizer, config.mlm_probability)
    for number, batch in enumerate(batches.starting_at(step), start=step):
        if not config.lm_loss_coef:
            yield batch
        elif model.config.causal:
            next_tokens = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)[:, 1:]
            yield batch | {"lm_labels": torch.nn.functional.pad(next_tokens, (0, 1), value=IGNORE_INDEX)}
        else:
            n_rows = len(batch["labels"])
            masked = mask(batch["input_ids"], (config.seed, number, batches.rank), slice(0, n_rows), n_rows)
            yield batch | {"input_ids": masked["input_ids"], "lm_labels": masked["labels"]}


def predict(model: TransformerWithClfHead, examples: Examples, collate: Collator, run: Run) -> np.ndarray:
    """Logits [examples, num_outputs] in the order of the examples, computed by all processes together."""
    logits = torch.zeros(len(examples), model.head.num_outputs, device=run.device)

    @torch.inference_mode()
    def inference(engine: Engine, indices: np.ndarray) -> None:
        batch = run.to_device(labelled_batch(examples, indices, collate))
        with run.autocast():
            logits[indices] = model(batch["input_ids"], batch["attention_mask"])

    model.eval()
    batches = evaluation_batches(examples, collate, run.config.valid_batch_size, run.rank, run.world_size)
    if batches:
        Engine(inference).run(batches)
    return (idist.all_reduce(logits) if run.world_size > 1 else logits).cpu().numpy()  # every row was one process's


def measure(task: Task, examples: Examples, logits: np.ndarray) -> dict[str, float]:
    """Loss, and accuracy, macro F1 and Matthews correlation, or Pearson and Spearman correlation for regression."""
    import scipy.stats
    import sklearn.metrics

    labels = examples.labels
    loss = finetuning_model.classification_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item() / len(labels)
    if task.label_names is None:
        return {"loss": loss} | {
            name: float(np.nan_to_num(correlation(logits[:, 0], labels).statistic))  # constant predictions have none
            for name, correlation in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr))
        }
    predicted = logits.argmax(1)
    return {
        "loss": loss,
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="macro")),
        "matthews": float(sklearn.metrics.matthews_corrcoef(labels, predicted)),
    }


def best_weights(config: FinetuningConfig, task: Task, model: TransformerWithClfHead, run: Run) -> BestWeights:
    """Keep the best model by `--patience_metric`; with adapters, only what was trained."""
    metric = config.patience_metric
    if metric == "auto":
        metric = "accuracy" if task.label_names else "pearson"
    if metric in (("pearson", "spearman") if task.label_names else ("accuracy", "macro_f1", "matthews")):
        raise UserError(f"--patience_metric {metric} does not apply to {'classification' if task.label_names else 'regression'}")

    def weights() -> dict[str, Tensor]:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in model.state_dict().items() if name in trained or not config.adapters_dim}

    return BestWeights(run, weights, metric, higher_is_better=metric != "loss")


def test_metrics(config: FinetuningConfig, task: Task, model: TransformerWithClfHead, collate: Collator, run: Run) -> dict[str, float]:
    """The best model on the test split: once, at the end, if there is one."""
    restore_best(model, run)
    if not config.eval_test:
        return {}
    try:
        test = task.examples("test")
    except UserError as error:
        show(f"no test metrics: {error}")
        return {}
    return {f"test_{name}": value for name, value in measure(task, test, predict(model, test, collate, run)).items()}


if __name__ == "__main__":
    run_script(finetune, config)
