"""Kinds of tasks that say something of each word: tagging and dependency parsing."""
import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from config.arguments import UserError
from config.constants import IGNORE_INDEX
from data.tables import is_missing
from tasks.examples import Collator
from tasks.kinds import Kind
from utils import Batch

NO_TAG = "O"  # of a word that is in no entity, or lies behind the longest input


class OfWords(Kind):
    """What kinds share that say something of each word of a sentence, which may have none."""

    has_pairs = False

    def lacks_label(self, row):
        """A sentence without words needs none."""
        return super().lacks_label(row) and split_words(row["text"]) != []

    def texts(self, row):
        """The words."""
        return row["text"]

    def encode(self, tokenizer, texts):
        """Each word apart."""
        return tokenizer.encode_words(texts)

    def sentences(self, texts: list[list[np.ndarray]], collate: Collator) -> tuple[Batch, list[np.ndarray]]:
        """Padded sentences, given as the ids of their words, and where each word's first token stands."""
        collate = replace(collate, truncation="head")
        batch = collate([[np.concatenate([np.empty(0, dtype=np.int64), *words])] for words in texts])
        return batch, [first_tokens(words, collate) for words in texts]


class Tagging(OfWords):
    """A tag for each word. The model reads it off the word's first token."""

    name = "tagging"
    columns = {"text": "tokens", "label": "tags"}
    model_class = "TransformerWithTokenHead"
    metrics = ("f1", "accuracy", "loss", "precision", "recall")

    def prepare(self, row, where, labelled=True):
        """`text` is a list of words, or words with spaces between them; `label` their tags, in the same form."""
        words = as_words(row["text"], where, "words")
        if not labelled:
            return {"text": words}
        tags = [str(self.named(tag)) for tag in as_words(row["label"], where, "tags", of=(str, int))]
        if len(tags) != len(words):
            raise UserError(f"{where} has {len(words)} words, but {len(tags)} tags")
        return {"text": words, "label": tags}

    def learn(self, labels, where):
        """The tags, the most natural order of which is that of the alphabet."""
        self.label_names = self.options.label_names or sorted(set(itertools.chain.from_iterable(labels)))

    def label_ids(self, labels, where):
        """An array of tag ids per example. A tag that training does not have is -1: no answer to it is right."""
        ids = {name: index for index, name in enumerate(self.label_names)}
        return [np.array([ids.get(tag, -1) for tag in tags], dtype=np.int64) for tags in labels]

    def no_labels(self, rows):
        """No tags."""
        return [np.full(len(row["text"]), -1) for row in rows]

    def batch(self, texts, labels, collate):
        """labels [batch, seq]: a tag at the first token of each word, else -100; word_mask [batch, seq]: 1 at those tokens."""
        batch, places = self.sentences(texts, collate)
        shape = batch["input_ids"].shape
        return batch | {"labels": scattered(labels, places, shape, IGNORE_INDEX), "word_mask": scattered([np.ones(len(one)) for one in places], places, shape, 0)}

    def outputs(self, logits, batch):
        """The tags of the words that were read."""
        tags, is_word = logits.argmax(-1).cpu().numpy(), batch["word_mask"].cpu().numpy() == 1
        return [row[places] for row, places in zip(tags, is_word, strict=True)]

    def measure(self, features, outputs, rows=None):
        """F1, precision and recall of entities (`seqeval`) where tags begin with B- or I-, else of words, weighted by tag; accuracy
        over words. Words behind the longest input count as predicted O."""
        gold = [[self.label_names[tag] if tag >= 0 else "unknown" for tag in tags] for tags in features.labels]
        predicted = [self.tags(output, len(tags)) for output, tags in zip(outputs, gold, strict=True)]
        words = list(itertools.chain(*gold)), list(itertools.chain(*predicted))
        if not words[0]:
            return dict.fromkeys(("f1", "precision", "recall", "accuracy"), 0.0)
        accuracy = float(np.mean(np.array(words[0]) == np.array(words[1])))
        if self.has_entities:
            import seqeval.metrics

            scores = {"f1": seqeval.metrics.f1_score, "precision": seqeval.metrics.precision_score, "recall": seqeval.metrics.recall_score}
            return {name: float(score(gold, predicted, zero_division=0)) for name, score in scores.items()} | {"accuracy": accuracy}
        import sklearn.metrics

        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(*words, average="weighted", zero_division=0)
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "accuracy": accuracy}

    def tags(self, output: np.ndarray, n_words: int) -> list[str]:
        """The names of the tags of all words."""
        return [self.label_names[tag] for tag in output] + [NO_TAG] * (n_words - len(output))

    @property
    def has_entities(self) -> bool:
        """Are tags parts of entities: B-PER, I-PER, O?"""
        return any(name[:2] in ("B-", "I-") for name in self.label_names)

    def describe(self, output, row):
        """Words, their tags, and the entities that those make up."""
        tags = self.tags(output, len(row["text"]))
        found = {"tokens": row["text"], "tags": tags}
        if self.has_entities:
            from seqeval.metrics.sequence_labeling import get_entities

            found["entities"] = [
                {"label": label, "text": " ".join(row["text"][first : last + 1]), "first_token": first, "last_token": last}
                for label, first, last in get_entities(tags)
            ]
        return found


