"""Pretrained checkpoints: our own run folders, and GPT-2, BERT, RoBERTa and MiniLM as other people publish them.

    python checkpoints.py RUN_FOLDER OUTPUT_FOLDER      export: write a folder that the transformers library loads

A family is a table of names: what we call a module, and what `transformers` calls it. The table is read from left to
right to load, and from right to left to export.
"""
import os
from dataclasses import dataclass, replace

from arguments import Arguments, parse_arguments, positional, run_script


@dataclass
class ExportConfig(Arguments):
    """export"""

    run_folder: str = positional("run folder of a pretraining, or of a fine-tuning without adapters")
    output_folder: str = positional("folder to write")


if __name__ == "__main__":
    config = parse_arguments(ExportConfig, __doc__)  # before the slow imports: --help answers at once

from pathlib import Path

import torch
from torch import Tensor

from arguments import UserError
from data_sources import download
from pretraining_model import ACTIVATIONS, TransformerConfig, TransformerWithLMHead
from tokenization import ByteLevelTokenizer, Tokenizer, download_tokenizer, load_tokenizer
from utils import CONFIG, WEIGHTS, file_digest, load_into, load_weights, read_run_config, save_weights, write_json

HUB_PREFIX = "hf:"
HEAD = "classification_head."  # how the names of its weights begin


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
    "layers.{}.attention.query_key_value": tuple(f"encoder.layer.{{}}.attention.self.{name}" for name in ("query", "key", "value")),
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
DECODER_CONSTANTS = {"causal": True, "pre_norm": True, "embedding_norm": False, "num_token_types": 0, "output_bias": False}
BERT_HEAD = {
    "output_transform.linear": "cls.predictions.transform.dense",
    "output_transform.norm": "cls.predictions.transform.LayerNorm",
    "output_bias": "cls.predictions.bias",
}
ROBERTA_HEAD = {"output_transform.linear": "lm_head.dense", "output_transform.norm": "lm_head.layer_norm", "output_bias": "lm_head.bias"}
FAMILIES = {
    one.model_type: one
    for one in (
        Family("gpt2", "GPT2LMHeadModel", "transformer.", DECODER, {}, DECODER_SETTINGS, DECODER_CONSTANTS, transposed=True),
        Family("bert", "BertForMaskedLM", "bert.", ENCODER, BERT_HEAD, ENCODER_SETTINGS, ENCODER_CONSTANTS),
        Family("roberta", "RobertaForMaskedLM", "roberta.", ENCODER, ROBERTA_HEAD, ENCODER_SETTINGS, ENCODER_CONSTANTS, first_position=2),
    )
}
# Settings that change what a model computes, and the only values of them that our transformer has.
REQUIRED = {
    "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True,
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "embedding_size": None,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- loading


@dataclass
class Checkpoint:
    """A trained model on disk: its shape, its weights under our names, and the folder, which holds its tokenizer too.

    Of a fine-tuned one, the head is left out. Adapters and the like come with the weights of the model that they belong to.
    """

    name: str  # as the user wrote it
    folder: Path
    config: TransformerConfig
    weights: dict[str, Tensor]
    base: "Checkpoint | None" = None  # the model that the adapters belong to, if there are such
    tuning: dict | None = None  # and how they were trained


def open_checkpoint(name: str, flag: str) -> Checkpoint:
    """A run folder of ours, pretrained or fine-tuned, a folder as `transformers` writes it, or `hf:owner/name` of the Hub.

    Raises UserError, naming the flag, if it is none of them or of a family that we do not have.
    """
    folder = download_checkpoint(name.removeprefix(HUB_PREFIX), flag) if name.startswith(HUB_PREFIX) else Path(name)
    config, where = read_run_config(folder, flag), f"{flag} {name}"
    if "model" in config:
        return open_run(name, folder, config)
    if config.get("model_type") not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"{where}: its {CONFIG} is neither that of a run nor of a model that is known here ({known}), but of {config.get('model_type')!r}")
    family = FAMILIES[config["model_type"]]
    theirs = {todays_name(key).removeprefix(family.prefix): tensor for key, tensor in load_weights(folder / WEIGHTS).items()}
    shape = read_shape(config, family, has_head=family.head.get("output_bias") in theirs, where=where)
    return Checkpoint(name, folder, shape, to_ours(theirs, family, shape, where))


