# PYTHON_ARGCOMPLETE_OK
"""Represent source tasks, so that selection_rank.py can say which of them will help a target task.

python selection_train.py --sources mnli,trec,my_folder --model_checkpoint hf:bert-base-uncased
python selection_train.py --sources runs/mnli,runs/trec          models that are fine-tuned already
python selection_train.py --sources mnli,trec --esm low_rank     smaller maps, which rank faster
python selection_train.py --sources hub: --model_checkpoint hf:bert-base-multilingual-uncased

Each source becomes an Embedding Space Map (Schulte et al. 2024): what fine-tuning on it does to embeddings of
texts, as a map from those of the base model. The same command continues a pool, also with more sources.
"""

from config.command_line import parse_arguments, run_script
from config.selection import SelectionConfig

if __name__ == "__main__":
    config = parse_arguments(SelectionConfig, __doc__)  # before the slow imports: --help answers at once

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from checkpoints.encoders import open_encoder
from checkpoints.files import WEIGHTS, save_weights
from checkpoints.locking import locked
from checkpoints.maps import HEAD, map_sections
from checkpoints.pretrained import Checkpoint, open_checkpoint
from config.errors import termination_as_exit
from config.selection import RepresentationConfig
from experiments.engines import open_engine
from experiments.graph import Metrics
from experiments.notify import notified
from experiments.task_map import file_name
from finetuning_model import TransformerWithClfHead
from finetuning_train import finetune
from selection.hub import PUBLISHED, fetch_published, find_published, means_maps, names_of_maps, publish
from selection.jobs import open_pool_graph, write_pool_config
from selection.representations import represent
from selection.sources import FinetunedSource
from selection_model import EmbeddingSpaceMap, TextEncoder, build_map, fit_low_rank, fit_ridge
from tasks.embedding import TaskTexts, embed
from training.evaluation import BestWeights, restore_best
from training.loop import fit
from training.optimizers import build_optimizers
from training.step import LoopOptions, Objective
from utils import Batch, Run, derive_seed, finish_run, logger, open_folder, show, show_messages, start_run

CLOSED_FORMS = ("ridge", "low_rank")
WITH_HEAD = ("classification", "regression")  # kinds whose head labels an embedding


@notified
def train_sources(config: SelectionConfig) -> dict[str, Metrics]:
    """Fine-tune on each source and represent it, as far as that is not done; return the metrics of each
    representation, by name, such as `esm/mnli`.

    Raises UserError for input that cannot be used, before anything is trained, and TrainingFailed at the end
    if some trainings failed.
    """
    show_messages()
    if config.list_maps:
        return list_maps(config)
    engine = open_engine(config)
    graph, base = open_pool_graph(config, finetune, represent_source)
    published = find_published(config, base)
    with engine, locked(graph.folder), termination_as_exit():
        write_pool_config(config, graph.folder, base)
        fetch_published(published, graph.folder)
        show(f"{len(graph.jobs)} jobs in {graph.folder}")
        outcome = graph.run(engine)
        publish(config, graph)
    outcome.check()
    return {name: metrics for name, metrics in outcome.metrics.items() if not name.startswith("runs/")}


def represent_source(config: RepresentationConfig) -> Metrics:
    """Write one representation of a fine-tuned source into a folder of its own; return how good it is.

    Raises UserError for input that cannot be used.
    """
    run = start_run(config)
    source = FinetunedSource.open(config.source, config.dataset_cache)
    if config.represent == "esm":
        return learn_map(config, source, run)
    tensors, about = represent(source, config, run)
    open_folder(run, source=source.reference(run.folder), **about)
    save_weights(run.folder / WEIGHTS, tensors)
    return finish_run(run, {"n_numbers": sum(tensor.numel() for tensor in tensors.values())})


def list_maps(config: SelectionConfig) -> dict[str, Metrics]:
    """Print the names of the published maps that `--sources` means, one a line."""
    base_model = str(config.training.get("model_checkpoint"))
    for entry in filter(means_maps, (config.sources or PUBLISHED).split(",")):
        print("\n".join(names_of_maps(entry, base_model, "--sources")))
    return {}


# --------------------------------------------------------------------------------------------------- the maps


class EmbeddedTexts(NamedTuple):
    """The same texts as two models embed them, both [texts, embed]."""

    base: Tensor
    tuned: Tensor


