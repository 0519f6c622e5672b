"""Training speed of adapters, LoRA and other tunings, compared with full fine-tuning.

    python benchmarks/adapters.py

A bidirectional transformer of MiniLM's shape (6 layers × 384, but no segment embeddings), reviews of at most
128 tokens, AdamW.
"""

import itertools
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

from common import CACHE, NO_DROPOUT, median_ratio, parse, pretrained, record, side_by_side

from data.sources import open_source
from finetuning_train import FinetuningConfig, finetune

SHAPE = {
    "embed_dim": 384,
    "hidden_dim": 1536,
    "num_layers": 6,
    "num_heads": 12,
    "num_max_positions": 128,
    "mlm": True,
    "n_steps": 1,
}
N_STEPS, ROUNDS = 20, 3


def few_reviews() -> Path:
    """A folder of reviews with a small validation split, for the untimed evaluation after each training."""
    folder = Path(tempfile.mkdtemp())
    reviews = itertools.islice(open_source("imdb").rows("train"), 0, None, 40)
    for split, size in (("train", 500), ("valid", 32)):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in itertools.islice(reviews, size))
        )
    return folder


def speed(checkpoint: Path, reviews: Path, tuning: str) -> float:
    """Examples per second."""
    config = FinetuningConfig(
        tuning=tuning,
        n_steps=N_STEPS,
        eval_every=10**6,
        eval_test=False,
        model_checkpoint=str(checkpoint),
        dataset_path=str(reviews),
        dataset_cache=CACHE,
        output_dir=tempfile.mkdtemp(),
        **NO_DROPOUT,
    )
    return finetune(config)["examples_per_second"]


def main() -> None:
    """Measure and record."""
    parse(__doc__)
    checkpoint, reviews = pretrained(**SHAPE), few_reviews()
    names = ("full", "pfeiffer", "houlsby", "lora", "bitfit", "head")
    speeds = side_by_side(ROUNDS, **{name: partial(speed, checkpoint, reviews, name) for name in names})
    record(
        "adapters_vs_full",
        ratios={name: median_ratio(speeds[name], speeds["full"]) for name in names},
        examples_per_second={name: statistics.median(values) for name, values in speeds.items()},
    )


if __name__ == "__main__":
    main()
