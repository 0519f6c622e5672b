"""What WordPiece and byte-level BPE share: special tokens by role, and the Rust library `tokenizers`."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import processors

from checkpoints.atomic import atomic_write

# From JSON escapes and undecodable bytes. It is not text, and Rust refuses it.
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class FastTokenizer:
    """A tokenizer of the Rust library. The ids that it gives contain no special tokens of our own."""

    file: str  # its name in a run folder
    fingerprint: str | list[str]  # tokenizers with the same one give the same ids
    between_texts: list[int]  # separators between the texts of a pair

    def __init__(self, fast: tokenizers.Tokenizer, vocab: list[str], special: dict[str, str]):
        """`vocab`: the tokens by id. `special`: those in the roles pad, unk, cls, sep and perhaps mask."""
        self._fast, self.vocab, self.special = fast, vocab, special
        ids = fast.get_vocab(with_added_tokens=True)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            ids[special[role]] for role in ("pad", "unk", "cls", "sep")
        )
        self.mask_id = ids[special["mask"]] if "mask" in special else None
        self.special_ids = list(dict.fromkeys(ids[token] for token in special.values()))

    def __len__(self) -> int:
        return len(self.vocab)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        with atomic_write(Path(path)) as tmp_path:
            self._fast.save(str(tmp_path))

    def export(self, folder: Path, causal: bool, max_length: int) -> None:
        """Write the files that make `transformers` encode as we do.

        For an encoder (`causal` False), its tokenizer puts special tokens around the texts.
        """
        fast = tokenizers.Tokenizer.from_str(self._fast.to_str())
        if not causal:
            sep, cls = (self.special["sep"], self.sep_id), (self.special["cls"], self.cls_id)
            processor = processors.BertProcessing if sep[0] == "[SEP]" else processors.RobertaProcessing
            fast.post_processor = processor(sep, cls)
        fast.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
        settings |= {f"{role}_token": token for role, token in self.special.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """[tokens], int32, for each text. On all cores."""
        texts = [LONE_SURROGATE.sub("", text) for text in texts]
        encoded = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encoded]

    def encode_words(self, words: list[str]) -> list[np.ndarray]:
        """The ids of each word of running text: the unknown token if it has none (as a control character)."""
        unknown = np.array([self.unk_id], dtype=np.int32)
        return [ids if len(ids) else unknown for ids in self.encode_batch(words)]

    def encode_with_spans(self, texts: list[str]) -> list[np.ndarray]:
        """[tokens, 3] for each text: id, first character, last character + 1. On all cores."""
        texts = [LONE_SURROGATE.sub("\ufffd", text) for text in texts]  # as long, so that positions stay
        encoded = self._fast.encode_batch(texts, add_special_tokens=False)
        spans = [np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) for encoding in encoded]
        return [
            np.column_stack([np.array(encoding.ids, dtype=np.int64), span])
            for encoding, span in zip(encoded, spans, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids. WordPiece joins pieces, and removes spaces before punctuation."""
        return self._fast.decode(list(ids), skip_special_tokens=False)
