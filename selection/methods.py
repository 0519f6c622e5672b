"""Methods that say how much each source may help a target; higher scores promise more.

| method | compares | needs |
|---|---|---|
| logme, h-score, knn, linear | the target's labels with embeddings by the fine-tuned model | runs |
| leep, nce | the target's labels with the classes that the fine-tuned model predicts | runs |
| esm-… | the same, with the map in place of the model, and the source's head on top | esm |
| textemb, semb, taskemb | mean embeddings of texts, or gradients, by the cosine | the same |
| vocabulary-overlap | the tokens that occur, by the Jaccard index | tokens |
| frozen-transfer, few-shot | nothing: a new head, or all, is trained on the target for a few steps | runs |
| data-size, random | nothing | |
| fusion | the ranks by all other methods that are asked for | |
"""

import math
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.files import WEIGHTS
from checkpoints.finetuned import load_finetuned
from checkpoints.maps import HEAD
from config.errors import UserError, suggestion
from config.selection import EvaluationConfig, RankConfig
from selection.pool import PooledSource
from selection.representations import sentence_encoder, task_embedding
from selection.target import Target, Train
from selection_logme import LowRankLogME, MappedLogME, score_in_threads
from selection_model import TextEncoder
from selection_scores import fuse_ranks, h_score, knn, leep, linear_probe, logme, nce, ranks
from tasks.embedding import embed

FEATURE_SCORES: dict[str, Callable] = {"logme": logme, "h-score": h_score, "knn": knn, "linear": linear_probe}
FAST_LOGME = {"linear": MappedLogME, "low_rank": LowRankLogME}  # by the architecture of the map
PREDICTION_SCORES = ("leep", "nce")
CLASSES_ONLY = ("h-score", "nce")
LABEL_SCORES = (*FEATURE_SCORES, *PREDICTION_SCORES)
FUSION = "fusion"
NAMES = (
    *(f"esm-{score}" for score in LABEL_SCORES),
    *LABEL_SCORES,
    *("textemb", "semb", "taskemb", "vocabulary-overlap"),
    *("frozen-transfer", "few-shot", "data-size", "random", FUSION),
)


@dataclass
class Views:
    """The target's texts as a source's model or its map sees them; those of the latest source are kept."""

    target: Target
    latest: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def embeddings(self, source: PooledSource, mapped: bool) -> np.ndarray:
        """[rows, embed]. Raises UserError if the map or the model is missing or damaged."""
        key = "mapped" if mapped else "tuned"
        if self.latest.get(key, ("",))[0] != source.name:
            self.latest[key] = source.name, self.apply_map(source) if mapped else self.apply_model(source)
        return self.latest[key][1]

    def base(self, source: PooledSource) -> np.ndarray:
        """[rows, embed], of the base model, as the source's map wants them."""
        base = self.target.embed_base(source.pooling(self.target.base))
        if base.shape[1] != source.map.embed_dim:
            raise UserError(
                f"the map of {source.name} is for embeddings of width {source.map.embed_dim}, but those of "
                f"{self.target.base.name} have {base.shape[1]}; it was made for another base model"
            )
        return base

    def apply_map(self, source: PooledSource) -> np.ndarray:
        with torch.inference_mode():
            return source.map(torch.from_numpy(self.base(source))).numpy()

    def apply_model(self, source: PooledSource) -> np.ndarray:
        encoder = TextEncoder(source.model().transformer, source.pooling(self.target.base))
        return self.target.embed(encoder)


class Method(ABC):
    """One way to score sources for a target."""

    def __init__(self, name: str, target: Target):
        self.name, self.target = name, target

    @abstractmethod
    def scores(self, source: PooledSource) -> list[float]:
        """One for each sample of the target's rows, or one for all. NaN where the method is not defined.

        Raises UserError if what it needs of the source is missing or damaged.
        """

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """[sources, samples], from what `scores` gave for each source; for methods that need all of them."""
        return scores


