"""Methods that say how much each source may help a target; higher scores promise more.

| method | compares | needs |
|---|---|---|
| logme, centred-logme, h-score, | the target's labels with embeddings by the fine-tuned model | runs |
| knn, linear | | |
| leep, nce | the target's labels with the classes that the fine-tuned model predicts | runs |
| esm-… | the same, with the map in place of the model, and the source's head on top | esm |
| textemb, semb, taskemb | mean embeddings of texts, or gradients, by the cosine | the same |
| vocabulary-overlap | the tokens that occur, by the Jaccard index | tokens |
| frozen-transfer, few-shot | nothing: a new head, or all, is trained on the target for a few steps | runs |
| data-size, random | nothing | |
| fusion | the ranks by all other methods that are asked for, but random | |
"""

import dataclasses
import math
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoints.encoders import open_encoder
from checkpoints.files import CONFIG
from checkpoints.finetuned import load_finetuned
from config.errors import UserError
from config.finetuning import TuningArguments
from config.presets import read_json
from config.selection import EvaluationConfig, RankConfig
from selection.pool import PooledSource, Space
from selection.representations import in_tokens_of, open_sentence_model, task_embedding
from selection.target import Target, Train
from selection.views import Views
from selection_logme import LowRankLogME, MappedLogME, score_in_threads
from selection_scores import centred_logme, fuse_ranks, h_score, knn, leep, linear_probe, logme, nce, ranks

CENTRED = "centred-logme"
FEATURE_SCORES: dict[str, Callable] = {"logme": logme, CENTRED: centred_logme, "h-score": h_score}
FEATURE_SCORES |= {"knn": knn, "linear": linear_probe}
FAST_LOGME = {"linear": MappedLogME, "low_rank": LowRankLogME}  # by the architecture of the map
PREDICTION_SCORES = ("leep", "nce")
CLASSES_ONLY = ("nce",)
LABEL_SCORES = (*FEATURE_SCORES, *PREDICTION_SCORES)
FUSION = "fusion"
NAMES = (
    *(f"esm-{score}" for score in LABEL_SCORES),
    *LABEL_SCORES,
    *("textemb", "semb", "taskemb", "vocabulary-overlap"),
    *("frozen-transfer", "few-shot", "data-size", "random", FUSION),
)


class Method(ABC):
    """One way to score sources for a target."""

    def __init__(self, name: str, target: Target):
        self.name, self.target = name, target

    def prepare(self, source: PooledSource) -> None:  # noqa: B027 (most methods have nothing to prepare)
        """Do what is done once for all sources like this one."""

    @abstractmethod
    def scores(self, source: PooledSource) -> list[float]:
        """One for each sample of the target's rows, or one for all. NaN where the method is not defined.

        Raises UserError if what it needs of the source is missing or damaged.
        """

    def take_saved_seconds(self) -> float:
        """How much longer `scores` would have taken if no other method had been there before."""
        return 0.0

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """[sources, samples], from what `scores` gave for each source; for methods that need all of them."""
        return scores


class LabelMethod(Method):
    """Compares the labels of the target with features or predictions of its texts."""

    def __init__(self, name: str, target: Target, views: Views):
        super().__init__(name, target)
        self.views, self.is_mapped, self.score = views, name.startswith("esm-"), name.removeprefix("esm-")
        self.fast_scores: dict[tuple[str, Space], list[Callable[..., float]]] = {}
        if target.is_regression and self.score in CLASSES_ONLY:
            raise UserError(f"--methods {name} is for classes, but the target {target.name} has numbers")

    def prepare(self, source: PooledSource) -> None:
        """The embeddings of the base model, and of fast LogME what depends on the target's rows alone."""
        if not self.is_mapped:
            return
        base, labels, key = self.views.base(source), self.target.labels, self.key_of(source)
        is_fast = self.score in ("logme", CENTRED) and key[0] in FAST_LOGME
        if is_fast and key not in self.fast_scores:
            samples = [(base[rows], labels[rows]) for rows in self.target.samples]
            if self.score == CENTRED:  # a map of centred embeddings is centred, without its bias
                samples = [(features - features.mean(0), own) for features, own in samples]
            self.fast_scores[key] = [FAST_LOGME[key[0]](*sample).score for sample in samples]
        source.forget()

    def key_of(self, source: PooledSource) -> tuple[str, Space]:
        return source.map.architecture, source.space(self.target.base)

    def scores(self, source: PooledSource) -> list[float]:
        if self.fast_scores and (scores := self.fast_scores.get(self.key_of(source))):
            *weights, bias = source.map_weights()
            weights.append(0 * bias if self.score == CENTRED else bias)
            return score_in_threads(lambda sample: scores[sample](*weights), range(len(scores))).tolist()
        if self.score in PREDICTION_SCORES:
            return self.scores_of_predictions(self.views.logits(source, self.is_mapped))
        view, score = self.views.of(source, self.is_mapped), FEATURE_SCORES[self.score]
        return [score(view.embeddings[rows], self.target.labels[rows]) for rows in self.target.samples]

    def scores_of_predictions(self, logits: NDArray | None) -> list[float]:
        """Of logits [rows, classes]; for a regression, how well they fit it."""
        if logits is None:
            return [math.nan]
        labels, samples = self.target.labels, self.target.samples
        if self.target.is_regression:
            return [logme(logits[rows], labels[rows]) for rows in samples]
        if self.score == "nce":
            return [nce(logits[rows].argmax(1), labels[rows]) for rows in samples]
        probabilities = torch.from_numpy(logits).softmax(1).numpy()
        return [leep(probabilities[rows], labels[rows]) for rows in samples]

    def take_saved_seconds(self) -> float:
        return self.views.take_saved_seconds()


