"""Ten real tasks that the studies train on: two of them install with pip, the others are folders of JSONL.

DATA has a folder for each of the latter: train, valid and test.jsonl with text, text_pair and label, as
published.
"""

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from checkpoints.files import write_json
from data.sources import open_source
from data.tables import read_rows

SPLITS = ("train", "valid", "test")
FROM_PIP = {"rotten_tomatoes", "imdb"}


class RealTask(NamedTuple):
    kind: str
    metric: str
    max_length: int


TASKS = {
    "trec": RealTask("classification", "accuracy", 40),
    "subj": RealTask("classification", "accuracy", 80),
    "cola": RealTask("classification", "matthews", 48),
    "rte": RealTask("classification", "accuracy", 128),
    "tweet_emotion": RealTask("classification", "macro_f1", 80),
    "tweet_irony": RealTask("classification", "f1", 80),
    "tweet_offensive": RealTask("classification", "macro_f1", 80),
    "query_wellformedness": RealTask("regression", "pearson", 40),
    "rotten_tomatoes": RealTask("classification", "accuracy", 80),
    "imdb": RealTask("classification", "accuracy", 80),
}


def shuffled_splits(name: str, data: Path) -> dict[str, list[dict]]:
    """The splits that the task has, without repeated texts, in an order that is always the same."""
    if name in FROM_PIP:
        rows = {"train": list(open_source(name).rows("train"))}
    else:
        files = {split: data / name / f"{split}.jsonl" for split in SPLITS}
        rows = {split: list(read_rows(file)) for split, file in files.items() if file.is_file()}
    for split in rows:
        rows[split] = list({(row["text"], row.get("text_pair")): row for row in rows[split]}.values())
        random.Random(f"{name} {split}").shuffle(rows[split])
    return rows


def write_task(folder: Path, task: RealTask, splits: Mapping[str, Iterable[dict]]) -> None:
    """The splits as JSONL, and beside the folder a JSON file with the keys of the task."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    about = {"dataset_path": str(folder), "kind": task.kind, "patience_metric": task.metric}
    write_json(folder.with_suffix(".json"), about | {"max_length": task.max_length})