class LabelMethod(Method):
    """Compares the labels of the target with features or predictions of its texts."""

    def __init__(self, name: str, target: Target, views: Views):
        super().__init__(name, target)
        self.views, self.is_mapped, self.score = views, name.startswith("esm-"), name.removeprefix("esm-")
        self.fast_scores: dict[tuple[str, str], list[Callable[..., float]]] = {}
        if target.is_regression and self.score in CLASSES_ONLY:
            raise UserError(f"--methods {name} is for classes, but the target {target.name} has numbers")

    def scores(self, source: PooledSource) -> list[float]:
        if self.name == "esm-logme" and source.map.architecture in FAST_LOGME:
            return self.scores_of_map(source)
        if self.score in PREDICTION_SCORES:
            return self.scores_of_predictions(source)
        features, score = self.views.embeddings(source, self.is_mapped), FEATURE_SCORES[self.score]
        return [score(features[rows], self.target.labels[rows]) for rows in self.target.samples]

    def scores_of_map(self, source: PooledSource) -> list[float]:
        """What depends on the rows alone is computed for the first source only."""
        kind = source.map.architecture, source.pooling(self.target.base)
        if kind not in self.fast_scores:
            base, labels, logme_of = self.views.base(source), self.target.labels, FAST_LOGME[kind[0]]
            self.fast_scores[kind] = [
                logme_of(base[rows], labels[rows]).score for rows in self.target.samples
            ]
        weights, scores = source.map_weights(), self.fast_scores[kind]
        return score_in_threads(lambda sample: scores[sample](*weights), range(len(scores))).tolist()

    def scores_of_predictions(self, source: PooledSource) -> list[float]:
        """Of a regression, how well the logits of the source's classes fit it."""
        if not source.has_classes:
            return [math.nan]
        logits = source.logits(self.views.embeddings(source, self.is_mapped))
        labels, samples = self.target.labels, self.target.samples
        if self.target.is_regression:
            return [logme(logits[rows], labels[rows]) for rows in samples]
        if self.score == "nce":
            return [nce(logits[rows].argmax(1), labels[rows]) for rows in samples]
        probabilities = torch.from_numpy(logits).softmax(1).numpy()
        return [leep(probabilities[rows], labels[rows]) for rows in samples]


class EmbeddingSimilarity(Method):
    """The cosine of mean embeddings of the two tasks' texts: TextEmb and SEmb."""

    def __init__(self, name: str, target: Target, sentence_model: str | None):
        super().__init__(name, target)
        if name == "textemb":
            embeddings = target.embed_base("mean")
        else:
            encoder, texts = sentence_encoder(target.texts, sentence_model)
            batch_size = target.training.valid_batch_size
            embeddings = embed(encoder.to(target.device), texts, batch_size, target.to_device).numpy()
        self.means = [torch.from_numpy(embeddings[rows].mean(0)) for rows in target.samples]

    def scores(self, source: PooledSource) -> list[float]:
        mean = source.representation(self.name)["mean"]
        return [cosine(mean, own) for own in self.means]


class VocabularyOverlap(Method):
    """The Jaccard index of the tokens that occur in the two tasks."""

    def __init__(self, name: str, target: Target):
        super().__init__(name, target)
        texts = target.texts
        self.tokens = [
            replace(texts, chosen=texts.chosen[rows]).tokens().numpy()
            for rows in map(np.unique, target.samples)
        ]

    def scores(self, source: PooledSource) -> list[float]:
        theirs = source.representation("tokens")["token_ids"].numpy()
        shared = [len(np.intersect1d(theirs, own, assume_unique=True)) for own in self.tokens]
        return [n / (len(theirs) + len(own) - n) for n, own in zip(shared, self.tokens, strict=True)]


class DataSize(Method):
    """How many examples the source was trained on."""

    def scores(self, source: PooledSource) -> list[float]:
        n_train = source.about.get("n_train") or source.about.get("num_examples")
        return [math.nan if n_train is None else float(n_train)]


class Random(Method):
    """What any method has to beat."""

    def scores(self, source: PooledSource) -> list[float]:
        seed = self.target.training.seed, zlib.crc32(source.name.encode())
        return np.random.default_rng(seed).random(len(self.target.samples)).tolist()


