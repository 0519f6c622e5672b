"""A tag for each word, which the model predicts at the word's first token."""

import itertools
from typing import Self

import numpy as np
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from tasks.examples import Examples
from tasks.kind import KindOptions, NamedLabelKind
from tasks.labels import label_name
from tasks.words import SentenceReader, WordCollator, as_words, scatter
from utils import Batch

NO_TAG = "O"  # of a word that is in no entity, or was cut off
UNKNOWN = "unknown"  # a tag that training lacks


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
        """labels [batch, seq]: tags of words at their first tokens, else -100; word_mask [batch, seq]."""
        batch, positions = self.sentences(texts)
        return batch | {"labels": scatter(labels, positions, batch["input_ids"].shape, IGNORE_INDEX)}


class Tagging(NamedLabelKind):
    """Labels are an array [words] per sentence; -1 is a tag that training lacks."""

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
        return [np.array([self.ids.get(tag, -1) for tag in tags], dtype=np.int64) for tags in labels]

    def placeholder_labels(self, rows: list[dict]) -> list[np.ndarray]:
        return [np.full(len(row["text"]), -1) for row in rows]

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[words that were read]: their tags."""
        tags, is_word = logits.argmax(-1).cpu().numpy(), inputs["word_mask"].cpu().numpy() == 1
        return [row[mask] for row, mask in zip(tags, is_word, strict=True)]

    def tag_names(self, tags: np.ndarray, n_words: int) -> list[str]:
        """The tags of all words by name; of words that were cut off, NO_TAG."""
        names = [self.label_names[tag] if tag >= 0 else UNKNOWN for tag in tags]
        return names + [NO_TAG] * (n_words - len(tags))

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """F1, precision and recall of entities (`seqeval`) where tags begin with B- or I-, else of words,
        weighted by tag; accuracy over words. Words that were cut off count as predicted O."""
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as entity_scores
        from sklearn.metrics import precision_recall_fscore_support as word_scores

        gold = [self.tag_names(tags, len(tags)) for tags in examples.labels]
        predicted = [self.tag_names(tags, len(words)) for tags, words in zip(outputs, gold, strict=True)]
        gold_words, predicted_words = list(itertools.chain(*gold)), list(itertools.chain(*predicted))
        if not gold_words:
            return dict.fromkeys(("f1", "precision", "recall", "accuracy"), 0.0)
        accuracy = np.mean(np.array(gold_words) == np.array(predicted_words))
        if self.has_entities:
            scores = entity_scores(gold, predicted, average="micro", zero_division=0)
        else:
            scores = word_scores(gold_words, predicted_words, average="weighted", zero_division=0)
        precision, recall, f1 = map(float, scores[:3])
        return {"f1": f1, "precision": precision, "recall": recall, "accuracy": float(accuracy)}

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`tokens`, their `tags`, and the `entities` that those make up."""
        words, tags = row["text"], self.tag_names(output, len(row["text"]))
        prediction = {"tokens": words, "tags": tags}
        return prediction | {"entities": entities(words, tags)} if self.has_entities else prediction


def entities(words: list[str], tags: list[str]) -> list[dict]:
    """`label`, `text`, and the indices `first_token` and `last_token` of each entity."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [
        {"label": label, "text": " ".join(words[first : last + 1]), "first_token": first, "last_token": last}
        for label, first, last in get_entities(tags)
    ]
