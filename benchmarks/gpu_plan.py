"""What benchmarks/gpu.py measures: models, batch sizes, rounds, and the time that each section may take."""

from dataclasses import dataclass, field

from common import NO_DROPOUT

from config.model import TransformerConfig


@dataclass(frozen=True)
class Pretraining:
    """A model to pretrain, and the sequences per step if the card has memory for them."""

    num_embeddings: int
    n_rows: int
    flags: dict = field(default_factory=dict)  # of PretrainingConfig


@dataclass(frozen=True)
class Finetuning:
    """An encoder to fine-tune, and its batches."""

    shape: TransformerConfig
    n_rows: int = 64
    max_length: int = 128


# PretrainingConfig's defaults, with the vocabulary of bert-base-cased.
TUTORIAL = Pretraining(28_996, 128)
# As in nanoGPT, the vocabulary of 50,257 is padded to a multiple of 64.
GPT2_SMALL = Pretraining(
    50_304,
    16,
    NO_DROPOUT
    | {"embed_dim": 768, "hidden_dim": 3072, "num_layers": 12, "num_heads": 12, "num_max_positions": 1024},
)
BERT_BASE = Finetuning(
    TransformerConfig(
        num_embeddings=30_522,
        embed_dim=768,
        hidden_dim=3072,
        num_max_positions=512,
        num_heads=12,
        num_layers=12,
        activation="gelu",
        causal=False,
        pre_norm=False,
        embedding_norm=True,
        num_token_types=2,
        layer_norm_eps=1e-12,
    )
)
# Seconds that each section may take; compilation takes most of them.
SECONDS = {
    "matmul": 10,
    "losses": 90,
    "tutorial": 130,
    "finetuning": 40,
    "gpt2_small": 130,
    "finetuning_compiled": 90,
}


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    tutorial: Pretraining = TUTORIAL
    gpt2_small: Pretraining = GPT2_SMALL
    bert_base: Finetuning = BERT_BASE
    n_losses: int = 50  # steps whose losses are compared
    n_steps: int = 10  # per round
    n_rounds: int = 5
    matrix_size: int = 8192
    compile: bool = True
    budget: float = 450.0  # seconds; the rest of the 8 minutes is for starting the process
