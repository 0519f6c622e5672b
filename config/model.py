"""The shape of a transformer."""

from dataclasses import dataclass, fields

from config.errors import UserError
from config.groups import ModelArguments


@dataclass
class TransformerConfig:
    """The shape of a transformer; by default the tutorial's, 50M parameters with a vocabulary of 29k."""

    num_embeddings: int
    embed_dim: int = 410
    hidden_dim: int = 2100
    num_max_positions: int = 256
    num_heads: int = 10
    num_layers: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02
    activation: str = "gelu_new"
    residual_init: str = "scaled"
    sinusoidal_embeddings: bool = False
    causal: bool = True
    output_bias: bool = False
    sampled_softmax: int = 0
    # What checkpoints of other families need (checkpoints/families.py); pretraining never changes it.
    pre_norm: bool = True  # LayerNorm before each sub-layer, as GPT-2; else after the residual sum, as BERT
    embedding_norm: bool = False
    num_token_types: int = 0  # segment embeddings
    layer_norm_eps: float = 1e-5
    output_transform: bool = False  # a linear layer, the activation and a LayerNorm before the LM head

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.sinusoidal_embeddings and self.embed_dim % 2:
            raise UserError(f"sinusoidal embeddings need an even embed_dim, not {self.embed_dim}")


def transformer_config(flags: ModelArguments, num_embeddings: int) -> TransformerConfig:
    """The model's shape from the flags. Raises UserError if they do not fit together."""
    shape = {field.name for field in fields(TransformerConfig)} & set(vars(flags))
    return TransformerConfig(
        num_embeddings, causal=not flags.mlm, **{name: getattr(flags, name) for name in shape}
    )
