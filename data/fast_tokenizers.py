"""What all tokenizers have from the Rust library."""

import json
import re
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import processors

LONE_SURROGATE = re.compile(
    "[\ud800-\udfff]"
)  # from JSON escapes and undecodable bytes; not text, Rust refuses it


def never_empty(encoded: list[np.ndarray], unk_id: int) -> list[np.ndarray]:
    """The same, with an unknown token for a word that has none (a control character, for instance)."""
    return [ids if len(ids) else np.array([unk_id], dtype=np.int32) for ids in encoded]


def ids_of(fast: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """[tokens] for each text. On all cores."""
    texts = [LONE_SURROGATE.sub("", text) for text in texts]
    encoded = fast.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(one.ids, dtype=np.int32) for one in encoded]


def spans_of(fast: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """[tokens, 3] for each text: id, first character, last character + 1. On all cores."""
    texts = [LONE_SURROGATE.sub("\ufffd", text) for text in texts]  # one character for another: places stay
    encoded = fast.encode_batch(texts, add_special_tokens=False)
    return [
        np.column_stack([one.ids, np.array(one.offsets, dtype=np.int64).reshape(-1, 2)]).astype(np.int64)
        for one in encoded
    ]


def export_tokenizer(
    fast: tokenizers.Tokenizer, folder: Path, special: dict[str, str], causal: bool, max_length: int
) -> None:
    """tokenizer.json and tokenizer_config.json; an encoder's tokenizer puts the special tokens around its
    texts.
    """
    fast = tokenizers.Tokenizer.from_str(fast.to_str())
    if not causal:
        cls, sep = ((special[part], fast.token_to_id(special[part])) for part in ("cls", "sep"))
        processor = processors.BertProcessing if sep[0] == "[SEP]" else processors.RobertaProcessing
        fast.post_processor = processor(sep, cls)
    fast.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length} | {
        f"{part}_token": token for part, token in special.items()
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