def open_run(name: str, folder: Path, config: dict) -> Checkpoint:
    """What a run folder of ours holds, but for the head of a fine-tuning, which belongs to its task."""
    weights = {key: tensor for key, tensor in load_weights(folder / WEIGHTS).items() if not key.startswith(HEAD)}
    checkpoint = Checkpoint(name, folder, TransformerConfig(**config["model"]), weights)
    if not config.get("base"):
        return checkpoint
    base = find_base(folder, config["base"])
    return replace(checkpoint, weights=base.weights | weights, base=base, tuning=config["head"]["tuning"])


def describe_base(checkpoint: Checkpoint, run_folder: Path) -> dict:
    """How a run folder's config.json tells which weights its adapters belong to; also if they started as other adapters."""
    base = checkpoint.base or checkpoint
    folder = base.folder.resolve()
    relative = os.path.relpath(folder, run_folder.resolve())
    return {"name": base.name, "path": str(folder), "relative_path": relative, "sha256": file_digest(folder / WEIGHTS)}


def find_base(folder: Path, base: dict) -> Checkpoint:
    """The model that a run folder's adapters belong to. Raises UserError if it is gone or another."""
    names = [str(folder / base["relative_path"]), base["path"]]
    name = next((one for one in names if (Path(one) / WEIGHTS).is_file()), base["name"])
    if not name.startswith(HUB_PREFIX) and not Path(name, WEIGHTS).is_file():
        raise UserError(f"the adapters of {folder} need the pretrained model {base['path']}, which is not there any more")
    checkpoint = open_checkpoint(name, "the base of the adapters,")
    if file_digest(checkpoint.folder / WEIGHTS) != base["sha256"]:
        raise UserError(f"the adapters of {folder} were trained on other weights than {checkpoint.folder / WEIGHTS} now holds")
    return replace(checkpoint, name=base["name"])


def load_pretrained(name: str | Path, flag: str) -> tuple[TransformerWithLMHead, Tokenizer | ByteLevelTokenizer]:
    """The language model of a checkpoint and its tokenizer. Raises UserError, naming the flag, if there is none."""
    checkpoint = open_checkpoint(str(name), flag)
    model = TransformerWithLMHead(checkpoint.config)
    load_into(model, checkpoint.weights, f"{flag} {name}")
    return model, load_tokenizer(str(checkpoint.folder))


def download_checkpoint(repository: str, flag: str) -> Path:
    """The folder of the local Hub cache with config, weights and tokenizer of a model. Raises UserError if it has none."""
    folder = download(repository, CONFIG, flag).parent
    download(repository, WEIGHTS, flag, "; pickled weights are never loaded, since they can run code")
    download_tokenizer(repository, flag)
    return folder


def todays_name(key: str) -> str:
    """Old checkpoints have LayerNorms as TensorFlow named them."""
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def read_shape(config: dict, family: Family, has_head: bool, where: str) -> TransformerConfig:
    """Our config from theirs. Raises UserError for a setting that our transformer does not have."""
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key} {config[key]!r} is not known here, only {value!r}")
    missing = [theirs for theirs in family.settings.values() if theirs in ("vocab_size", "n_embd", "hidden_size") and theirs not in config]
    if missing:
        raise UserError(f"{where}: its {CONFIG} lacks {missing[0]}")
    found = {ours: config[theirs] for ours, theirs in family.settings.items() if config.get(theirs) is not None} | family.constants
    found.setdefault("hidden_dim", 4 * found["embed_dim"])
    found["num_max_positions"] -= family.first_position
    found["activation"] = {"gelu_pytorch_tanh": "gelu_new"}.get(found["activation"], found["activation"])
    if found["activation"] not in ACTIVATIONS:
        raise UserError(f"{where}: the activation {found['activation']} is not known here; known: {', '.join(ACTIVATIONS)}")
    return TransformerConfig(**found | {"output_transform": has_head, "output_bias": has_head})


