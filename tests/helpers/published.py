"""Random checkpoints as the transformers library publishes them, each with a tokenizer of its family."""

from pathlib import Path

import tokenizers
import torch
import transformers

from data.wordpiece import Tokenizer

POSITIONS, VOCABULARY = 40, 500
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
BPE_TOKENS = {"gpt2": ["<|endoftext|>"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]}
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=3, n_head=4)
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**ENCODER)),
    "roberta": lambda: transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
            **ENCODER
            | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
        )
    ),
    "bert with GPT-2's activation": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(hidden_act="gelu_new", **ENCODER)
    ),
    "bert without a head": lambda: transformers.BertModel(transformers.BertConfig(**ENCODER)),
    "gpt2 without a head": lambda: (
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=32, n_layer=3, n_head=4, n_inner=48
            )
        ).transformer
    ),
}


def save_random(kind: str, folder: Path):
    """A model whose every parameter matters, in a folder."""
    torch.manual_seed(0)
    reference = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    reference.tie_weights()
    reference.save_pretrained(folder)
    return reference


def save_tokenizer(family: str, folder: Path, reviews: list[dict], tokenizer: Tokenizer) -> None:
    """A tokenizer of the family's kind, trained on reviews, in a checkpoint's folder."""
    if family == "bert":
        tokenizer.save(folder / "vocab.txt")
        return
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train_from_iterator(
        (row["text"] for row in reviews[:300]),
        vocab_size=VOCABULARY,
        special_tokens=BPE_TOKENS[family],
        show_progress=False,
    )
    learner.save_model(str(folder))


def padded_batch():
    input_ids = torch.randint(5, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([[20], [13], [1]])).long()
    # RoBERTa counts its positions from the ids, where 1 is padding.
    return input_ids.masked_fill(mask == 0, 1), mask