@dataclass
class EmbeddingBatches:
    """Batches to learn a map from, as `training.step.Batches` wants them."""

    texts: EmbeddedTexts
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(len(self.texts.base) / self.batch_size)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from a step on."""
        while True:
            epoch, first = divmod(step, len(self))
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(len(self.texts.base), generator=generator)
            for indices in order.split(self.batch_size)[first:]:
                yield {"embeddings": self.texts.base[indices], "labels": self.texts.tuned[indices]}
                step += 1


def learn_map(config: RepresentationConfig, source: FinetunedSource, run: Run) -> Metrics:
    """Embed the source's texts with both models, learn the map between them, and write it with the head."""
    base = open_checkpoint(config.model_checkpoint, "--model_checkpoint")
    model = source.model()
    before, after = open_encoder(base, source.pooling), TextEncoder(model.transformer, source.pooling)

    def embed_twice(texts: TaskTexts) -> EmbeddedTexts:
        rows = (texts, config.valid_batch_size, run.to_device)
        return EmbeddedTexts(embed(before.to(run.device), *rows), embed(after.to(run.device).eval(), *rows))

    train, valid = embed_twice(source.texts(config.n_texts)), embed_twice(source.valid_texts(config.n_texts))

    # What hf-dataset-selector wants to know of a map stands in config.json, beside what a run's has.
    fitted = new_map(config, train)
    about = about_source(config, source, len(train.base), base)
    open_folder(run, source=source.reference(run.folder), **map_sections(fitted, about))
    if config.esm in CLOSED_FORMS:
        save_weights(run.folder / WEIGHTS, fitted.state_dict())
    else:
        train_map(config, fitted, train, valid, run)
    if source.task.kind.name in WITH_HEAD:
        save_weights(run.folder / HEAD, head_weights(model))
    metrics = measure_map(fitted, valid)
    if metrics["explained"] < 0:
        hint = "raise --esm_n_epochs or --esm_lr, or take --esm ridge"
        logger.warning(f"{run.folder}: the map is worse than none, since it was trained too little; {hint}")
    return finish_run(run, metrics | {"n_texts": len(train.base)})


def new_map(config: RepresentationConfig, train: EmbeddedTexts) -> EmbeddingSpaceMap:
    """The best map, if there is a closed form for it; else one to be trained."""
    if config.esm == "ridge":
        return fit_ridge(train.base, train.tuned)
    rank = min(config.esm_rank, train.base.size(1))
    if config.esm == "low_rank":
        return fit_low_rank(train.base, train.tuned, rank)
    return build_map(config.esm, train.base.size(1), rank)


def train_map(
    config: RepresentationConfig,
    fitted: EmbeddingSpaceMap,
    train: EmbeddedTexts,
    valid: EmbeddedTexts,
    run: Run,
) -> None:
    """Gradient descent on the squared error (section 3 of the paper); the best epoch counts."""
    batches = EmbeddingBatches(train, config.train_batch_size, config.seed)
    objective = Objective(
        losses=lambda model, batch: {"mse": model(**batch)},
        counts=lambda batch: {"mse": len(batch["labels"])},
        weights={"mse": 1.0},
    )
    best = BestWeights(run, fitted.state_dict, "error", higher_is_better=False)
    optimizers = build_optimizers(fitted.to(run.device), config)
    options = LoopOptions.from_flags(config, batches)
    fit(fitted, optimizers, objective, batches, lambda: measure_map(fitted, valid), best, run, options)
    restore_best(fitted, run)


@torch.no_grad()
def measure_map(fitted: EmbeddingSpaceMap, texts: EmbeddedTexts) -> dict[str, float]:
    """The mean squared error, and which share of what fine-tuning changed the map explains (1: all)."""
    device = next(fitted.parameters()).device
    mapped = fitted(texts.base.to(device)).cpu()
    error, change = ((texts.tuned - guess).square().mean().item() for guess in (mapped, texts.base))
    return {"error": error, "explained": 1 - error / change if change else math.nan}


def head_weights(model: TransformerWithClfHead) -> dict[str, Tensor]:
    head = model.classification_head.state_dict()
    return {name: head[name] for name in ("weight", "bias")}


def about_source(
    config: RepresentationConfig, source: FinetunedSource, n_texts: int, base: Checkpoint
) -> dict[str, object]:
    """What config.json says of a map, with the keys of hf-dataset-selector and some of our own."""
    training, kind = source.arguments, source.task.kind
    is_trained = config.esm not in CLOSED_FORMS
    trained = {
        "esm_num_epochs": config.n_epochs,
        "esm_batch_size": config.train_batch_size,
        "esm_learning_rate": config.lr,
        "esm_weight_decay": config.weight_decay,
        "esm_optimizer": "AdamW",
    }
    return {
        "base_model_name": base.name.removeprefix("hf:"),
        "base_sha256": base.digest,
        "task_id": path if (path := training.dataset_path).startswith("hub:") else file_name(path),
        "task_split": "train",
        "num_examples": n_texts,
        "seed": training.seed,
        "text_column": training.text_column,
        "label_column": training.label_column,
        "lm_num_epochs": training.n_epochs,
        "lm_batch_size": training.train_batch_size,
        "lm_learning_rate": training.lr,
        "lm_weight_decay": training.weight_decay,
        "lm_optimizer": training.optimizer,
        **(trained if is_trained else {}),
        "esm_embedding": source.pooling,
        "kind": kind.name,
        "labels": kind.label_names,
        "n_train": len(source.seen),
    }


if __name__ == "__main__":
    run_script(train_sources, config)
