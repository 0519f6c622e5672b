"""Tasks and a task map for small grids."""

import json
import random
from pathlib import Path

import pytest
from helpers.grids import FLAGS
from helpers.runs import WORDS


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Three tasks with classes told apart by words."""
    folder, generator = tmp_path_factory.mktemp("tasks"), random.Random(3)
    for name, words in {
        "one": ("good", "bad"),
        "two": ("film", "story", "kind"),
        "three": ("bad", "good"),
    }.items():
        (folder / name).mkdir()
        for split, n_rows in (("train", 40), ("valid", 21)):
            rows = [
                {
                    "text": " ".join([*generator.choices(WORDS[8:], k=8), words[index % len(words)]]),
                    "label": index % len(words),
                }
                for index in range(n_rows)
            ]
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def grid_map(tasks) -> dict:
    one, two = (
        str(tasks / "one"),
        {"name": "second", "dataset_path": str(tasks / "two"), "train_subset_size": 30},
    )
    targets = {
        "second": {"dataset_path": str(tasks / "two"), "sizes": [9, 18]},
        str(tasks / "three"): {"metric": "eval_loss"},
    }
    return {
        "description": "for a test",
        "from": [one, two],
        "fusion": {"both": ["one", "second"]},
        "to": targets,
    }


@pytest.fixture(scope="module")
def common(pretrained, cache) -> list:
    return [*FLAGS, "--model_checkpoint", str(pretrained), "--dataset_cache", str(cache), "--restarts", "2"]
