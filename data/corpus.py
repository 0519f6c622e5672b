"""Text becomes batches: the token cache, and corpora for language modelling.

Training batches are a pure function of (seed, step, rank): resuming a run is exact and costs nothing, and two
processes see together what one would see alone. Batches are dicts of CPU tensors, batch first.
"""
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoints.files import as_json
from config.arguments import UserError
from config.constants import IGNORE_INDEX
from data.sources import PACKAGED, Source, open_source, split_rows, text_digest
from data.tokenization import Tokenizer, load_tokenizer, parse_training_request, train_tokenizer
from utils import Batch, derive_seed, logger

CACHE_FORMAT = 5
SHARE_CACHE = "take another folder, or let its owner share it (chmod -R a+rX; g+w for those who add to it)"
ENCODING_CHUNK = 2000  # texts encoded at once: enough for all cores, little enough for memory
VALID_FRACTION = 0.025  # the end of a corpus that has no validation split

# Scripts that are written without spaces between words. Each letter is a word in these:
HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HIRAGANA, THAI_AND_LAO, KHMER = "\u3041-\u309f", "\u0e00-\u0eff", "\u1780-\u17ff\u19e0-\u19ff"
MYANMAR = "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"
LETTERS = HAN + HIRAGANA + THAI_AND_LAO + KHMER + MYANMAR
# Each run of letters is one in these (Tibetan marks the ends of syllables):
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
TIBETAN = "\u0f20-\u0f33\u0f40-\u0f6c\u0f71-\u0f84\u0f8d-\u0fbc"
WITHOUT_SPACES = re.compile(f"[{LETTERS}{KATAKANA}{TIBETAN}]")
WORD = re.compile(rf"(?=\w)[{LETTERS}]|[{KATAKANA}]+|[{TIBETAN}]+|[^\W{LETTERS}{KATAKANA}{TIBETAN}]+")


# ----------------------------------------------------------------------------------------------------- the token cache


