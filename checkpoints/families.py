"""GPT-2, BERT, RoBERTa and MiniLM as published: their names, shapes and layouts, and ours.

A family is a table of names: what we call a module, and what the transformers library calls it. Export reads
the table from left to right, import from right to left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from checkpoints.files import CONFIG, WEIGHTS
from config.errors import UserError
from config.model import TransformerConfig
from pretraining_model import ACTIVATIONS

POSITIONS = "transformer.position_embeddings.weight"
ModuleNames = Mapping[
    str, str | tuple[str, ...]
]  # ours → theirs; three where queries, keys, values are apart


@dataclass(frozen=True)
class Family:
    """How transformers names, shapes and configures a type of model; `{}` is the number of a layer."""

    model_type: str
    architecture: str  # its class with a language-modelling head
    prefix: str  # of the transformer's modules, in a checkpoint that has a head too
    modules: ModuleNames
    head: Mapping[str, str]
    settings: Mapping[str, str]  # our name → theirs in config.json
    constants: Mapping[str, object]  # settings that all models of the family share
    transposed: bool = False  # matrices of linear layers are stored [in, out]
    first_position: int = 0  # rows of the position embeddings that no token ever uses


ENCODER: ModuleNames = {
    "token_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layers.{}.attention.query_key_value": tuple(
        f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")
    ),
    "layers.{}.attention.projection": "encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.feed_forward.expansion": "encoder.layer.{}.intermediate.dense",
    "layers.{}.feed_forward.projection": "encoder.layer.{}.output.dense",
    "layers.{}.feed_forward_norm": "encoder.layer.{}.output.LayerNorm",
}
ENCODER_SETTINGS = {
    "num_embeddings": "vocab_size",
    "embed_dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "initializer_range": "initializer_range",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
ENCODER_CONSTANTS = {"causal": False, "pre_norm": False, "embedding_norm": True}
DECODER: ModuleNames = {
    "token_embeddings": "wte",
    "position_embeddings": "wpe",
    "layers.{}.attention_norm": "h.{}.ln_1",
    "layers.{}.attention.query_key_value": "h.{}.attn.c_attn",
    "layers.{}.attention.projection": "h.{}.attn.c_proj",
    "layers.{}.feed_forward_norm": "h.{}.ln_2",
    "layers.{}.feed_forward.expansion": "h.{}.mlp.c_fc",
    "layers.{}.feed_forward.projection": "h.{}.mlp.c_proj",
    "final_norm": "ln_f",
}
DECODER_SETTINGS = {
    "num_embeddings": "vocab_size",
    "embed_dim": "n_embd",
    "hidden_dim": "n_inner",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "num_max_positions": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "activation": "activation_function",
    "initializer_range": "initializer_range",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
}
DECODER_CONSTANTS = {
    "causal": True,
    "pre_norm": True,
    "embedding_norm": False,
    "num_token_types": 0,
    "output_bias": False,
}
BERT_HEAD = {
    "output_transform.linear": "cls.predictions.transform.dense",
    "output_transform.norm": "cls.predictions.transform.LayerNorm",
    "output_bias": "cls.predictions.bias",
}
ROBERTA_HEAD = {
    "output_transform.linear": "lm_head.dense",
    "output_transform.norm": "lm_head.layer_norm",
    "output_bias": "lm_head.bias",
}
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    modules=DECODER,
    head={},
    settings=DECODER_SETTINGS,
    constants=DECODER_CONSTANTS,
    transposed=True,
)
BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    prefix="bert.",
    modules=ENCODER,
    head=BERT_HEAD,
    settings=ENCODER_SETTINGS,
    constants=ENCODER_CONSTANTS,
)
ROBERTA = Family(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    prefix="roberta.",
    modules=ENCODER,
    head=ROBERTA_HEAD,
    settings=ENCODER_SETTINGS,
    constants=ENCODER_CONSTANTS,
    first_position=2,
)
FAMILIES = {family.model_type: family for family in (GPT2, BERT, ROBERTA)}
# Settings that change what a model computes, and the only values of them that our transformer supports.
REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "embedding_size": None,
}


def rename_legacy_layer_norm(key: str) -> str:
    """Old checkpoints have TensorFlow's names for the parameters of LayerNorms."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_shape(config: dict, family: Family, has_head: bool, source: str) -> TransformerConfig:
    """Our config from theirs. Raises UserError, naming the source, for what our transformer does not have."""
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise UserError(f"{source}: {key} {config[key]!r} is not supported, only {value!r}")
    for key in (family.settings["num_embeddings"], family.settings["embed_dim"]):
        if key not in config:
            raise UserError(f"{source}: its {CONFIG} lacks {key}")
    shape: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in family.settings.items()}
    shape = {ours: value for ours, value in shape.items() if value is not None}
    shape = {"hidden_dim": 4 * shape["embed_dim"], "output_bias": has_head, **shape, **family.constants}
    shape["num_max_positions"] -= family.first_position
    if shape["activation"] == "gelu_pytorch_tanh":  # the same under another name
        shape["activation"] = "gelu_new"
    if shape["activation"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{source}: the activation {shape['activation']} is not supported, only {known}")
    return TransformerConfig(**shape, output_transform=has_head)


def tensor_names(family: Family, config: TransformerConfig) -> dict[str, list[str]]:
    """Our name of every tensor of a model → theirs: one, or three that we keep stacked."""
    names = {}
    for ours, theirs in family.modules.items():
        modules = [theirs] if isinstance(theirs, str) else theirs
        for layer in range(config.num_layers if "{}" in ours else 1):
            for suffix in ("weight",) if is_embedding(ours) else ("weight", "bias"):
                key = f"transformer.{ours.format(layer)}.{suffix}"
                names[key] = [f"{module.format(layer)}.{suffix}" for module in modules]
    if config.output_transform:
        for ours, theirs in family.head.items():
            suffixes = [""] if ours == "output_bias" else [".weight", ".bias"]
            names |= {ours + suffix: [theirs + suffix] for suffix in suffixes}
    return names


def to_ours(
    theirs: Mapping[str, Tensor], family: Family, config: TransformerConfig, source: str
) -> dict[str, Tensor]:
    """Weights of transformers under our names and in our layout. Raises UserError if one is missing."""
    weights = {}
    for ours, names in tensor_names(family, config).items():
        missing = [name for name in names if name not in theirs]
        if missing:
            raise UserError(f"{source}: its {WEIGHTS} lacks {missing[0]}")
        tensor = torch.cat([theirs[name] for name in names])
        if ours == POSITIONS:
            tensor = tensor[family.first_position :]
        weights[ours] = tensor.T.contiguous() if family.transposed and is_matrix(ours, tensor) else tensor
    return weights


def is_embedding(name: str) -> bool:
    """Whether it is the name of an embedding, which has no bias and is never transposed."""
    return "_embeddings" in name


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether it is the weight of a linear layer."""
    return tensor.dim() == 2 and not is_embedding(name)


def find_family(config: TransformerConfig, source: str) -> Family:
    """The family that has a model of this shape. Raises UserError, naming the source, if none has."""
    family = GPT2 if config.causal else ROBERTA if config.num_token_types == 1 else BERT
    for key, value in family.constants.items():
        if getattr(config, key) != value:
            raise UserError(
                f"{source}: transformers has no such model: {family.model_type} with {key}"
                f" {getattr(config, key)}, not {value}"
            )
    return family


def to_theirs(
    config: TransformerConfig, ours: Mapping[str, Tensor], family: Family
) -> tuple[dict, dict[str, Tensor]]:
    """config.json and weights as transformers expects them."""
    weights: dict[str, Tensor] = {}
    for name, names in tensor_names(family, config).items():
        tensor = ours[name]
        if name == POSITIONS:
            tensor = torch.cat((tensor.new_zeros(family.first_position, tensor.size(1)), tensor))
        tensor = tensor.T.contiguous() if family.transposed and is_matrix(name, tensor) else tensor
        prefix = family.prefix if name.startswith("transformer.") else ""
        weights |= {
            prefix + theirs: chunk.clone()
            for theirs, chunk in zip(names, tensor.chunk(len(names)), strict=True)
        }
    settings = {theirs: getattr(config, ours) for ours, theirs in family.settings.items()}
    settings[family.settings["num_max_positions"]] += family.first_position
    return settings | {"model_type": family.model_type, "architectures": [family.architecture]}, weights