class TaskSimilarity(Method):
    """TaskEmb: cosines of the two tasks' squared gradients, for each weight of the model one."""

    def __init__(self, name: str, target: Target, finetune: Train):
        super().__init__(name, target)
        with tempfile.TemporaryDirectory() as folder:
            target.fine_tune(finetune, target.base.name, folder)
            model = load_finetuned(folder, "--target").to(target.device)
        batch_size = target.training.train_batch_size
        self.embedding = task_embedding(model, target.texts, batch_size, target.to_device)

    def scores(self, source: PooledSource) -> list[float]:
        """One for each weight."""
        theirs = source.representation("taskemb")
        if theirs.keys() != self.embedding.keys():
            raise UserError(f"the task embedding of {source.name} is of other weights than the target's")
        return [cosine(theirs[name], own) for name, own in self.embedding.items()]

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The ranks by each weight are fused (Schulte et al. 2024, section 4)."""
        fused = np.full((len(scores), 1), math.nan)
        is_defined = ~np.isnan(scores).any(axis=1)
        fused[is_defined, 0] = fuse_ranks(np.stack([ranks(by_weight) for by_weight in scores[is_defined].T]))
        return fused


class ShortTraining(Method):
    """What the target reaches on its validation split after a few steps from the source's model: in full
    (few-shot: Poth et al. 2021, section 4.3), or with the head alone (frozen-transfer)."""

    FROZEN_LR = 1e-3  # a new head on fixed features needs larger steps than a model

    def __init__(self, name: str, target: Target, finetune: Train, n_steps: int):
        super().__init__(name, target)
        self.finetune, self.n_steps = finetune, n_steps

    def scores(self, source: PooledSource) -> list[float]:
        changes: dict[str, object] = {"n_steps": self.n_steps, "eval_every": self.n_steps, "eval_test": False}
        if self.name == "frozen-transfer":
            changes |= {"tuning": "head", "adapters_dim": 0, "lr": self.FROZEN_LR}
        with tempfile.TemporaryDirectory() as folder:
            start = str(source.run_folder)
            metrics = self.target.fine_tune(self.finetune, start, folder, **changes)
        return [metrics[f"valid_{self.target.metric}"]]


def build_methods(
    target: Target, names: Sequence[str], config: RankConfig | EvaluationConfig, finetune: Train
) -> list[Method]:
    """The methods of these names, but for a fusion."""
    views = Views(target)
    methods: list[Method] = []
    for name in names:
        if name.removeprefix("esm-") in LABEL_SCORES:
            methods.append(LabelMethod(name, target, views))
        elif name in ("textemb", "semb"):
            methods.append(EmbeddingSimilarity(name, target, config.sentence_model))
        elif name in ("few-shot", "frozen-transfer"):
            methods.append(ShortTraining(name, target, finetune, config.n_steps_few_shot))
        elif name == "taskemb":
            methods.append(TaskSimilarity(name, target, finetune))
        elif name != FUSION:
            methods.append(PLAIN[name](name, target))
    return methods


PLAIN: dict[str, type[Method]] = {
    "vocabulary-overlap": VocabularyOverlap,
    "data-size": DataSize,
    "random": Random,
}


def chosen_names(target: Target, methods: str, sentence_model: str | None) -> list[str]:
    """What `--methods` names, without repetition; `all` are those that are defined for the target.

    Raises UserError for a method that there is not.
    """
    if methods == "all":
        names = [name for name in NAMES if not (target.is_regression and is_for_classes(name))]
        return [name for name in names if name != "semb" or sentence_model]
    names = list(dict.fromkeys(methods.split(",")))
    for name in names:
        if name not in NAMES:
            raise UserError(f"--methods {name} is not one of {', '.join(NAMES)}{suggestion(name, NAMES)}")
    if FUSION in names and len(names) < 3:
        raise UserError("--methods fusion fuses the ranks of other methods; name two or more of them, too")
    return names


def megabytes(names: Sequence[str], source: PooledSource) -> float:
    """The size of the files that these methods read of a source, in 10^6 bytes."""
    files = {file for name in names for file in files_of(name, source)}
    return sum(file.stat().st_size for file in files) / 1e6


def files_of(name: str, source: PooledSource) -> list[Path]:
    if name.startswith("esm-"):
        reads_head = name.removeprefix("esm-") in PREDICTION_SCORES and source.head is not None
        return [source.map_folder / WEIGHTS, *([source.map_folder / HEAD] if reads_head else [])]
    if name in (*LABEL_SCORES, "few-shot", "frozen-transfer"):
        return [source.run_folder / WEIGHTS]
    kind = {"vocabulary-overlap": "tokens"}.get(name, name)
    file = source.pool / kind / source.name / WEIGHTS
    return [file] if file.is_file() else []


def is_for_classes(name: str) -> bool:
    return name.removeprefix("esm-") in CLASSES_ONLY


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two tensors of the same shape; 0 if one of them is zero."""
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))