class Parsing(OfWords):
    """The head of each word (0: the root; else counted from 1), and the relation to it."""

    name = "parsing"
    columns = {"text": "tokens", "heads": "head", "label": "deprel"}
    model_class = "TransformerWithParserHead"
    metrics = ("las", "uas", "loss")

    def prepare(self, row, where, labelled=True):
        """`text` is a list of words, `heads` and `label` lists of the same length. Of a relation like `nmod:poss` the universal part is
        kept; words without a head (parts of contractions) are left out."""
        words = as_words(row["text"], where, "words")
        if not labelled:
            return {"text": words}
        if "heads" not in row:
            raise UserError(f"{where} has no heads; name their column with --heads_column")
        heads, relations = as_words(row["heads"], where, "heads", of=(int, str, type(None))), as_words(row["label"], where, "relations")
        if not len(words) == len(heads) == len(relations):
            raise UserError(f"{where} has {len(words)} words, but {len(heads)} heads and {len(relations)} relations")
        kept = [index for index, head in enumerate(heads) if str(head) not in ("None", "_")]
        new_number = {0: 0} | {index + 1: number for number, index in enumerate(kept, start=1)}
        try:
            numbers = [new_number[int(heads[index])] for index in kept]
        except (ValueError, KeyError) as error:
            raise UserError(f"{where}: the head {error.args[0]} is none of the words 0 (the root) to {len(words)}") from error
        return {"text": [words[index] for index in kept], "heads": numbers, "label": [relations[index].split(":")[0] for index in kept]}

    def label(self, row):
        """Heads and relations."""
        return [row["heads"], row["label"]]

    def learn(self, labels, where):
        """The relations."""
        self.label_names = self.options.label_names or sorted(set(itertools.chain.from_iterable(relations for _, relations in labels)))

    def label_ids(self, labels, where):
        """[2, words] for each example: heads, and relations (-1: one that training does not have)."""
        ids = {name: index for index, name in enumerate(self.label_names)}
        return [np.array([heads, [ids.get(one, -1) for one in relations]], dtype=np.int64).reshape(2, -1) for heads, relations in labels]

    def no_labels(self, rows):
        """Every word hangs on the root, by no relation."""
        return [np.stack([np.zeros(len(row["text"]), dtype=np.int64), np.full(len(row["text"]), -1)]) for row in rows]

    def batch(self, texts, labels, collate):
        """At the first token of each word: labels (the relation) and heads (the position of the head's first token, that of [CLS] for
        the root), both [batch, seq], else -100; word_mask [batch, seq]: 1 at those tokens."""
        batch, places = self.sentences(texts, collate)
        roots = (batch["attention_mask"].sum(1) - 1).tolist() if collate.causal else [0] * len(texts)
        heads = [self.positions(heads, root, one) for (heads, _), root, one in zip(labels, roots, places, strict=True)]
        shape = batch["input_ids"].shape
        return batch | {
            "labels": scattered([relations for _, relations in labels], places, shape, IGNORE_INDEX),
            "heads": scattered(heads, places, shape, IGNORE_INDEX),
            "word_mask": scattered([np.ones(len(one)) for one in places], places, shape, 0),
        }

    def positions(self, heads: np.ndarray, root: int, places: np.ndarray) -> np.ndarray:
        """Where each word's head stands in the sequence; -100 if it was cut off."""
        by_number = np.full(max(len(heads), len(places)) + 1, IGNORE_INDEX)
        by_number[0] = root
        by_number[1 : len(places) + 1] = places
        return by_number[heads]

    def outputs(self, logits, batch):
        """[2, words] per sentence: the heads of the best tree, and the best relation to each."""
        found, is_word, lengths = [], batch["word_mask"].cpu().numpy(), batch["attention_mask"].sum(1).tolist()
        for row, mask, length in zip(logits.float().cpu().numpy(), is_word, lengths, strict=True):
            words = np.flatnonzero(mask)
            root = length - 1 if 0 in words else 0  # a causal model reads [CLS] last
            places = np.concatenate([[root], words])
            scores = row[np.ix_(places, places)]  # [dependent, head, 1 + relations]
            heads = best_tree(scores[..., 0])
            found.append(np.stack([heads, scores[np.arange(1, len(places)), heads, 1:].argmax(-1)]))
        return found

    def measure(self, features, outputs, rows=None):
        """Labelled and unlabelled attachment score over all words. Words behind the longest input count as wrong."""
        n_words = n_attached = n_labelled = 0
        for (heads, relations), (found_heads, found_relations) in zip(features.labels, outputs, strict=True):
            n_read = len(found_heads)
            attached = heads[:n_read] == found_heads
            n_words, n_attached = n_words + len(heads), n_attached + attached.sum()
            n_labelled += (attached & (relations[:n_read] == found_relations)).sum()
        return {"las": float(n_labelled / max(1, n_words)), "uas": float(n_attached / max(1, n_words))}

    def describe(self, output, row):
        """Words, their heads and relations; null for words behind the longest input."""
        missing = [None] * (len(row["text"]) - output.shape[1])
        return {"tokens": row["text"], "head": output[0].tolist() + missing, "deprel": [self.label_names[one] for one in output[1]] + missing}


