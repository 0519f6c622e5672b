"""GPT-2, BERT, RoBERTa and MiniLM as other people publish them: their names, shapes and layouts, and ours.

A family is a table of names: what we call a module, and what `transformers` calls it. The table is read from
left to right to load, and from right to left to export.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.files import CONFIG, WEIGHTS
from config.errors import UserError
from config.model import TransformerConfig
from pretraining_model import ACTIVATIONS


@dataclass(frozen=True)
class Family:
    """How `transformers` names, shapes and configures a kind of model. `{}` stands for the number of a layer."""

    model_type: str
    architecture: str  # its class with a language-modelling head
    prefix: str  # of the modules of the transformer, in a checkpoint that holds a head too
    modules: dict[str, str | tuple[str, str, str]]  # three: queries, keys and values apart
    head: dict[str, str]
    settings: dict[str, str]  # our names of the settings in config.json
    constants: dict[str, object]  # settings that all models of the family share
    transposed: bool = False  # matrices of linear layers are stored [in, out]
    first_position: int = 0  # rows of the position embeddings that no token ever uses


ENCODER = {
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
    "num_embeddings": "vocab_size", "embed_dim": "hidden_size", "hidden_dim": "intermediate_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_max_positions": "max_position_embeddings", "num_token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps", "activation": "hidden_act", "initializer_range": "initializer_range",
    "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob",
}  # fmt: skip
ENCODER_CONSTANTS = {"causal": False, "pre_norm": False, "embedding_norm": True}
DECODER = {
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
    "num_embeddings": "vocab_size", "embed_dim": "n_embd", "hidden_dim": "n_inner", "num_layers": "n_layer", "num_heads": "n_head",
    "num_max_positions": "n_positions", "layer_norm_eps": "layer_norm_epsilon", "activation": "activation_function",
    "initializer_range": "initializer_range", "dropout": "resid_pdrop", "attention_dropout": "attn_pdrop",
}  # fmt: skip
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
FAMILIES = {
    one.model_type: one
    for one in (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            "transformer.",
            DECODER,
            {},
            DECODER_SETTINGS,
            DECODER_CONSTANTS,
            transposed=True,
        ),
        Family("bert", "BertForMaskedLM", "bert.", ENCODER, BERT_HEAD, ENCODER_SETTINGS, ENCODER_CONSTANTS),
        Family(
            "roberta",
            "RobertaForMaskedLM",
            "roberta.",
            ENCODER,
            ROBERTA_HEAD,
            ENCODER_SETTINGS,
            ENCODER_CONSTANTS,
            first_position=2,
        ),
    )
}
# Settings that change what a model computes, and the only values of them that our transformer has.
REQUIRED = {
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "embedding_size": None,
}  # fmt: skip


def todays_name(key: str) -> str:
    """Old checkpoints have LayerNorms as TensorFlow named them."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_shape(config: dict, family: Family, has_head: bool, where: str) -> TransformerConfig:
    """Our config from theirs. Raises UserError for a setting that our transformer does not have."""
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key} {config[key]!r} is not known here, only {value!r}")
    missing = [
        theirs
        for theirs in family.settings.values()
        if theirs in ("vocab_size", "n_embd", "hidden_size") and theirs not in config
    ]
    if missing:
        raise UserError(f"{where}: its {CONFIG} lacks {missing[0]}")
    found = {
        ours: config[theirs] for ours, theirs in family.settings.items() if config.get(theirs) is not None
    } | family.constants
    found.setdefault("hidden_dim", 4 * found["embed_dim"])
    found["num_max_positions"] -= family.first_position
    found["activation"] = {"gelu_pytorch_tanh": "gelu_new"}.get(found["activation"], found["activation"])
    if found["activation"] not in ACTIVATIONS:
        raise UserError(
            f"{where}: the activation {found['activation']} is not known here; known: {', '.join(ACTIVATIONS)}"
        )
    return TransformerConfig(**found | {"output_transform": has_head, "output_bias": has_head})


def tensor_names(family: Family, config: TransformerConfig) -> dict[str, list[str]]:
    """Our name of every tensor of a model → theirs: one, or three that we keep stacked."""
    names = {}
    for ours, theirs in family.modules.items():
        modules = [theirs] if isinstance(theirs, str) else theirs
        for layer in range(config.num_layers if "{}" in ours else 1):
            for kind in ("weight",) if is_embedding(ours) else ("weight", "bias"):
                names[f"transformer.{ours.format(layer)}.{kind}"] = [
                    f"{one.format(layer)}.{kind}" for one in modules
                ]
    if config.output_transform:
        names |= {
            f"{ours}.{kind}": [f"{theirs}.{kind}"]
            for ours, theirs in family.head.items()
            if ours != "output_bias"
            for kind in ("weight", "bias")
        }
        names["output_bias"] = [family.head["output_bias"]]
    return names


def to_ours(
    theirs: dict[str, Tensor], family: Family, config: TransformerConfig, where: str
) -> dict[str, Tensor]:
    """Weights of `transformers` under our names and in our layout. Raises UserError if one is missing."""
    weights = {}
    for ours, names in tensor_names(family, config).items():
        missing = [name for name in names if name not in theirs]
        if missing:
            raise UserError(f"{where}: its {WEIGHTS} lacks {missing[0]}")
        tensor = torch.cat([theirs[name] for name in names])
        if ours == "transformer.position_embeddings.weight":
            tensor = tensor[family.first_position :]
        weights[ours] = tensor.T.contiguous() if family.transposed and is_matrix(ours, tensor) else tensor
    return weights


def is_embedding(name: str) -> bool:
    """Is it the name of an embedding, which has no bias and is never transposed?"""
    return "_embeddings" in name


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Is it the weight of a linear layer?"""
    return tensor.dim() == 2 and not is_embedding(name)


def find_family(config: TransformerConfig, where: str) -> Family:
    """The family that has a model of this shape. Raises UserError if none has."""
    name = "gpt2" if config.causal else "roberta" if config.num_token_types == 1 else "bert"
    wanted = FAMILIES[name].constants
    other = [key for key, value in wanted.items() if getattr(config, key) != value]
    if other:
        raise UserError(
            f"{where}: transformers has no such model: {name} with {other[0]} {getattr(config, other[0])}, not {wanted[other[0]]}"
        )
    return FAMILIES[name]


def to_theirs(
    config: TransformerConfig, ours: dict[str, Tensor], family: Family
) -> tuple[dict, dict[str, Tensor]]:
    """config.json and weights as `transformers` wants them."""
    weights = {}
    for name, names in tensor_names(family, config).items():
        tensor = ours[name]
        if name == "transformer.position_embeddings.weight":
            tensor = torch.cat((tensor.new_zeros(family.first_position, tensor.size(1)), tensor))
        tensor = tensor.T.contiguous() if family.transposed and is_matrix(name, tensor) else tensor
        prefix = family.prefix if name.startswith("transformer.") else ""
        weights |= {
            prefix + theirs: part.clone()
            for theirs, part in zip(names, tensor.chunk(len(names)), strict=True)
        }
    settings = {theirs: getattr(config, ours) for ours, theirs in family.settings.items()}
    settings[family.settings["num_max_positions"]] += family.first_position
    return settings | {"model_type": family.model_type, "architectures": [family.architecture]}, weights
