"""Tokenizers: WordPiece with a vocabulary from the Hub, from a file or trained on a corpus, and byte-level BPE."""
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
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from config.arguments import UserError, read_json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HUB_VOCABULARIES = {
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
# The reference takes "[MASK]" for a special token only between spaces, the fast tokenizer everywhere.
GLUED_SPECIAL_TOKEN = re.compile(r"\S\[(?:PAD|UNK|CLS|SEP|MASK)\]|\[(?:PAD|UNK|CLS|SEP|MASK)\]\S")
DELETED_SPACE = re.compile("[\x0b\x0c\x1c-\x1f\x85]")  # split() takes them for spaces, the reference deletes them
WORDS_PER_CALL = 200  # a call of the Rust library costs as much as some ten words
MAX_WORDS = 2**19  # some 100 MB of words and their ids
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # from JSON escapes and undecodable bytes; not text, Rust refuses it

# What a folder may hold a tokenizer in, in the order of preference, which is that of `transformers`.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
SETTINGS_FILE = "tokenizer_config.json"  # lies beside them
BERT_SETTINGS = {  # as BertNormalizer calls them
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
SETTINGS = (*BERT_SETTINGS, "add_prefix_space")
# Classes of `transformers` that take tokenizer.json as it stands. Those of a family take its vocabulary alone,
# and the rest from tokenizer_config.json.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Tokenizer:
    """WordPiece (Devlin et al. 2019) whose ids are those of `pytorch_pretrained_bert.BertTokenizer`.

    Words, between spaces, do not see one another, so each is encoded once and then looked up; the Rust library does
    the work. The two disagree about a few characters (those younger than Rust's Unicode tables, above all) and about
    special tokens glued to other text: such words go to the reference itself.

    The reference strips accents if and only if it lowercases. For a checkpoint that wants anything else the
    Rust library encodes whole texts, as in `transformers`.
    """

    def __init__(self, vocab: list[str], normalizer: normalizers.Normalizer | None = None):
        """`vocab`: the tokens in the order of their ids. `normalizer`: what becomes of case, accents and so on,
        guessed from the vocabulary by default. Raises UserError where a special token is missing."""
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
        normalizer = _bert_normalizer(read_settings(Path(path)))
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
        _export(self._fast, folder, dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL_TOKENS, strict=True)), causal, max_length)

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
        """The ids of all words in a row, and how many each has; Rust gets many words at once, each closed by [PAD]."""
        slow = {row: self._reference(word) for row, word in enumerate(words) if self._needs_reference(word)}
        fast = ["" if row in slow else word for row, word in enumerate(words)]
        lines = [" [PAD] ".join([*fast[start : start + WORDS_PER_CALL], ""]) for start in range(0, len(fast), WORDS_PER_CALL)]
        ids = np.concatenate([line.ids for line in self._fast.encode_batch_fast(lines, add_special_tokens=False)])
        lengths = np.diff(np.flatnonzero(ids == self.pad_id), prepend=-1) - 1
        ids = ids[ids != self.pad_id]
        if slow:
            rows, slow_lengths = list(slow), [*map(len, slow.values())]
            ids = np.insert(ids, np.repeat(lengths.cumsum()[rows], slow_lengths), [*chain.from_iterable(slow.values())])
            lengths[rows] = slow_lengths
        return ids, lengths

    def _needs_reference(self, word: str) -> bool:
        # The reference looks for special tokens after it has deleted control characters.
        if "[" in word and (word == "[PAD]" or GLUED_SPECIAL_TOKEN.search(word) or "\ufffd" in word or not word.isprintable()):
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
        pieces = [piece for word in self._reference_words.tokenize(text) for piece in self._reference_pieces.tokenize(word)]
        return [self.token_to_id[piece] for piece in pieces]

    @cached_property
    def _reference_words(self):
        from pytorch_pretrained_bert.tokenization import BasicTokenizer

        return BasicTokenizer(do_lower_case=self.lowercase)

    @cached_property
    def _reference_pieces(self):
        from pytorch_pretrained_bert.tokenization import WordpieceTokenizer

        return WordpieceTokenizer(self.token_to_id)


