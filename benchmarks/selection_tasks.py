"""The tasks of the study of task selection: 26 sources and 7 targets, whose rows do not overlap.

Ten are real tasks (real_tasks.py), seven are made of movie reviews (tasks/review_tasks.py), and nine are made
of these: some of their labels or rows, or other questions about their texts.
"""

import itertools
import random
from pathlib import Path
from typing import Any

from real_tasks import TASKS, RealTask, shuffled_splits, write_task

from tasks.review_tasks import TASKS as REVIEW_TASKS
from tasks.review_tasks import Review, Texts, read_reviews

N_SOURCE, N_PART = 4000, 500
N_TARGET = {"train": 200, "valid": 200, "test": 1000}  # the last is cut to what a task has
NUMBERS, CLASSES = RealTask("regression", "pearson", 80), RealTask("classification", "accuracy", 80)
TARGETS = {name: task for name, task in TASKS.items() if name not in ("cola", "rte")} | {"rating": NUMBERS}
NOTHING_TO_RANK = ("tweet_irony", "tweet_offensive")  # no targets any more, but their rows are still held out
TWEETS = ("tweet_emotion", "tweet_irony", "tweet_offensive")
Row = dict[str, Any]
Pools = dict[str, list[Row]]


def write_study(folder: Path, data: Path) -> tuple[list[str], list[str]]:
    """Write all tasks; the files of the sources and of the targets. They are always the same."""
    pools = real_pools(data)
    pools |= review_pools(pools)
    targets, rest = {}, {}
    for name, rows in pools.items():
        n_target = sum(N_TARGET.values()) if name in TARGETS else 0
        targets[name], rest[name] = rows[:n_target], rows[n_target:]
    sources = {name: (task, rest[name][:N_SOURCE]) for name, task in all_tasks().items()}
    sources |= {name: (task, rows[:N_SOURCE]) for name, (task, rows) in parts_of(rest).items()}
    for name, (task, rows) in sources.items():
        write_task(folder / "sources" / name, task, {"train": rows[100:], "valid": rows[:100]})
    for name, task in TARGETS.items():
        write_task(folder / "targets" / name, task, cut(targets[name]))
    return [str(folder / "sources" / f"{name}.json") for name in sources], [
        str(folder / "targets" / f"{name}.json") for name in TARGETS if name not in NOTHING_TO_RANK
    ]


def cut(rows: list[Row]) -> Pools:
    """The rows of a target in its splits."""
    rest = iter(rows)
    return {split: list(itertools.islice(rest, n)) for split, n in N_TARGET.items()}


def all_tasks() -> dict[str, RealTask]:
    """The tasks that are whole, by name."""
    kinds = {name: RealTask(task.kind, task.metric, 80) for name, task in REVIEW_TASKS.items()}
    return TASKS | {name: task for name, task in kinds.items() if name != "sentence_sentiment"}


# ------------------------------------------------------------------------------------------------- their rows


def real_pools(data: Path) -> Pools:
    """All rows of each real task, whatever its splits are."""
    pools = {}
    for name in TASKS:
        rows = [row for split in shuffled_splits(name, data).values() for row in split]
        pools[name] = shuffle(list({(row["text"], row.get("text_pair")): row for row in rows}.values()), name)
    return pools


def review_pools(pools: Pools) -> Pools:
    """The rows of the tasks that are made of reviews. `rating` needs all reviews with a rating, so no other
    task has them; and none has the reviews of the target imdb.
    """
    reviews = {review.text: review for split in read_reviews().values() for review in split}
    rated = {text for text, review in reviews.items() if has_rating(review)}
    pools["imdb"] = [row for row in pools["imdb"] if row["text"] not in rated]
    taken = {row["text"] for row in pools["imdb"][: sum(N_TARGET.values())]}
    one_liners = pools["rotten_tomatoes"][sum(N_TARGET.values()) :]
    made = {}
    for name, task in REVIEW_TASKS.items():
        texts = rated if name == "rating" else reviews.keys() - rated - taken
        own = [review for text, review in reviews.items() if text in texts]
        made[name] = shuffle(list(task.make(Texts(own, one_liners, random.Random(name)))), name)
    return made


def has_rating(review: Review) -> bool:
    return any(REVIEW_TASKS["rating"].make(Texts([review], [], random.Random(0))))


def parts_of(rest: Pools) -> dict[str, tuple[RealTask, list[Row]]]:
    """More sources: some labels of a task, fewer rows of it, or other questions about its texts."""
    collections = [
        {"text": row["text"], "label": name}
        for rows in zip(*(rest[name][:N_SOURCE] for name in TWEETS), strict=False)
        for name, row in zip(TWEETS, rows, strict=True)
    ]
    queries = [
        row | {"label": "good" if row["label"] > 0.5 else "bad"} for row in rest["query_wellformedness"]
    ]
    few = ("subj", "tweet_offensive", "rotten_tomatoes", "imdb")
    return {
        "trec_things": (TASKS["trec"], with_labels(rest["trec"], "ENTY", "DESC")),
        "trec_people_places": (TASKS["trec"], with_labels(rest["trec"], "HUM", "LOC")),
        "tweet_emotion_joy_sadness": (CLASSES, with_labels(rest["tweet_emotion"], "joy", "sadness")),
        "query_wellformedness_classes": (CLASSES, queries),
        "tweet_collection": (CLASSES, collections),
        **{f"{name}_{N_PART}": (TASKS[name], rest[name][:N_PART]) for name in few},
    }


def with_labels(rows: list[Row], *labels: str) -> list[Row]:
    return [row for row in rows if row["label"] in labels]


def shuffle(rows: list[Row], seed: str) -> list[Row]:
    return random.Random(seed).sample(rows, len(rows))
