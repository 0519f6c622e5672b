"""Small sources for pools."""

import json
import random
from pathlib import Path

from helpers.runs import WORDS

NAMES = ("film", "score", "names")


def make_row(name: str, generator: random.Random) -> dict:
    words = [generator.choice(WORDS[2:]) for _ in range(generator.randint(1, 6))]
    is_good = generator.random() < 0.5
    if name == "names":
        return {"tokens": [*words, "good"], "tags": [*("O" for _ in words), "B-GOOD"]}
    label = (1.5 if is_good else 0.25) if name == "score" else "pos" if is_good else "neg"
    return {"text": " ".join([*words, "good" if is_good else "bad"]), "label": label}


def write_sources(folder: Path) -> None:
    """A classification, a regression, and a tagging."""
    generator = random.Random(4)
    for name in NAMES:
        (folder / name).mkdir()
        for split, n_rows in (("train", 96), ("valid", 32)):
            rows = [json.dumps(make_row(name, generator)) for _ in range(n_rows)]
            (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "names.json").write_text(json.dumps({"dataset_path": str(folder / "names"), "kind": "tagging"}))
