"""Byte-level BPE, as GPT-2 and RoBERTa have it."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from config.errors import UserError
from config.presets import read_json
from data.fast_tokenizers import export_tokenizer, ids_of, never_empty, spans_of


class ByteLevelTokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) as GPT-2 and RoBERTa have it. The Rust library does
    the work.

    GPT-2 has one special token, which opens, closes and pads; it takes the part of [CLS], [SEP] and [PAD],
    and there is no [MASK]. RoBERTa has two separators between the texts of a pair.
    """

    file = "tokenizer.json"
    NAMES = {
        "pad": ("<pad>", "<|endoftext|>"), "unk": ("<unk>", "<|endoftext|>"), "cls": ("<s>", "<|endoftext|>"),
        "sep": ("</s>", "<|endoftext|>"), "mask": ("<mask>",),
    }  # fmt: skip

    def __init__(self, fast: tokenizers.Tokenizer):
        """Raises UserError where the special tokens are neither GPT-2's nor RoBERTa's."""
        fast.no_truncation()
        fast.no_padding()
        self._fast = fast
        ids = fast.get_vocab(with_added_tokens=True)
        self.vocab = sorted(ids, key=ids.get)
        self.fingerprint = fast.to_str()
        self.special = {
            part: name for part, names in self.NAMES.items() for name in reversed(names) if name in ids
        }
        if len(self.special.keys() - {"mask"}) < 4:
            raise UserError(
                "it has neither GPT-2's special token <|endoftext|> nor RoBERTa's <pad>, <unk>, <s> and </s>"
            )
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
            ids[self.special[part]] for part in ("pad", "unk", "cls", "sep")
        )
        self.mask_id = ids.get(self.special.get("mask"))
        self.special_ids = sorted({ids[name] for name in self.special.values()})
        self.between_texts = [self.sep_id] if self.cls_id == self.sep_id else [self.sep_id, self.sep_id]

    def __len__(self) -> int:
        return len(self.vocab)

    @classmethod
    def from_files(cls, vocab: Path, merges: Path, add_prefix_space: bool = False) -> "ByteLevelTokenizer":
        """Read `vocab.json` and `merges.txt`, as GPT-2 and RoBERTa were published.

        `add_prefix_space`: the first word of a text is encoded as any other, behind a space.
        """
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        known = read_json(vocab)
        tokenizer.add_special_tokens(
            sorted({name for names in cls.NAMES.values() for name in names if name in known}, key=known.get)
        )
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        self._fast.save(str(path))

    def export(self, folder: Path, causal: bool, max_length: int) -> None:
        """Write the files that make `transformers` encode as we do."""
        export_tokenizer(self._fast, folder, self.special, causal, max_length)

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special tokens of our own."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of many texts, an array each, on all cores."""
        return ids_of(self._fast, texts)

    def encode_words(self, words: list[str]) -> list[np.ndarray]:
        """The ids of words of running text, each behind a space, an array each."""
        return never_empty(self.encode_batch([f" {word}" for word in words]), self.unk_id)

    def encode_with_spans(self, texts: list[str]) -> list[np.ndarray]:
        """[tokens, 3] for each text: the id of each token, and the characters where it begins and ends."""
        return spans_of(self._fast, texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text, byte for byte."""
        return self._fast.decode(list(ids), skip_special_tokens=False)
