"""What each choice of the recipe gains alone and together: validation loss after the same tokens, and tokens per second.

    python benchmarks/ablation.py [--n_steps N]

Starts from plain GPT-2 training (AdamW at the best of the peer's learning rates, cosine, N(0, 0.02) embeddings, full
softmax), adds one thing at a time, and then takes one thing at a time away from all of them.
"""
import argparse
import tempfile

from common import BATCH_SIZE, CACHE, NO_DROPOUT, RECIPE, SHAPE, TOKENIZER, record

from pretraining_train import PretrainingConfig, pretrain

PLAIN = {"lr": 2e-3, "n_warmup": 10, "max_norm": 1.0}
CHOICES = {
    "linear decay": {"schedule": "linear"},
    "residual projections start at zero": {"residual_init": "zero"},
    "Muon": {"optimizer": "muon", "lr": 4e-3, "muon_lr": 0.02},
    "sampled softmax": {"sampled_softmax": 512},
    "LSA embeddings": {"initial_embeddings": "lsa"},
}


def loss_of(n_steps: int, **options) -> dict[str, float]:
    """Validation loss and speed of a short run."""
    common = SHAPE | NO_DROPOUT | {"dataset_path": "imdb", "tokenizer": TOKENIZER, "dataset_cache": CACHE, "train_batch_size": BATCH_SIZE}
    found = pretrain(PretrainingConfig(n_steps=n_steps, output_dir=tempfile.mkdtemp(), **common | options))
    return {name: round(found[name], 3) for name in ("loss", "tokens_per_second")}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_steps", type=int, default=120)
    n_steps = parser.parse_args().n_steps
    rows = {"plain": loss_of(n_steps, **PLAIN)}
    for name, choice in CHOICES.items():
        rows[f"plain, with {name}"] = loss_of(n_steps, **PLAIN | choice)
    rows["all"] = loss_of(n_steps, **RECIPE)
    for name, choice in CHOICES.items():
        without = {key: value for key, value in RECIPE.items() if key not in choice}
        rows[f"all, without {name}"] = loss_of(n_steps, **PLAIN | without)
    record("ablation", rows=rows, tokens=n_steps * BATCH_SIZE * SHAPE["num_max_positions"])


if __name__ == "__main__":
    main()
