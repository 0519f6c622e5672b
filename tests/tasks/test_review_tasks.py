"""The tasks made of movie reviews: always the same, and nothing that is held out is trained on."""

import json
import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from config.finetuning import FinetuningConfig, with_task
from data.sources import open_source
from data.splits import split_rows
from tasks.review_tasks import RATING, TASKS, write_review_tasks
from tasks.task import open_task

WORD = re.compile(r"\w+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_review_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    """The texts that fine-tuning on Rotten Tomatoes and on IMDb validates with."""
    sources = [open_source(name) for name in ("rotten_tomatoes", "imdb")]
    return [row["text"] for source in sources for row in split_rows(source)["valid"]]


@pytest.fixture(scope="module")
def held_out_words(held_out) -> str:
    """The same, one per line, as words."""
    return "\n".join(map(as_words, held_out))


@pytest.fixture(scope="module")
def held_out_sentences(held_out) -> set[str]:
    """Their sentences of five words or more, as words."""
    return {key for text in held_out for key in sentences(text)}


def sentences(text: str) -> list[str]:
    keys = [as_words(sentence) for sentence in re.findall(r"[^.!?]+(?:[.!?](?!\s)[^.!?]*)*", text)]
    return [key for key in keys if len(key.split()) >= 5]


def rows(folder: Path, task: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / task / f"{split}.jsonl").read_text().splitlines()]


def texts(folder: Path, task: str, split: str) -> list[str]:
    """All that a model reads of a split."""
    fields = [
        row[name]
        for row in rows(folder, task, split)
        for name in ("text", "text_pair", "tokens")
        if name in row
    ]
    return [" ".join(field) if isinstance(field, list) else field for field in fields]


def as_words(text: str) -> str:
    return " ".join(WORD.findall(text.lower()))


def test_they_are_always_the_same_and_only_written_where_they_are_not(folder):
    files = sorted(folder.rglob("*.jsonl"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    files[0].write_text("half a file")
    write_review_tasks(folder)
    assert len(files) == 2 * len(TASKS) and files[0].read_bytes() == before[files[0]][0]
    assert all((file.read_bytes(), file.stat().st_mtime_ns) == before[file] for file in files[1:])


@pytest.mark.parametrize("task", TASKS)
def test_validation_reads_held_out_texts_and_training_none_of_them(
    task, folder, held_out_words, held_out_sentences
):
    valid = [as_words(text) for text in texts(folder, task, "valid")[:60]]
    # Where a rating was cut out of a text, the seam is in no text.
    assert statistics.mean(text in held_out_words for text in valid) > (0.5 if task == "rating" else 0.999)
    train = texts(folder, task, "train")
    if task in ("review_sentiment", "rating"):  # they read the ends of reviews, which may begin mid-sentence
        assert not [text for text in train[:60] if as_words(text) in held_out_words]
    else:
        assert held_out_sentences.isdisjoint(key for text in train for key in sentences(text))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_opens_as_its_kind_with_its_metric(task, folder, tiny_vocab, tmp_path):
    config = with_task(
        FinetuningConfig(dataset_path=str(folder / f"{task}.json"), dataset_cache=str(tmp_path))
    )
    opened = open_task(config, str(tiny_vocab))
    assert opened.kind.name == TASKS[task].kind and len(opened.train) == 1500
    assert opened.kind.best_metric(config.patience_metric) == TASKS[task].metric
    assert opened.is_pair == (task == "order") and len(opened.examples("valid")) >= 400


@pytest.mark.parametrize("split", ["train", "valid"])
def test_classes_are_balanced_where_the_task_chooses_them(split, folder):
    for task in ("one_liner", "order", "punctuation"):
        counts = Counter(row["label"] for row in rows(folder, task, split))
        assert max(counts.values()) - min(counts.values()) <= 1, task


def test_the_labels_are_what_the_reviews_say(folder):
    reviews = [row["text"] for row in split_rows(open_source("imdb"))["train"]]
    for row in rows(folder, "order", "train")[:40]:
        first, last = (row["text"], row["text_pair"])[:: 1 if row["label"] == "first" else -1]
        review = next(text for text in reviews if first in text and last in text)
        assert review.index(first) < review.rindex(last)
    for row in rows(folder, "punctuation", "train")[:40]:
        assert any(row["text"] + row["label"] in text for text in reviews)
    for row in rows(folder, "names", "train")[:40]:
        assert len(row["tokens"]) == len(row["tags"]) and " ".join(row["tokens"]).islower()
    assert {tag for row in rows(folder, "names", "train") for tag in row["tags"]} == {"O", "B-NAME", "I-NAME"}
    for row in rows(folder, "rating", "train"):
        assert 0 <= row["label"] <= 1 and not RATING.search(row["text"])
