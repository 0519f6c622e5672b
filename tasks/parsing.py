"""Dependency parsing: the head of each word (0: the root; words count from 1), and its relation to it."""

import itertools
from typing import Self

import numpy as np
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.errors import UserError
from tasks.examples import Examples
from tasks.kind import KindOptions, NamedLabelKind
from tasks.trees import best_tree
from tasks.words import SentenceReader, WordCollator, as_words, scatter
from utils import Batch


class TreeReader(SentenceReader):
    """Reads words, their heads and relations."""

    columns = {"text": "tokens", "heads": "head", "label": "deprel"}

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """`text` is a list of words, `heads` and `label` lists of the same length. Of a relation like
        `nmod:poss` the universal part is kept; words without a head (parts of contractions) are left out."""
        words = as_words(row["text"], where, "words")
        if not labelled:
            return {"text": words}
        if "heads" not in row:
            raise UserError(f"{where} has no heads; name their column with --heads_column")
        heads = as_words(row["heads"], where, "heads", types=(int, str, type(None)))
        relations = as_words(row["label"], where, "relations")
        if not len(words) == len(heads) == len(relations):
            wrong = f"{len(words)} words, but {len(heads)} heads and {len(relations)} relations"
            raise UserError(f"{where} has {wrong}")
        kept = [index for index, head in enumerate(heads) if str(head) not in ("None", "_")]
        new_number = {0: 0} | {index + 1: number for number, index in enumerate(kept, start=1)}
        try:
            numbers = [new_number[int(heads[index])] for index in kept]
        except (ValueError, KeyError) as error:
            wrong = f"the head {error.args[0]} is none of the words 0 (the root) to {len(words)}"
            raise UserError(f"{where}: {wrong}") from error
        universal = [relations[index].split(":")[0] for index in kept]
        return {"text": [words[index] for index in kept], "heads": numbers, "label": universal}

    def label_for_cache(self, row: dict) -> list[list]:
        """[heads, relations]."""
        return [row["heads"], row["label"]]


class TreeCollator(WordCollator):
    """Batches of sentences with trees."""

    def batch(self, texts: list[list[np.ndarray]], labels: list[np.ndarray]) -> Batch:
        """At the first token of each word: labels (the relation) and heads (the position of the head's first
        token, that of [CLS] for the root), both [batch, seq], else -100; word_mask [batch, seq]."""
        batch, positions = self.sentences(texts)
        lengths = batch["attention_mask"].sum(1).tolist()
        roots = [length - 1 if self.causal else 0 for length in lengths]
        rows = zip(labels, roots, positions, strict=True)
        heads = [head_positions(heads, root, row_positions) for (heads, _), root, row_positions in rows]
        shape = batch["input_ids"].shape
        return batch | {
            "labels": scatter([relations for _, relations in labels], positions, shape, IGNORE_INDEX),
            "heads": scatter(heads, positions, shape, IGNORE_INDEX),
        }


def head_positions(heads: np.ndarray, root: int, positions: np.ndarray) -> np.ndarray:
    """[words]: where each word's head stands in the sequence; -100 if it was cut off."""
    by_number = np.full(max(len(heads), len(positions)) + 1, IGNORE_INDEX)
    by_number[0] = root
    by_number[1 : len(positions) + 1] = positions
    return by_number[heads]


class Parsing(NamedLabelKind):
    """Labels are an array [2, words] per sentence: heads, and relations; -1 is one that training lacks."""

    name = "parsing"
    metrics = ("las", "uas", "loss")
    model_class = "TransformerWithParserHead"
    reader_class = TreeReader
    collator_class = TreeCollator

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        relations = itertools.chain.from_iterable(relations for _, relations in labels)
        return cls(options.label_names or sorted(set(relations)), options)

    def label_ids(self, labels: list, where: str) -> list[np.ndarray]:
        trees = ([heads, [self.ids.get(name, -1) for name in relations]] for heads, relations in labels)
        return [np.array(tree, dtype=np.int64).reshape(2, -1) for tree in trees]

    def placeholder_labels(self, rows: list[dict]) -> list[np.ndarray]:
        """Every word depends on the root, by no relation."""
        return [np.array([[0], [-1]]).repeat(len(row["text"]), axis=1) for row in rows]

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[2, words that were read]: the heads of the best tree, and the best relation to each."""
        outputs, is_word = [], inputs["word_mask"].cpu().numpy()
        lengths = inputs["attention_mask"].sum(1).tolist()
        for row, mask, length in zip(logits.float().cpu().numpy(), is_word, lengths, strict=True):
            words = np.flatnonzero(mask)
            root = length - 1 if 0 in words else 0  # a causal model reads [CLS] last
            positions = np.concatenate([[root], words])
            scores = row[np.ix_(positions, positions)]  # [dependent, head, 1 + relations]
            heads = best_tree(scores[..., 0])
            outputs.append(np.stack([heads, scores[np.arange(1, len(positions)), heads, 1:].argmax(-1)]))
        return outputs

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Labelled and unlabelled attachment score over all words. Words that were cut off count as wrong."""
        n_words = n_attached = n_labelled = 0
        for tree, predicted in zip(examples.labels, outputs, strict=True):
            is_head, is_relation = tree[:, : predicted.shape[1]] == predicted
            n_words += tree.shape[1]
            n_attached += is_head.sum()
            n_labelled += (is_head & is_relation).sum()
        return {"las": float(n_labelled / max(1, n_words)), "uas": float(n_attached / max(1, n_words))}

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`tokens`, their `head` and relation (`deprel`); null for words that were cut off."""
        missing = [None] * (len(row["text"]) - output.shape[1])
        relations = [self.label_names[relation] for relation in output[1]]
        return {"tokens": row["text"], "head": output[0].tolist() + missing, "deprel": relations + missing}