@dataclass
class EncodedTexts:
    """Texts as memory-mapped token ids: text i is ids[offsets[i]:offsets[i + 1]]. The texts of a row lie behind one another."""

    ids: np.ndarray
    offsets: np.ndarray
    n_words: int
    labels: list
    n_texts: np.ndarray  # of each row
    spans: np.ndarray | None = None  # [tokens, 2]: where a token begins and ends in its text, if that was asked for

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def cached(cache: str, key: object, build: Callable[[Path], None]) -> Path:
    """The folder of the cache that `build` fills for `key`: built once, whole or not at all, by one process.

    Its permissions follow the umask, so that users can share a cache. Raises UserError if it cannot be written or read.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT} {key}".encode()).hexdigest()[:20]
    folder = Path(cache) / digest
    try:
        is_built = folder.is_dir()
        if is_built:
            _check_readable(folder)
    except OSError as error:
        raise UserError(f"--dataset_cache {cache} cannot be read: {error.strerror}; {SHARE_CACHE}") from error
    if is_built:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # other processes wait here, and then find it done
            if not folder.is_dir():
                tmp_path = folder.with_name(f"{digest}.{uuid.uuid4().hex}")
                tmp_path.mkdir()
                try:
                    build(tmp_path)
                    os.rename(tmp_path, folder)
                finally:
                    shutil.rmtree(tmp_path, ignore_errors=True)
    except OSError as error:
        fix = f"; {SHARE_CACHE}" if isinstance(error, PermissionError) else ""
        raise UserError(f"--dataset_cache {cache} cannot be written: {error.strerror or error}{fix}") from error
    return folder


def _check_readable(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb"):
            pass


def count_words(text: str) -> int:
    """How many words a text has, for perplexities per word.

    A word is what stands between spaces, as in the comparisons published for WikiText, where that is also
    each punctuation mark and <unk>. Where a script does without spaces, it is what stands between Unicode's
    default boundaries (UAX #29, section 4), which know no dictionary; punctuation is none then, unless it
    stands alone. None of the libraries here has these boundaries, so these are their rules for letters alone.
    """
    pieces = text.split()
    if text.isascii() or not WITHOUT_SPACES.search(text):
        return len(pieces)
    return sum(max(1, len(WORD.findall(piece))) if WITHOUT_SPACES.search(piece) else 1 for piece in pieces)


def texts_of_row(row: dict) -> list[str]:
    """The text of a row, and the second one of a pair."""
    return [row[key] for key in ("text", "text_pair") if key in row]


def encode_rows(
    rows: Callable[[], Iterable[dict]],
    tokenizer: Tokenizer,
    name: str,
    cache: str,
    key: object,
    end_id: int | None = None,
    texts_of: Callable[[dict], list[str]] = texts_of_row,
    encode: Callable[[list[str]], list[np.ndarray]] | None = None,
    may_be_empty: bool = False,
) -> EncodedTexts:
    """Token ids and labels of the rows, from the cache if there; `end_id` goes behind every text.

    `rows()` is read only if the cache does not have them. `encode` (default: the tokenizer's `encode_batch`) gives an array per
    text: ids [tokens], or ids with their spans [tokens, 3]. Raises UserError if there are no rows, or if all
    their texts are empty and may not be.
    """
    encode = encode or tokenizer.encode_batch

    def build(folder: Path) -> None:
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
        end = [] if end_id is None else [end_id]
        ends, n_texts, labels, n_words = [0], [], [], 0
        stream = iter(rows())
        with open(folder / "ids.bin", "wb") as file, open(folder / "spans.bin", "wb") as span_file, tqdm(desc=f"encoding {name}", unit=" texts", disable=None) as bar:
            while chunk := list(itertools.islice(stream, ENCODING_CHUNK)):
                by_row = [texts_of(row) for row in chunk]
                n_texts.extend(map(len, by_row))
                texts = list(itertools.chain.from_iterable(by_row))
                encoded = encode(texts)
                if not n_words:
                    warn_of_unknown_words(encoded, texts, tokenizer, name)
                for ids in encoded:
                    if ids.ndim == 2:
                        ids[:, 1:].astype(np.int32).tofile(span_file)
                        ids = ids[:, 0]
                    np.append(ids, end).astype(dtype).tofile(file)
                    ends.append(ends[-1] + len(ids) + len(end))
                n_words += sum(count_words(text) + len(end) for text in texts)
                labels.extend(row["label"] for row in chunk if "label" in row)
                bar.update(len(chunk))
        np.save(folder / "offsets.npy", np.array(ends, dtype=np.int64))
        np.save(folder / "n_texts.npy", np.array(n_texts, dtype=np.int32))
        meta = {"dtype": dtype.__name__, "n_words": n_words, "labels": labels}
        (folder / "meta.json").write_text(as_json(meta), encoding="utf-8")

    folder = cached(cache, (key, tokenizer.fingerprint, end_id), build)
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    offsets, n_texts = np.load(folder / "offsets.npy"), np.load(folder / "n_texts.npy")
    if not len(n_texts) or not (offsets[-1] or may_be_empty):
        raise UserError(f"{name} holds no tokens: it has {len(offsets) - 1} texts, all of them empty")
    ids = _mapped(folder / "ids.bin", meta["dtype"])
    spans = _mapped(folder / "spans.bin", np.int32).reshape(-1, 2)
    has_spans = len(spans) == len(ids)
    return EncodedTexts(ids, offsets, meta["n_words"], meta["labels"], n_texts, spans if has_spans else None)


def _mapped(file: Path, dtype: str | type) -> np.ndarray:
    """The numbers of a file, read when they are used; an empty one cannot be mapped."""
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)


def warn_of_unknown_words(encoded: list[np.ndarray], texts: list[str], tokenizer: Tokenizer, name: str) -> None:
    """Tell where there is more than an unknown token to ten words."""
    n_unknown = sum(np.count_nonzero((ids if ids.ndim == 1 else ids[:, 0]) == tokenizer.unk_id) for ids in encoded)
    n_words = sum(map(count_words, texts))
    if n_unknown > n_words / 10:
        found = f"{n_unknown:,} [UNK] in the first {n_words:,} words"
        logger.warning(f"{name}: {found}; the tokenizer was made for other texts")


def find_tokenizer(name: str, source: Source, part: str, texts: Callable[[], Iterator[str]], cache: str) -> Tokenizer:
    """The tokenizer that `--tokenizer` names; `train:SIZE` learns it from `texts`, which are the named part of a source,
    and keeps it in the cache."""
    request = parse_training_request(name)
    if request is None:
        return load_tokenizer(name)
    folder = cached(
        cache, ("vocabulary", request, source.key, part), lambda folder: train_tokenizer(texts, *request).save(folder / "vocab.txt")
    )
    return Tokenizer.from_file(folder / "vocab.txt")


# ------------------------------------------------------------------------------------------ corpora: language modelling


@dataclass
class Corpus:
    """Running text as token ids, each line closed by [SEP], with the tokenizer that made them."""

    tokenizer: Tokenizer
    train: EncodedTexts
    valid: EncodedTexts


def load_corpus(dataset_path: str, tokenizer: str, cache: str, text_column: str | None = None) -> Corpus:
    """Encode a corpus, or map it from the cache. Raises UserError where it is missing, empty or unreadable."""
    source = open_source(dataset_path, {"text": text_column})
    lines = _corpus_lines(source)
    made = find_tokenizer(tokenizer, source, "corpus", lambda: (row["text"] for row in lines("train")), cache)
    train, valid = (
        encode_rows(lambda split=split: lines(split), made, f"{source.name} {split}", cache, ("corpus", source.key, split), made.sep_id)
        for split in ("train", "valid")
    )
    return Corpus(made, train, valid)


def _corpus_lines(source: Source) -> Callable[[str], Iterator[dict]]:
    """A function from a split to its lines; what has no validation split gives the end of its training split."""

    def raw(split: str) -> Iterator[str]:
        if source.name in PACKAGED:  # labelled reviews: never those held out for classification; shuffled by hash
            training = split_rows(source)["train"]
            return iter(sorted((row["text"] for row in training), key=text_digest))
        return (_text(row, f"{source.name} {split}, row {number}") for number, row in enumerate(source.rows(split), start=1))

    def cut() -> tuple[int, int]:
        n_lines = sum(1 for _ in raw("train"))
        return n_lines, n_lines - max(1, round(VALID_FRACTION * n_lines))

    def lines(split: str) -> Iterator[dict]:
        if source.name in PACKAGED or "valid" not in source.splits:
            n_lines, first_valid = cut()
            chosen = range(first_valid) if split == "train" else range(first_valid, n_lines)
            texts = itertools.islice(raw("train"), chosen.start, chosen.stop)
        else:
            texts = raw(split)
        return ({"text": text.strip().replace("<unk>", "[UNK]")} for text in texts)

    return lines


def _text(row: dict, where: str) -> str:
    if not isinstance(row["text"], str):
        raise UserError(f"{where}: the text is not a string but {row['text']!r}")
    return row["text"]


@dataclass
class CorpusBatches:
    """Training batches of a corpus for one process: `self[step]` is what it sees in that optimizer step.

    Each epoch cuts the corpus into blocks from another starting point and visits them in another order.
    """

    ids: np.ndarray
    seq_len: int
    batch_size: int  # rows of one process in one optimizer step
    seed: int
    rank: int = 0
    world_size: int = 1
    mask: "Masking | None" = None
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def __post_init__(self):
        self.n_blocks = (len(self.ids) - 1) // self.seq_len - 1  # one less: the starting point moves
        if self.n_blocks < 1:
            raise UserError(
                f"the training corpus has {len(self.ids)} tokens, too few for sequences of {self.seq_len};"
                " lower --num_max_positions or take more text"
            )

    def __len__(self) -> int:
        """Optimizer steps per epoch."""
        return max(1, self.n_blocks // (self.batch_size * self.world_size))

    def __getitem__(self, step: int) -> Batch:
        """input_ids and labels, both [batch_size, seq_len]."""
        epoch, step_in_epoch = divmod(step, len(self))
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_blocks))
        start = int(np.random.default_rng((self.seed, epoch, 1)).integers(self.seq_len))
        n_rows = self.batch_size * self.world_size
        positions = np.arange(step_in_epoch * n_rows, (step_in_epoch + 1) * n_rows) % self.n_blocks
        blocks = self._order[1][positions] * self.seq_len + start
        rows = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        tokens = np.stack([self.ids[block : block + self.seq_len + 1] for block in blocks[rows]]).astype(np.int64)
        if self.mask is None:
            return next_token_batch(torch.from_numpy(tokens))
        return self.mask(torch.from_numpy(tokens[:, :-1]), (self.seed, step), rows, n_rows)

    def starting_at(self, step: int) -> Iterator[Batch]:
        """The endless stream of batches from an optimizer step on."""
        return (self[one] for one in itertools.count(step))


def evaluation_blocks(
    ids: np.ndarray, seq_len: int, batch_size: int, rank: int = 0, world_size: int = 1, mask: "Masking | None" = None
) -> list[Batch]:
    """This process's part of a validation corpus: over all processes, every token but the first is predicted once."""
    starts = np.arange(0, len(ids) - 1, seq_len)[rank::world_size]
    if not len(starts):  # more processes than blocks; all have to take part in the sum
        starts = np.array([len(ids)])
    batches = [starts[first : first + batch_size] for first in range(0, len(starts), batch_size)]
    return [_evaluation_batch(ids, chosen, seq_len, mask) for chosen in batches]


def _evaluation_batch(ids: np.ndarray, starts: np.ndarray, seq_len: int, mask: "Masking | None") -> Batch:
    tokens = torch.full((len(starts), seq_len + 1), IGNORE_INDEX)
    for row, start in enumerate(starts):
        block = ids[start : start + seq_len + 1].astype(np.int64)
        tokens[row, : len(block)] = torch.from_numpy(block)
    real = tokens != IGNORE_INDEX
    input_ids = tokens.masked_fill(~real, 0)
    if mask is None:
        return {"input_ids": input_ids[:, :-1], "labels": tokens[:, 1:].contiguous()}
    masked = [mask(input_ids[row : row + 1, :-1], (int(start),), slice(0, 1), 1) for row, start in enumerate(starts)]
    batch = {key: torch.cat([one[key] for one in masked]) for key in masked[0]}
    batch["labels"] = batch["labels"].masked_fill(~real[:, :-1], IGNORE_INDEX)
    return batch | {"attention_mask": real[:, :-1].long()}


def next_token_batch(tokens: Tensor) -> Batch:
    """Causal language modelling over [batch, seq + 1] tokens: labels[:, t] is the token that follows position t."""
    return {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


@dataclass
class Masking:
    """Masked language modelling (Devlin et al. 2019, section 3.1): of the tokens chosen with `probability`, 80 %
    become [MASK], 10 % a random token, 10 % stay. Special tokens, and so padding, are never chosen."""

    tokenizer: Tokenizer
    probability: float

    def __post_init__(self):
        if self.tokenizer.mask_id is None:
            raise UserError("masked language modelling: the tokenizer has no mask token; take another with --tokenizer")

    def __call__(self, input_ids: Tensor, key: tuple[int, ...], rows: slice, n_rows: int) -> Batch:
        """Mask [batch, seq] ids, which are `rows` of the `n_rows` rows that `key` draws the random numbers for."""
        generator = torch.Generator().manual_seed(derive_seed(*key))
        seq = input_ids.size(1)
        chance, action = torch.rand(2, n_rows, seq, generator=generator)[:, rows]
        words = torch.randint(len(self.tokenizer), (n_rows, seq), generator=generator)[rows]
        special = torch.isin(input_ids, torch.tensor(self.tokenizer.special_ids))
        chosen = (chance < self.probability) & ~special
        masked = torch.where(chosen & (action < 0.8), self.tokenizer.mask_id, input_ids)
        masked = torch.where(chosen & (action >= 0.8) & (action < 0.9), words, masked)
        return {"input_ids": masked, "labels": input_ids.masked_fill(~chosen, IGNORE_INDEX)}