class EmbeddingSimilarity(Method):
    """The cosine of mean embeddings of the two tasks' texts: TextEmb and SEmb."""

    def __init__(self, name: str, target: Target, sentence_model: str | None):
        super().__init__(name, target)
        self.sentence_digest = None
        if name == "textemb":
            embeddings = target.embed_base(Space("mean"))
        else:
            model = open_sentence_model(sentence_model)
            self.sentence_digest = model.digest
            embeddings = target.embed(open_encoder(model, "mean"), in_tokens_of(model, target.texts))
        self.means = [torch.from_numpy(embeddings[rows].mean(0)) for rows in target.samples]

    def scores(self, source: PooledSource) -> list[float]:
        mean = source.representation(self.name)["mean"]
        about = read_json(source.pool / self.name / source.name / CONFIG)
        if about.get("sentence_sha256") != self.sentence_digest:
            raise UserError(f"the semb of {source.name} was made with another --sentence_model")
        return [cosine(mean, own) for own in self.means]


class VocabularyOverlap(Method):
    """The Jaccard index of the tokens that occur in the two tasks."""

    def __init__(self, name: str, target: Target):
        super().__init__(name, target)
        texts = target.texts
        self.tokens = [
            dataclasses.replace(texts, chosen=texts.chosen[rows]).tokens().numpy() for rows in target.samples
        ]

    def scores(self, source: PooledSource) -> list[float]:
        theirs = source.representation("tokens")["token_ids"].numpy()
        shared = [len(np.intersect1d(theirs, own, assume_unique=True)) for own in self.tokens]
        return [n / (len(theirs) + len(own) - n) for n, own in zip(shared, self.tokens, strict=True)]


class DataSize(Method):
    """How many examples the source was trained on."""

    def scores(self, source: PooledSource) -> list[float]:
        n_train = source.about.get("n_train") or source.about.get("num_examples")  # of published maps
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
        self.embedding = task_embedding(model, target.texts, target.to_device)

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


TUNING_FLAGS = [field.name for field in dataclasses.fields(TuningArguments)]


class ShortTraining(Method):
    """What the target reaches on its validation split after a few steps from the source's model: in full
    (few-shot: Poth et al. 2021, section 4.3), or with the head alone (frozen-transfer)."""

    FROZEN_LR = 1e-3  # a new head on fixed features needs larger steps than a model

    def __init__(self, name: str, target: Target, finetune: Train, n_steps: int):
        super().__init__(name, target)
        self.finetune, self.n_steps = finetune, n_steps

    def scores(self, source: PooledSource) -> list[float]:
        trained = source.training()
        # Adapters go on as what they are. So few steps leave no time for a warm-up.
        changes = {name: getattr(trained, name) for name in TUNING_FLAGS}
        changes |= {"n_steps": self.n_steps, "eval_every": self.n_steps, "eval_test": False}
        changes |= {"n_warmup": 0, "warmup_ratio": 0.0}
        if self.name == "frozen-transfer":
            if trained.tuning not in ("full", "head"):
                raise UserError(f"frozen-transfer is for whole models, but {source.name} is {trained.tuning}")
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


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two tensors of the same shape; 0 if one of them is zero."""
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))
