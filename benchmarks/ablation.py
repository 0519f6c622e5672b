"""What each choice of the recipe gains alone: validation loss after the same tokens, and tokens per second.

    python benchmarks/ablation.py [--n_steps N]

Starts from plain GPT-2 training (AdamW, cosine, N(0, 0.02) embeddings, full softmax), changes one thing at a
time, and in the end all of them. Muon comes with a learning rate of its own for AdamW's part, as it does in
the recipe.
"""

import argparse
import tempfile

from common import BATCH_SIZE, CACHE, NO_DROPOUT, RECIPE, SHAPE, TOKENIZER, record

from pretraining_train import PretrainingConfig, pretrain

PLAIN = {"lr": 2e-3, "n_warmup": 5, "max_norm": 1.0}
CHOICES = {
    "linear decay": {"schedule": "linear"},
    "residual projections start at zero": {"residual_init": "zero"},
    "Muon": {"optimizer": "muon", "lr": 8e-3, "muon_lr": 0.02},
    "Muon with a momentum of 0.85": {"optimizer": "muon", "lr": 8e-3, "muon_lr": 0.02, "muon_momentum": 0.85},
    "sampled softmax, 2,048": {"sampled_softmax": 2048},
    "LSA embeddings": {"initial_embeddings": "lsa"},
    "output bias": {"output_bias": True},
    "BERT's GELU": {"activation": "gelu"},
}


def loss_of(n_steps: int, **options) -> dict[str, float]:
    """Validation loss and speed of a short run."""
    common = (
        SHAPE
        | NO_DROPOUT
        | {
            "dataset_path": "imdb",
            "tokenizer": TOKENIZER,
            "dataset_cache": CACHE,
            "train_batch_size": BATCH_SIZE,
        }
    )
    found = pretrain(PretrainingConfig(n_steps=n_steps, output_dir=tempfile.mkdtemp(), **common | options))
    return {name: round(found[name], 3) for name in ("loss", "tokens_per_second")}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n_steps", type=int, default=60)
    n_steps = parser.parse_args().n_steps
    rows = {"plain": loss_of(n_steps, **PLAIN)}
    rows |= {name: loss_of(n_steps, **PLAIN | choice) for name, choice in CHOICES.items()}
    rows["all of them"] = loss_of(n_steps, **RECIPE)
    record("ablation", rows=rows, tokens=n_steps * BATCH_SIZE * SHAPE["num_max_positions"])


if __name__ == "__main__":
    main()
