"""A tag for each word, which the model reads off the word's first token."""

import itertools
from typing import Self

import numpy as np
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from tasks.examples import Examples
from tasks.kind import Kind, KindOptions
from tasks.labels import label_name
from tasks.words import SentenceReader, WordCollator, as_words, scatter
from utils import Batch

NO_TAG = "O"  # of a word that is in no entity, or lies behind the longest input
UNKNOWN = "unknown"  # a tag that training does not have


class TagReader(SentenceReader):
    """Reads words and their tags."""

    columns = {"text": "tokens", "label": "tags"}

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """`text` is a list of words, or words with spaces between them; `label` the tags, likewise."""
        words = as_words(row["text"], where, "words")
        if not labelled:
            return {"text": words}
        tags = as_words(row["label"], where, "tags", types=(str, int))
        if len(tags) != len(words):
            raise UserError(f"{where} has {len(words)} words, but {len(tags)} tags")
        return {"text": words, "label": [str(label_name(tag, self.options.label_names)) for tag in tags]}


class TagCollator(WordCollator):
    """Batches of sentences with tags."""

    def batch(self, texts: list[list[np.ndarray]], labels: list[np.ndarray]) -> Batch:
        """labels [batch, seq]: tags of words at their first tokens, else -100; word_mask: 1 there."""
        batch, positions = self.sentences(texts)
        return batch | {"labels": scatter(labels, positions, batch["input_ids"].shape, IGNORE_INDEX)}


class Tagging(Kind):
    """Labels are an array [words] per sentence (-1: a tag that training lacks, no answer is right)."""

    name = "tagging"
    metrics = ("f1", "accuracy", "loss", "precision", "recall")
    model_class = "TransformerWithTagHead"
    reader_class = TagReader
    collator_class = TagCollator

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        return cls(options.label_names or sorted(set(itertools.chain.from_iterable(labels))), options)

    @property
    def has_entities(self) -> bool:
        """Are tags parts of entities: B-PER, I-PER, O?"""
        return any(name[:2] in ("B-", "I-") for name in self.label_names)

    def label_ids(self, labels: list, where: str) -> list[np.ndarray]:
        ids = {name: index for index, name in enumerate(self.label_names)}
        return [np.array([ids.get(tag, -1) for tag in tags], dtype=np.int64) for tags in labels]

    def placeholder_labels(self, rows: list[dict]) -> list[np.ndarray]:
        return [np.full(len(row["text"]), -1) for row in rows]

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[words that were read]: their tags."""
        tags, is_word = logits.argmax(-1).cpu().numpy(), inputs["word_mask"].cpu().numpy() == 1
        return [row[mask] for row, mask in zip(tags, is_word, strict=True)]

    def tag_names(self, tags: np.ndarray, n_words: int) -> list[str]:
        """The names of the tags of all words; those that were cut off have none."""
        names = [self.label_names[tag] if tag >= 0 else UNKNOWN for tag in tags]
        return names + [NO_TAG] * (n_words - len(tags))

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """F1, precision and recall of entities (`seqeval`) where tags begin with B- or I-, else of words,
        weighted by tag; accuracy over words. Words behind the longest input count as predicted O."""
        gold = [self.tag_names(tags, len(tags)) for tags in examples.labels]
        predicted = [self.tag_names(tags, len(words)) for tags, words in zip(outputs, gold, strict=True)]
        gold_words, predicted_words = list(itertools.chain(*gold)), list(itertools.chain(*predicted))
        if not gold_words:
            return dict.fromkeys(("f1", "precision", "recall", "accuracy"), 0.0)
        accuracy = float(np.mean(np.array(gold_words) == np.array(predicted_words)))
        if self.has_entities:
            return entity_scores(gold, predicted) | {"accuracy": accuracy}
        return word_scores(gold_words, predicted_words) | {"accuracy": accuracy}

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`tokens`, their `tags`, and the `entities` that those make up."""
        words, tags = row["text"], self.tag_names(output, len(row["text"]))
        prediction = {"tokens": words, "tags": tags}
        return prediction | {"entities": entities(words, tags)} if self.has_entities else prediction


def entity_scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """F1, precision and recall of whole entities, from the tags of sentences."""
    import seqeval.metrics

    return {
        name: float(getattr(seqeval.metrics, f"{name}_score")(gold, predicted, zero_division=0))
        for name in ("f1", "precision", "recall")
    }


def word_scores(gold: list[str], predicted: list[str]) -> dict[str, float]:
    """F1, precision and recall of words, means over the tags weighted by how often each occurs."""
    import sklearn.metrics

    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        gold, predicted, average="weighted", zero_division=0
    )
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def entities(words: list[str], tags: list[str]) -> list[dict]:
    """`label`, `text`, and the indices `first_token` and `last_token` of each entity."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [
        {"label": label, "text": " ".join(words[first : last + 1]), "first_token": first, "last_token": last}
        for label, first, last in get_entities(tags)
    ]
