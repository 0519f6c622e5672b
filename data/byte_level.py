"""Byte-level BPE, as GPT-2 and RoBERTa have it."""

from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from config.errors import UserError
from config.presets import read_json
from data.fast_tokenizers import FastTokenizer

SPECIAL_TOKENS = {  # by role: RoBERTa's, GPT-2's
    "pad": ("<pad>", "<|endoftext|>"),
    "unk": ("<unk>", "<|endoftext|>"),
    "cls": ("<s>", "<|endoftext|>"),
    "sep": ("</s>", "<|endoftext|>"),
    "mask": ("<mask>",),
}


class ByteLevelTokenizer(FastTokenizer):
    """Byte-level BPE (Radford et al. 2019, section 2.2) as GPT-2 and RoBERTa have it.

    GPT-2 has one special token, which opens, closes and pads; it takes the role of [CLS], [SEP] and [PAD],
    and there is no [MASK]. RoBERTa has two separators between the texts of a pair.
    """

    file = "tokenizer.json"

    def __init__(self, fast: tokenizers.Tokenizer):
        """Raises UserError where the special tokens are neither GPT-2's nor RoBERTa's."""
        fast.no_truncation()
        fast.no_padding()
        ids = fast.get_vocab(with_added_tokens=True)
        special = {
            role: token
            for role, tokens in SPECIAL_TOKENS.items()
            for token in reversed(tokens)
            if token in ids
        }
        if len(special.keys() - {"mask"}) < 4:
            raise UserError(
                "it has neither GPT-2's special token <|endoftext|> nor RoBERTa's <pad>, <unk>, <s> and </s>"
            )
        super().__init__(fast, sorted(ids, key=ids.__getitem__), special)
        self.fingerprint = fast.to_str()
        self.between_texts = [self.sep_id] if self.cls_id == self.sep_id else [self.sep_id, self.sep_id]

    @classmethod
    def from_files(cls, vocab: Path, merges: Path, add_prefix_space: bool = False) -> "ByteLevelTokenizer":
        """Read `vocab.json` and `merges.txt`, as GPT-2 and RoBERTa were published.

        `add_prefix_space`: the first word of a text is encoded as any other, behind a space.
        """
        fast = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        fast.decoder = decoders.ByteLevel()
        ids = read_json(vocab)
        special = {token for tokens in SPECIAL_TOKENS.values() for token in tokens if token in ids}
        fast.add_special_tokens(sorted(special, key=ids.__getitem__))
        return cls(fast)

    def encode_words(self, words: list[str]) -> list[np.ndarray]:
        """The ids of each word of running text, behind a space."""
        return super().encode_words([f" {word}" for word in words])