def tensor_names(family: Family, config: TransformerConfig) -> dict[str, list[str]]:
    """Our name of every tensor of a model → theirs: one, or three that we keep stacked."""
    names = {}
    for ours, theirs in family.modules.items():
        modules = [theirs] if isinstance(theirs, str) else theirs
        for layer in range(config.num_layers if "{}" in ours else 1):
            for kind in ("weight",) if is_embedding(ours) else ("weight", "bias"):
                names[f"transformer.{ours.format(layer)}.{kind}"] = [f"{one.format(layer)}.{kind}" for one in modules]
    if config.output_transform:
        names |= {f"{ours}.{kind}": [f"{theirs}.{kind}"] for ours, theirs in family.head.items() if ours != "output_bias" for kind in ("weight", "bias")}
        names["output_bias"] = [family.head["output_bias"]]
    return names


def to_ours(theirs: dict[str, Tensor], family: Family, config: TransformerConfig, where: str) -> dict[str, Tensor]:
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


# -------------------------------------------------------------------------------------------------------- exporting


def export(config: ExportConfig) -> None:
    """Write the transformer of a run folder (and its language-modelling head) with its tokenizer for `transformers`.

    Raises UserError for a model that no family describes.
    """
    folder, output = Path(config.run_folder), Path(config.output_folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"OUTPUT_FOLDER {output} is not an empty folder; name a new one")
    if read_run_config(folder, "RUN_FOLDER").get("base"):
        raise UserError(f"RUN_FOLDER {folder} holds adapters alone, which transformers has no place for")
    checkpoint = open_checkpoint(str(folder), "RUN_FOLDER")
    settings, weights = to_theirs(checkpoint, find_family(checkpoint.config, f"RUN_FOLDER {folder}"))
    tokenizer = load_tokenizer(str(folder))
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.export(output, checkpoint.config.causal, checkpoint.config.num_max_positions)
    save_weights(output / WEIGHTS, weights)
    write_json(output / CONFIG, settings | {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id})
    print(f"{settings['architectures'][0]} in {output}")


def find_family(config: TransformerConfig, where: str) -> Family:
    """The family that has a model of this shape. Raises UserError if none has."""
    name = "gpt2" if config.causal else "roberta" if config.num_token_types == 1 else "bert"
    wanted = FAMILIES[name].constants
    other = [key for key, value in wanted.items() if getattr(config, key) != value]
    if other:
        raise UserError(f"{where}: transformers has no such model: {name} with {other[0]} {getattr(config, other[0])}, not {wanted[other[0]]}")
    return FAMILIES[name]


def to_theirs(checkpoint: Checkpoint, family: Family) -> tuple[dict, dict[str, Tensor]]:
    """config.json and weights as `transformers` wants them."""
    config, weights = checkpoint.config, {}
    for ours, names in tensor_names(family, config).items():
        tensor = checkpoint.weights[ours]
        if ours == "transformer.position_embeddings.weight":
            tensor = torch.cat((tensor.new_zeros(family.first_position, tensor.size(1)), tensor))
        tensor = tensor.T.contiguous() if family.transposed and is_matrix(ours, tensor) else tensor
        prefix = family.prefix if ours.startswith("transformer.") else ""
        weights |= {prefix + name: part.clone() for name, part in zip(names, tensor.chunk(len(names)), strict=True)}
    settings = {theirs: getattr(config, ours) for ours, theirs in family.settings.items()}
    settings[family.settings["num_max_positions"]] += family.first_position
    return settings | {"model_type": family.model_type, "architectures": [family.architecture]}, weights


if __name__ == "__main__":
    run_script(export, config)
