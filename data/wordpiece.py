"""WordPiece (Devlin et al. 2019): the tokenizer, and how its vocabulary is learned."""

import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from config.errors import UserError
from data.fast_tokenizers import LONE_SURROGATE, export_tokenizer, ids_of, never_empty, spans_of
from data.tokenizer_settings import bert_normalizer, read_settings

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# The reference takes "[MASK]" for a special token only between spaces, the fast tokenizer everywhere.
GLUED_SPECIAL_TOKEN = re.compile(r"\S\[(?:PAD|UNK|CLS|SEP|MASK)\]|\[(?:PAD|UNK|CLS|SEP|MASK)\]\S")


DELETED_SPACE = re.compile(
    "[\x0b\x0c\x1c-\x1f\x85]"
)  # split() takes them for spaces, the reference deletes them


WORDS_PER_CALL = 200  # a call of the Rust library costs as much as some ten words


MAX_WORDS = 2**19  # some 100 MB of words and their ids


class Tokenizer:
    """WordPiece (Devlin et al. 2019) whose ids are those of `pytorch_pretrained_bert.BertTokenizer`.

    Words, between spaces, do not see one another, so each is encoded once and then looked up; the Rust
    library does the work. The two disagree about a few characters (those younger than Rust's Unicode tables,
    above all) and about special tokens glued to other text: such words go to the reference itself.

    The reference strips accents if and only if it lowercases. For a checkpoint that wants anything else the
    Rust library encodes whole texts, as in `transformers`.
    """

    def __init__(self, vocab: list[str], normalizer: normalizers.Normalizer | None = None):
        """`vocab`: the tokens in the order of their ids. `normalizer`: what becomes of case, accents and so
        on, guessed from the vocabulary by default. Raises UserError where a special token is missing.
        """
        self.vocab = vocab
        self.token_to_id = {token: index for index, token in enumerate(vocab)}
        missing = [token for token in SPECIAL_TOKENS if token not in self.token_to_id]
        if missing:
            raise UserError(f"the vocabulary lacks the special tokens {', '.join(missing)}")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self.token_to_id[token] for token in SPECIAL_TOKENS
        )
        self.special_ids = [self.token_to_id[token] for token in SPECIAL_TOKENS]
        self.between_texts = [self.sep_id]
        guessed = normalizers.BertNormalizer(lowercase=_is_uncased(vocab))
        normalizer = guessed if normalizer is None else normalizer
        self._fast = _fast_tokenizer(models.WordPiece(self.token_to_id, unk_token="[UNK]"), normalizer)
        self._fast.add_special_tokens(list(SPECIAL_TOKENS))
        rules = _rules(normalizer)
        self.lowercase = rules.get("lowercase", False)
        self._has_reference = rules == _rules(normalizers.BertNormalizer(lowercase=self.lowercase))
        is_plain = rules == _rules(guessed)  # the vocabulary alone tells it all
        self.file = "vocab.txt" if is_plain else "tokenizer.json"  # its name in a run folder
        # Two tokenizers with the same one give the same ids.
        self.fingerprint = vocab if is_plain else self._fast.to_str()
        self._words = WordTable(self._encode_words)
        self._agrees: dict[str, bool] = {}  # character → do the two implementations agree on it?

    def __len__(self) -> int:
        return len(self.vocab)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a `vocab.txt`, one token a line, with its settings. Raises UserError if it is not one."""
        normalizer = bert_normalizer(read_settings(Path(path)))
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as a vocabulary: {error}") from error
        vocab = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
        try:
            return cls(vocab, normalizer)
        except UserError as error:
            raise UserError(f"{path} is not a WordPiece vocabulary: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write what `file` names: `vocab.txt`, one token a line, or `tokenizer.json`."""
        if self.file == "vocab.txt":
            Path(path).write_text("".join(f"{token}\n" for token in self.vocab), encoding="utf-8")
        else:
            self._fast.save(str(path))

    def export(self, folder: Path, causal: bool, max_length: int) -> None:
        """Write the files that make `transformers` encode as we do."""
        export_tokenizer(
            self._fast,
            folder,
            dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True)),
            causal,
            max_length,
        )

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special tokens of our own."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of many texts, an array each."""
        if not self._has_reference:
            return ids_of(self._fast, texts)
        return self._words.look_up([[text] if DELETED_SPACE.search(text) else text.split() for text in texts])

    def encode_words(self, words: list[str]) -> list[np.ndarray]:
        """The ids of words of running text, an array each: [UNK] where there would be none."""
        return never_empty(self.encode_batch(words), self.unk_id)

    def encode_with_spans(self, texts: list[str]) -> list[np.ndarray]:
        """[tokens, 3] for each text: the id of each token, and the characters where it begins and ends."""
        return spans_of(self._fast, texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Readable text: word pieces joined, spaces before punctuation removed."""
        return self._fast.decode(list(ids), skip_special_tokens=False)

    def _encode_words(self, words: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all words in a row, and how many each has; Rust gets many words at once, each closed by
        [PAD].
        """
        slow = {row: self._reference(word) for row, word in enumerate(words) if self._needs_reference(word)}
        fast = ["" if row in slow else word for row, word in enumerate(words)]
        lines = [
            " [PAD] ".join([*fast[start : start + WORDS_PER_CALL], ""])
            for start in range(0, len(fast), WORDS_PER_CALL)
        ]
        ids = np.concatenate(
            [line.ids for line in self._fast.encode_batch_fast(lines, add_special_tokens=False)]
        )
        lengths = np.diff(np.flatnonzero(ids == self.pad_id), prepend=-1) - 1
        ids = ids[ids != self.pad_id]
        if slow:
            rows, slow_lengths = list(slow), [*map(len, slow.values())]
            ids = np.insert(
                ids, np.repeat(lengths.cumsum()[rows], slow_lengths), [*chain.from_iterable(slow.values())]
            )
            lengths[rows] = slow_lengths
        return ids, lengths

    def _needs_reference(self, word: str) -> bool:
        # The reference looks for special tokens after it has deleted control characters.
        if "[" in word and (
            word == "[PAD]" or GLUED_SPECIAL_TOKEN.search(word) or "\ufffd" in word or not word.isprintable()
        ):
            return True
        return not word.isascii() and not all(map(self._agree_on, set(word)))

    def _agree_on(self, character: str) -> bool:
        """Try both implementations on a character, alone, inside and at either end of a word; once each."""
        if LONE_SURROGATE.match(character):
            return False
        if character not in self._agrees:
            text = f"a{character}b c{character} {character}d {character} e"
            normalized = self._fast.normalizer.normalize_str(text)
            fast = [word for word, _ in self._fast.pre_tokenizer.pre_tokenize_str(normalized)]
            self._agrees[character] = fast == self._reference_words.tokenize(text)
        return self._agrees[character]

    def _reference(self, text: str) -> list[int]:
        pieces = [
            piece
            for word in self._reference_words.tokenize(text)
            for piece in self._reference_pieces.tokenize(word)
        ]
        return [self.token_to_id[piece] for piece in pieces]

    @cached_property
    def _reference_words(self):
        from pytorch_pretrained_bert.tokenization import BasicTokenizer

        return BasicTokenizer(do_lower_case=self.lowercase)

    @cached_property
    def _reference_pieces(self):
        from pytorch_pretrained_bert.tokenization import WordpieceTokenizer

        return WordpieceTokenizer(self.token_to_id)


class WordTable:
    """The ids of every word met so far.

    In running text nineteen words out of twenty were met before. To look them up is faster than to encode
    them anew, and leaves the other cores free (`benchmarks/text.py`).
    """

    def __init__(self, encode_words: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]):
        """`encode_words`: from words to their ids in a row, and how many each word has."""
        self.encode_words = encode_words
        self.forget()

    def forget(self) -> None:
        """Start with an empty table."""
        self.rows = defaultdict(itertools.count().__next__)  # word → the next free row
        self.ids = np.empty(0, dtype=np.int32)
        self.offsets = np.zeros(1, dtype=np.int64)  # row r is ids[offsets[r] : offsets[r + 1]]

    def look_up(self, texts: list[list[str]]) -> list[np.ndarray]:
        """The ids of every text, given as its words."""
        if len(self.rows) > MAX_WORDS:
            self.forget()
        rows = np.fromiter(map(self.rows.__getitem__, chain.from_iterable(texts)), dtype=np.int64)
        self.encode_new_words()
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        ends = np.concatenate([[0], lengths.cumsum()])
        ids = self.ids[np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])]
        return np.split(ids, ends[np.cumsum([len(words) for words in texts], dtype=np.int64)])[:-1]

    def encode_new_words(self) -> None:
        """Append the ids of words that have a row, but no ids yet."""
        new = list(itertools.islice(self.rows, len(self.offsets) - 1, None))
        if new:
            ids, lengths = self.encode_words(new)
            self.ids = np.concatenate([self.ids, ids], dtype=np.int32, casting="unsafe")
            self.offsets = np.concatenate([self.offsets, self.offsets[-1] + lengths.cumsum()])


