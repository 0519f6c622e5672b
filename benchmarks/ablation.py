"""What each choice in the recipe gains by itself: validation loss after the same tokens, and speed.

    python benchmarks/ablation.py [--n_steps N]

Starts from plain GPT-2 training (AdamW, cosine schedule, N(0, 0.02) embeddings, full softmax), changes one
thing at a time, and finally all of them. The Muon rows also change AdamW's learning rate, as the recipe does.
"""

import argparse
import tempfile

from common import BATCH_SIZE, CACHE, NO_DROPOUT, RECIPE, SHAPE, TOKENIZER, record

from pretraining_train import PretrainingConfig, pretrain

PLAIN: dict = {"lr": 2e-3, "n_warmup": 5, "max_norm": 1.0}
CHOICES: dict[str, dict] = {
    "linear decay": {"schedule": "linear"},
    "residual projections start at zero": {"residual_init": "zero"},
    "Muon": {"optimizer": "muon", "lr": 8e-3, "muon_lr": 0.02},
    "Muon with a momentum of 0.85": {"optimizer": "muon", "lr": 8e-3, "muon_lr": 0.02, "muon_momentum": 0.85},
    "sampled softmax, 2,048": {"sampled_softmax": 2048},
    "LSA embeddings": {"initial_embeddings": "lsa"},
    "output bias": {"output_bias": True},
    "BERT's GELU": {"activation": "gelu"},
}


def short_run(n_steps: int, **options) -> dict[str, float]:
    """Validation loss and speed of a short pretraining run."""
    config = PretrainingConfig(
        dataset_path="imdb",
        tokenizer=TOKENIZER,
        dataset_cache=CACHE,
        train_batch_size=BATCH_SIZE,
        n_steps=n_steps,
        output_dir=tempfile.mkdtemp(),
        **SHAPE | NO_DROPOUT | options,
    )
    metrics = pretrain(config)
    return {name: round(metrics[name], 3) for name in ("loss", "tokens_per_second")}


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n_steps", type=int, default=60)
    n_steps = parser.parse_args().n_steps
    rows = {"plain": short_run(n_steps, **PLAIN)}
    rows |= {name: short_run(n_steps, **PLAIN | choice) for name, choice in CHOICES.items()}
    rows["all of them"] = short_run(n_steps, **RECIPE)
    record("ablation", rows=rows, tokens=n_steps * BATCH_SIZE * SHAPE["num_max_positions"])


if __name__ == "__main__":
    main()
