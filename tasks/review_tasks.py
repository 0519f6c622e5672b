"""Tasks made of movie reviews, so that many can be learned without a network: `make multitask`.

People have labelled two of them; the labels of the others come from the texts themselves. The reviews that
fine-tuning on IMDb and Rotten Tomatoes holds out for validation are held out in every task: no task trains
on a sentence of one.
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints.files import atomic_write
from data.sources import open_source
from data.splits import split_rows

N_EXAMPLES = {"train": 1500, "valid": 1000}  # at most, of each task
N_WORDS = range(5, 31)  # of a sentence; two of them are about 64 tokens
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
Row = dict[str, object]


@dataclass
class Review:
    """A review of IMDb."""

    text: str
    label: str
    sentences: list[str]  # as long as N_WORDS says


@dataclass
class Texts:
    """What the tasks of one split are made of."""

    reviews: list[Review]
    one_liners: list[Row]  # sentences of Rotten Tomatoes, with their labels
    random: random.Random

    def shuffled_reviews(self, n_sentences: int = 0) -> list[Review]:
        """Those with so many sentences, in random order."""
        chosen = [review for review in self.reviews if len(review.sentences) >= n_sentences]
        return self.random.sample(chosen, len(chosen))

    def shuffled_sentences(self) -> Iterator[str]:
        """One of each review, in random order."""
        return (self.random.choice(review.sentences) for review in self.shuffled_reviews(n_sentences=1))


def sentence_sentiment(texts: Texts) -> Iterator[Row]:
    """Does the critic like the film? (Rotten Tomatoes)"""
    yield from texts.random.sample(texts.one_liners, len(texts.one_liners))


def review_sentiment(texts: Texts) -> Iterator[Row]:
    """Does the viewer like the film? The last 50 words of the review. (IMDb)"""
    for review in texts.shuffled_reviews():
        yield {"text": " ".join(review.text.split()[-50:]), "label": review.label}


def one_liner(texts: Texts) -> Iterator[Row]:
    """Is the sentence a critic's summary (Rotten Tomatoes), or part of a viewer's review (IMDb)?"""
    for row, sentence in zip(sentence_sentiment(texts), texts.shuffled_sentences(), strict=False):
        yield {"text": plain(str(row["text"])), "label": "one-liner"}
        yield {"text": plain(sentence), "label": "review"}


def order(texts: Texts) -> Iterator[Row]:
    """Two sentences of one review: is the first one its opening or its ending?"""
    for review, label in zip(
        texts.shuffled_reviews(n_sentences=4), itertools.cycle(("opening", "ending")), strict=False
    ):
        first, second = review.sentences[0], review.sentences[-1]
        if label == "ending":
            first, second = second, first
        yield {"text": first, "text_pair": second, "label": label}


def same_review(texts: Texts) -> Iterator[Row]:
    """Are two sentences of the same review?"""
    reviews = texts.shuffled_reviews(n_sentences=2)
    for review, other, label in zip(reviews, reviews[1:], itertools.cycle(("same", "other")), strict=False):
        first, second = texts.random.sample(review.sentences, 2)
        if label == "other":
            second = texts.random.choice(other.sentences)
        yield {"text": first, "text_pair": second, "label": label}


def punctuation(texts: Texts) -> Iterator[Row]:
    """Does the sentence end with a full stop, an exclamation mark or a question mark? It is left out."""
    marks = itertools.cycle((".", "!", "?"))
    mark = next(marks)
    for review in texts.shuffled_reviews():
        sentence = next((sentence for sentence in review.sentences if sentence.endswith(mark)), None)
        if sentence:
            yield {"text": sentence.rstrip(".!?"), "label": mark}
            mark = next(marks)


def scrambled(texts: Texts) -> Iterator[Row]:
    """Are the words in the middle of the sentence in their order?"""
    for sentence, label in zip(texts.shuffled_sentences(), itertools.cycle(("yes", "no")), strict=False):
        words = plain(sentence).split()
        if label == "no":
            start = texts.random.randrange(len(words) - 3)
            a, b, c, d = words[start : start + 4]
            words[start : start + 4] = [c, a, d, b]
        yield {"text": " ".join(words), "label": label}


def names(texts: Texts) -> Iterator[Row]:
    """Which words are names? Those with a capital letter, which the model does not see."""
    for sentence in texts.shuffled_sentences():
        words = WORD.findall(sentence)
        is_name = [number > 0 and word.istitle() and word != "I" for number, word in enumerate(words)]
        if not any(word.isupper() and len(word) > 1 for word in words):
            before = [False, *is_name]
            tags = [
                "I-NAME" if name and previous else "B-NAME" if name else "O"
                for name, previous in zip(is_name, before, strict=False)
            ]
            yield {"tokens": [word.lower() for word in words], "tags": tags}


def position(texts: Texts) -> Iterator[Row]:
    """How far into its review is the sentence? From 0 to 1."""
    for review in texts.shuffled_reviews(n_sentences=4):
        number = texts.random.randrange(len(review.sentences))
        yield {"text": review.sentences[number], "label": number / (len(review.sentences) - 1)}


def length(texts: Texts) -> Iterator[Row]:
    import math
    for review in texts.shuffled_reviews(n_sentences=4):
        yield {"text": " ".join(review.text.split()[:50]), "label": math.log(len(review.text.split()))+0.001}


def plain(sentence: str) -> str:
    """Words in lower case with spaces between them, as both sources can be written."""
    return " ".join(WORD.findall(sentence.lower()))
def split_sentences(text: str) -> list[str]:
    """The sentences of a text that are as long as N_WORDS says."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return [sentence for sentence in sentences if len(sentence.split()) in N_WORDS]