def _is_uncased(vocab: list[str]) -> bool:
    """Could an uncased tokenizer, which strips capitals and accents, produce all but the special tokens?"""

    def is_uncased(token: str) -> bool:
        parts = unicodedata.normalize("NFD", token)
        return token == token.lower() and not any(unicodedata.category(one) == "Mn" for one in parts)

    return all(is_uncased(token) for token in vocab if not re.fullmatch(r"\[.+\]", token))


def train_tokenizer(texts: Callable[[], Iterator[str]], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Learn a WordPiece vocabulary of at most `vocab_size` tokens from the texts that `texts()` gives.

    Reproducible, though the library goes through hash tables: the alphabet is cut by a rule of our own; what
    follows the first character of a word gets its number from us, since numbers decide between pairs that are
    equally frequent; learned tokens are sorted.
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
    """The `size` most frequent characters of the normalized texts; of equally frequent ones, the first in
    Unicode.
    """
    raw, counts = Counter(), Counter()
    for text in texts:
        raw.update(LONE_SURROGATE.sub("", text))
    for character, count in raw.items():
        for normalized in normalizer.normalize_str(character).strip():
            counts[normalized] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:size])


def _joins_words(character: str, learner: tokenizers.Tokenizer) -> bool:
    """Can it stand inside a word, unlike punctuation and Chinese?"""
    return (
        len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(f"a{character}a"))) == 1
    )


def _rules(normalizer: normalizers.Normalizer) -> dict:
    """What a normalizer does, to compare: one silent about accents strips them where it lowercases."""
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