class ByteLevelTokenizer:
    """Byte-level BPE (Radford et al. 2019, section 2.2) as GPT-2 and RoBERTa have it. The Rust library does the work.

    GPT-2 has one special token, which opens, closes and pads; it takes the part of [CLS], [SEP] and [PAD], and there is no
    [MASK]. RoBERTa has two separators between the texts of a pair.
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
        self.special = {part: name for part, names in self.NAMES.items() for name in reversed(names) if name in ids}
        if len(self.special.keys() - {"mask"}) < 4:
            raise UserError("it has neither GPT-2's special token <|endoftext|> nor RoBERTa's <pad>, <unk>, <s> and </s>")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = (ids[self.special[part]] for part in ("pad", "unk", "cls", "sep"))
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
        tokenizer.add_special_tokens(sorted({name for names in cls.NAMES.values() for name in names if name in known}, key=known.get))
        return cls(tokenizer)

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json`."""
        self._fast.save(str(path))

    def export(self, folder: Path, causal: bool, max_length: int) -> None:
        """Write the files that make `transformers` encode as we do."""
        _export(self._fast, folder, self.special, causal, max_length)

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


class WordTable:
    """The ids of every word met so far.

    In running text nineteen words out of twenty were met before. To look them up is faster than to encode them anew, and
    leaves the other cores free (`benchmarks/text.py`).
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
    return [np.column_stack([one.ids, np.array(one.offsets, dtype=np.int64).reshape(-1, 2)]).astype(np.int64) for one in encoded]


def _is_uncased(vocab: list[str]) -> bool:
    """Could an uncased tokenizer, which strips capitals and accents, produce all but the special tokens?"""

    def is_uncased(token: str) -> bool:
        parts = unicodedata.normalize("NFD", token)
        return token == token.lower() and not any(unicodedata.category(one) == "Mn" for one in parts)

    return all(is_uncased(token) for token in vocab if not re.fullmatch(r"\[.+\]", token))


def train_tokenizer(texts: Callable[[], Iterator[str]], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Learn a WordPiece vocabulary of at most `vocab_size` tokens from the texts that `texts()` gives.

    Reproducible, though the library goes through hash tables: the alphabet is cut by a rule of our own; what follows the first
    character of a word gets its number from us, since numbers decide between pairs that are equally frequent; learned tokens are sorted.
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
    """The `size` most frequent characters of the normalized texts; of equally frequent ones, the first in Unicode."""
    raw, counts = Counter(), Counter()
    for text in texts:
        raw.update(LONE_SURROGATE.sub("", text))
    for character, count in raw.items():
        for normalized in normalizer.normalize_str(character).strip():
            counts[normalized] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:size])


def _joins_words(character: str, learner: tokenizers.Tokenizer) -> bool:
    """Can it stand inside a word, unlike punctuation and Chinese?"""
    return len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(f"a{character}a"))) == 1


def parse_training_request(name: str) -> tuple[int, bool] | None:
    """`train:8192` → (8192, False), `train:8192:uncased` → (8192, True), any other name → None.

    Raises UserError if the size is not a number that leaves room for the special tokens.
    """
    if not name.startswith("train:"):
        return None
    match = re.fullmatch(r"train:(\d+)(:uncased)?", name)
    if not match or int(match[1]) < 100:
        raise UserError(f"--tokenizer {name}: write train:SIZE or train:SIZE:uncased, with a size of 100 or more")
    return int(match[1]), match[2] is not None


def load_tokenizer(name: str) -> Tokenizer | ByteLevelTokenizer:
    """A tokenizer from a file, a folder that holds one, or the Hub. Raises UserError if there is none."""
    path = Path(name)
    if path.is_file():
        return read_tokenizer(path)
    if not path.is_dir():
        if path.suffix in (".txt", ".json") or name.startswith((".", "/")):
            raise UserError(f"--tokenizer {name}: there is no such file")
        from data.sources import download  # the Hub's library takes a second to import

        repository = HUB_VOCABULARIES.get(name, name.removeprefix("hf:"))
        path = download_tokenizer(repository, "--tokenizer")
        # Where nothing was found, another try says why.
        path = path or download(repository, "tokenizer.json", "--tokenizer").parent
    found = next((path / file for file in TOKENIZER_FILES if (path / file).is_file()), None)
    if found is None:
        raise UserError(f"--tokenizer {name}: the folder holds none of {', '.join(TOKENIZER_FILES)}")
    return read_tokenizer(found)


def download_tokenizer(repository: str, flag: str) -> Path | None:
    """The folder of the Hub cache with all that a repository has of a tokenizer, or None if it has none."""
    from data.sources import download_if_there

    # Settings first: where the network breaks off, other files fail aloud, but settings would be guessed.
    _, *found = [download_if_there(repository, file, flag) for file in (SETTINGS_FILE, *TOKENIZER_FILES)]
    return next((path.parent for path in found if path), None)


def read_tokenizer(path: Path) -> Tokenizer | ByteLevelTokenizer:
    """A tokenizer from `vocab.txt`, `tokenizer.json`, or `vocab.json` beside `merges.txt`, with its settings.

    Raises UserError if it is not one.
    """
    if path.suffix != ".json":
        return Tokenizer.from_file(path)
    settings = read_settings(path)
    try:
        if path.name == "vocab.json":
            add_prefix_space = settings.get("add_prefix_space", False)
            return ByteLevelTokenizer.from_files(path, path.with_name("merges.txt"), add_prefix_space)
        fast = tokenizers.Tokenizer.from_file(str(path))
        if isinstance(fast.model, models.WordPiece):
            normalizer = _bert_normalizer(settings) or fast.normalizer
            vocab = _in_order(fast.get_vocab(with_added_tokens=False))
            return Tokenizer(vocab, normalizers.Sequence([]) if normalizer is None else normalizer)
        if "add_prefix_space" in settings and isinstance(fast.pre_tokenizer, pre_tokenizers.ByteLevel):
            fast.pre_tokenizer.add_prefix_space = settings["add_prefix_space"]
        return ByteLevelTokenizer(fast)
    except Exception as error:  # the Rust library knows no other class
        raise UserError(f"{path} cannot be read as a tokenizer: {error}") from error


def read_settings(path: Path) -> dict[str, bool]:
    """What `tokenizer_config.json` beside the file of a tokenizer says, where `transformers` heeds it.

    Raises UserError for a value that is neither true nor false.
    """
    file = path.with_name(SETTINGS_FILE)
    config = read_json(file) if file.is_file() else {}
    is_complete = path.suffix == ".json" and path.name != "vocab.json"  # a tokenizer.json
    if is_complete and config.get("tokenizer_class") in GENERIC_CLASSES:
        return {}
    settings = {name: config[name] for name in SETTINGS if config.get(name) is not None}
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise UserError(f"{file}: {name} must be true or false, not {value!r}")
    return settings


def _bert_normalizer(settings: dict[str, bool]) -> normalizers.BertNormalizer | None:
    """The normalizer of settings, with the defaults of `transformers`, or None if they say nothing."""
    said = {BERT_SETTINGS[name]: value for name, value in settings.items() if name in BERT_SETTINGS}
    return normalizers.BertNormalizer(**said) if said else None


def _rules(normalizer: normalizers.Normalizer) -> dict:
    """What a normalizer does, to compare: one silent about accents strips them where it lowercases."""
    rules = json.loads(normalizer.__getstate__())
    if rules["type"] == "BertNormalizer" and rules["strip_accents"] is None:
        rules["strip_accents"] = rules["lowercase"]
    return rules


def _in_order(ids: dict[str, int]) -> list[str]:
    """Tokens in the order of their ids.

    An id without a token, as a line twice in a vocab.txt leaves one, gets a name that no text ever has.
    """
    tokens = {index: token for token, index in ids.items()}
    return [tokens.get(index, f"[no token {index}]") for index in range(max(tokens, default=-1) + 1)]


def _export(fast: tokenizers.Tokenizer, folder: Path, special: dict[str, str], causal: bool, max_length: int) -> None:
    """tokenizer.json and tokenizer_config.json; an encoder's tokenizer puts the special tokens around its texts."""
    fast = tokenizers.Tokenizer.from_str(fast.to_str())
    if not causal:
        cls, sep = ((special[part], fast.token_to_id(special[part])) for part in ("cls", "sep"))
        processor = processors.BertProcessing if sep[0] == "[SEP]" else processors.RobertaProcessing
        fast.post_processor = processor(sep, cls)
    fast.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length} | {f"{part}_token": token for part, token in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _fast_tokenizer(model: models.Model, normalizer: normalizers.Normalizer) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
