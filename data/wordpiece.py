"""WordPiece (Devlin et al. 2019): the tokenizer, and how its vocabulary is learned."""

import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from checkpoints.atomic import atomic_write
from config.errors import UserError
from data.fast_tokenizers import LONE_SURROGATE, FastTokenizer
from data.tokenizer_settings import bert_normalizer, read_settings

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# The reference takes "[MASK]" for a special token only between spaces, the Rust library everywhere.
GLUED_SPECIAL_TOKEN = re.compile(r"\S\[(?:PAD|UNK|CLS|SEP|MASK)\]|\[(?:PAD|UNK|CLS|SEP|MASK)\]\S")
# split() takes these for spaces; the reference deletes them.
DELETED_SPACE = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
WORDS_PER_CALL = 200  # a call of the Rust library costs as much as some ten words
MAX_WORDS = 2**19  # some 100 MB of words and their ids


class Tokenizer(FastTokenizer):
    """WordPiece (Devlin et al. 2019) whose ids are those of `pytorch_pretrained_bert.BertTokenizer`.

    The tokens of a word do not depend on other words, so each word is encoded once and then looked up; the
    Rust library does the work. It disagrees with the reference about a few characters (above all those
    younger than its Unicode tables) and about special tokens glued to other text: such words go to the
    reference itself.

    The reference strips accents if and only if it lowercases. For a checkpoint that wants anything else the
    Rust library encodes whole texts, as in `transformers`.
    """

    def __init__(self, vocab: list[str], normalizer: normalizers.Normalizer | None = None):
        """`vocab`: the tokens by id. `normalizer`: what becomes of case, accents and so on; guessed from the
        vocabulary by default. Raises UserError where a special token is missing.
        """
        self.token_to_id = {token: index for index, token in enumerate(vocab)}
        missing = [token for token in SPECIAL_TOKENS if token not in self.token_to_id]
        if missing:
            raise UserError(f"the vocabulary lacks the special tokens {', '.join(missing)}")
        guessed = normalizers.BertNormalizer(lowercase=_is_uncased(vocab))
        normalizer = guessed if normalizer is None else normalizer
        fast = _fast_tokenizer(models.WordPiece(self.token_to_id, unk_token="[UNK]"), normalizer)
        fast.add_special_tokens(list(SPECIAL_TOKENS))
        roles = ("pad", "unk", "cls", "sep", "mask")
        super().__init__(fast, vocab, dict(zip(roles, SPECIAL_TOKENS, strict=True)))
        self.between_texts = [self.sep_id]
        rules = _rules(normalizer)
        self.lowercase = rules.get("lowercase", False)
        self._has_reference = rules == _rules(normalizers.BertNormalizer(lowercase=self.lowercase))
        is_guessable = rules == _rules(guessed)  # from the vocabulary alone
        self.file = "vocab.txt" if is_guessable else "tokenizer.json"
        self.fingerprint = vocab if is_guessable else fast.to_str()
        self._words = WordTable(self._encode_new_words)
        self._agrees: dict[str, bool] = {}  # character → do the Rust library and the reference agree on it?

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a `vocab.txt`, one token a line, with its settings. Raises UserError if it is not one."""
        normalizer = bert_normalizer(read_settings(Path(path)))
        try:
            lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
            return cls([line.strip() for line in lines], normalizer)
        except (OSError, ValueError) as error:  # not UTF-8, or without special tokens
            raise UserError(f"{path} cannot be read as a WordPiece vocabulary: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write what `file` names: `vocab.txt`, one token a line, or `tokenizer.json`."""
        if self.file == "tokenizer.json":
            super().save(path)
        else:
            with atomic_write(Path(path)) as tmp_path:
                tmp_path.write_text("".join(f"{token}\n" for token in self.vocab), encoding="utf-8")

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """[tokens], int32, for each text."""
        if not self._has_reference:
            return super().encode_batch(texts)
        return self._words.look_up([[text] if DELETED_SPACE.search(text) else text.split() for text in texts])

    def _encode_new_words(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The concatenated ids of the words, and how many each word has.

        The Rust library gets many words at once, each closed by [PAD].
        """
        slow = {row: self._reference_ids(word) for row, word in enumerate(words) if self._is_slow(word)}
        fast = ["" if row in slow else word for row, word in enumerate(words)]
        lines = [
            " [PAD] ".join([*fast[start : start + WORDS_PER_CALL], ""])
            for start in range(0, len(fast), WORDS_PER_CALL)
        ]
        encoded = self._fast.encode_batch_fast(lines, add_special_tokens=False)
        ids = np.concatenate([encoding.ids for encoding in encoded])
        lengths = np.diff(np.flatnonzero(ids == self.pad_id), prepend=-1) - 1
        ids = ids[ids != self.pad_id]
        if slow:
            rows, slow_lengths = list(slow), [len(slow_ids) for slow_ids in slow.values()]
            positions = np.repeat(lengths.cumsum()[rows], slow_lengths)
            ids = np.insert(ids, positions, list(chain.from_iterable(slow.values())))
            lengths[rows] = slow_lengths
        return ids, lengths

    def _is_slow(self, word: str) -> bool:
        """Does the Rust library encode the word otherwise than the reference?"""
        # The reference looks for special tokens after it has deleted control characters.
        if "[" in word and (
            word == "[PAD]" or GLUED_SPECIAL_TOKEN.search(word) or "\ufffd" in word or not word.isprintable()
        ):
            return True
        return not word.isascii() and not all(map(self._agree_on, set(word)))

    def _agree_on(self, character: str) -> bool:
        """Compare the two on a character, alone, inside and at either end of a word; once each."""
        if LONE_SURROGATE.match(character):
            return False
        if character not in self._agrees:
            text = f"a{character}b c{character} {character}d {character} e"
            normalized = self._fast.normalizer.normalize_str(text)
            words = [word for word, _ in self._fast.pre_tokenizer.pre_tokenize_str(normalized)]
            self._agrees[character] = words == self._reference[0].tokenize(text)
        return self._agrees[character]

    def _reference_ids(self, text: str) -> list[int]:
        split_words, split_pieces = self._reference
        pieces = chain.from_iterable(map(split_pieces.tokenize, split_words.tokenize(text)))
        return [self.token_to_id[piece] for piece in pieces]

    @cached_property
    def _reference(self):
        from pytorch_pretrained_bert.tokenization import BasicTokenizer, WordpieceTokenizer  # imports torch

        return BasicTokenizer(do_lower_case=self.lowercase), WordpieceTokenizer(self.token_to_id)


class WordTable:
    """The ids of every word seen so far.

    In running text nineteen words out of twenty were seen before. To look them up is faster than to encode
    them again, and leaves the other cores free (`benchmarks/text.py`).
    """

    def __init__(self, encode_words: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]):
        """`encode_words`: from words to their concatenated ids, and how many each word has."""
        self.encode_words = encode_words
        self.clear()

    def clear(self) -> None:
        """Start with an empty table."""
        self.rows: defaultdict[str, int] = defaultdict(itertools.count().__next__)  # word → the next free row
        self.ids = np.empty(0, dtype=np.int32)
        self.offsets = np.zeros(1, dtype=np.int64)  # row r is ids[offsets[r] : offsets[r + 1]]

    def look_up(self, texts: list[list[str]]) -> list[np.ndarray]:
        """The ids of each text, given as its words."""
        if len(self.rows) > MAX_WORDS:
            self.clear()
        rows = np.fromiter(map(self.rows.__getitem__, chain.from_iterable(texts)), dtype=np.int64)
        self._append_new_words()
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.concatenate([[0], lengths.cumsum()])
        ids = self.ids[np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])]
        return np.split(ids, ends[np.cumsum([len(words) for words in texts], dtype=np.int64)])[:-1]

    def _append_new_words(self) -> None:
        """Append the ids of words that have a row, but no ids yet."""
        new = list(itertools.islice(self.rows, len(self.offsets) - 1, None))
        if new:
            ids, lengths = self.encode_words(new)
            self.ids = np.concatenate([self.ids, ids], dtype=np.int32, casting="unsafe")
            self.offsets = np.concatenate([self.offsets, self.offsets[-1] + lengths.cumsum()])


def _is_uncased(vocab: list[str]) -> bool:
    """Could an uncased tokenizer, which strips capitals and accents, produce all but the special tokens?"""
    text = "".join(token for token in vocab if not re.fullmatch(r"\[.+\]", token))
    return text == text.lower() and "Mn" not in map(unicodedata.category, unicodedata.normalize("NFD", text))


def train_tokenizer(texts: Callable[[], Iterator[str]], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Learn a WordPiece vocabulary of at most `vocab_size` tokens from the texts that `texts()` gives.

    The library iterates over hash tables; it is reproducible here because we cut the alphabet ourselves, give
    the characters inside words their ids (ids decide between pairs that are equally frequent), and sort what
    it has learned.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    learner = _fast_tokenizer(models.WordPiece(unk_token="[UNK]"), normalizer)
    alphabet = _alphabet(texts(), normalizer, vocab_size // 8)
    inside_words = [f"##{character}" for character in alphabet if _joins_words(character, learner)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *inside_words],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator((LONE_SURROGATE.sub("", text) for text in texts()), trainer)
    learned = sorted(set(learner.get_vocab()) - set(SPECIAL_TOKENS))
    return Tokenizer([*SPECIAL_TOKENS, *learned])


def _alphabet(texts: Iterator[str], normalizer: normalizers.Normalizer, size: int) -> list[str]:
    """The `size` most frequent characters of the normalized texts; ties go to the lower code point."""
    raw_counts, counts = Counter[str](), Counter[str]()
    for text in texts:
        raw_counts.update(LONE_SURROGATE.sub("", text))
    for character, count in raw_counts.items():
        for normalized in normalizer.normalize_str(character).strip():
            counts[normalized] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:size])


def _joins_words(character: str, learner: tokenizers.Tokenizer) -> bool:
    """Can it stand inside a word, unlike punctuation and Chinese?"""
    text = learner.normalizer.normalize_str(f"a{character}a")
    return len(learner.pre_tokenizer.pre_tokenize_str(text)) == 1


def _rules(normalizer: normalizers.Normalizer) -> dict:
    """What a normalizer does, to compare. One that says nothing of accents strips them if it lowercases."""
    rules = json.loads(normalizer.__getstate__())
    if rules["type"] == "BertNormalizer" and rules["strip_accents"] is None:
        rules["strip_accents"] = rules["lowercase"]
    return rules


def _fast_tokenizer(model: models.Model, normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