# ------------------------------------------------------------------------------------------------ words and positions


def split_words(value: object) -> object:
    """The words of a text with spaces between them; of one that is missing none. Anything else as it is."""
    return value.split() if isinstance(value, str) else [] if is_missing(value) else value


def as_words(value: object, where: str, what: str, of: tuple[type, ...] = (str,)) -> list:
    """A list of words, also from a text with spaces between them. Raises UserError for anything else."""
    words = split_words(value)
    if not isinstance(words, list) or not all(isinstance(word, of) for word in words):
        raise UserError(f"{where}: the {what} are neither a list nor a text with spaces between them but {value!r}")
    return words


def first_tokens(words: list[np.ndarray], collate: Collator) -> np.ndarray:
    """The position of the first token of each word that is not cut off."""
    starts = np.cumsum([0, *map(len, words)])[:-1]
    return collate.first + starts[starts < collate.max_length - collate.n_special(1)]


def scattered(values: list[np.ndarray], places: list[np.ndarray], shape: torch.Size, filler: int) -> Tensor:
    """[batch, seq]: the values of each row at its places; negative ones, like everything else, are the filler."""
    result = np.full(shape, filler, dtype=np.int64)
    for row, (one, where) in enumerate(zip(values, places, strict=True)):
        one = np.asarray(one)[: len(where)]
        result[row, where] = np.where(one < 0, filler, one)
    return torch.from_numpy(result)


# ------------------------------------------------------------------------------------------------------ the best tree


def best_tree(scores: np.ndarray) -> np.ndarray:
    """Heads [words] of the tree with the highest sum of arcs, in which exactly one word hangs on the root.

    `scores` [1 + words, 1 + words]: of word d (row) having the head h (column); 0 is the root. Chu & Liu 1965, Edmonds 1967.
    That there is one root: Zmigrod et al. 2020, section 4, by a cost of each root that outweighs all else.
    """
    scores = scores.astype(np.float64)
    scores[:, 0] -= 1 + len(scores) * np.ptp(scores)
    np.fill_diagonal(scores, -np.inf)
    return _best_heads(scores)[1:]


def _best_heads(scores: np.ndarray) -> np.ndarray:
    """The head of every node of the best tree; that of node 0, the root, means nothing."""
    heads = scores.argmax(1)
    cycle = _find_cycle(heads)
    if cycle is None:
        return heads
    # The cycle becomes one node, the last one. An arc into it costs the arc of the cycle that it replaces.
    outside = np.setdiff1d(np.arange(len(scores)), cycle)
    into = scores[np.ix_(cycle, outside)] - scores[cycle, heads[cycle]][:, None]
    out_of = scores[np.ix_(outside, cycle)]
    smaller = np.full((len(outside) + 1, len(outside) + 1), -np.inf)
    smaller[:-1, :-1] = scores[np.ix_(outside, outside)]
    smaller[-1, :-1], smaller[:-1, -1] = into.max(0), out_of.max(1)
    found = _best_heads(smaller)

    entered = cycle[into[:, found[-1]].argmax()]
    heads[entered] = outside[found[-1]]
    for index, node in enumerate(outside):
        heads[node] = cycle[out_of[index].argmax()] if found[index] == len(outside) else outside[found[index]]
    return heads


def _find_cycle(heads: np.ndarray) -> np.ndarray | None:
    """The nodes of a cycle, if following the heads does not always lead to the root."""
    state = np.zeros(len(heads), dtype=np.int64)  # the walk that met a node; 0: none
    state[0] = -1
    for walk in range(1, len(heads)):
        node, path = walk, []
        while not state[node]:
            state[node] = walk
            path.append(node)
            node = heads[node]
        if state[node] == walk:
            return np.array(path[path.index(node) :])
    return None
