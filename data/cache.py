"""The token cache: texts as memory-mapped token ids, encoded once."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import filelock
import numpy as np
from tqdm import tqdm

from checkpoints.atomic import refusal, size_of, sync, write_failure
from checkpoints.files import as_json, write_json
from config.errors import UserError
from data.fast_tokenizers import FastTokenizer
from data.splits import Source
from data.token_file import ArrayOnDisk, open_array
from data.tokenization import load_tokenizer, parse_training_request
from data.wordpiece import Tokenizer, train_tokenizer
from data.words import count_words
from utils import logger

CACHE_FORMAT = 6
CONTENTS = "contents.json"  # of a folder of the cache: size and checksum of each other file
ROWS_AT_ONCE = 2000  # are encoded: enough for all cores
CHARACTERS_AT_ONCE = 4_000_000  # take some 100 bytes each, and more in long words
SHARE_CACHE = "take another folder, or let its owner share it (chmod -R a+rX; g+w for those who add to it)"

T = TypeVar("T")
TextsOf = Callable[[dict], list[str]]  # a row → its texts
Encode = Callable[
    [list[str]], list[np.ndarray]
]  # texts → for each its ids [tokens], or with spans [tokens, 3]
_UNDAMAGED: set[Path] = set()  # folders of the cache that this process has looked at


@dataclass
class EncodedTexts:
    """Texts as token ids: text i is ids[offsets[i]:offsets[i + 1]]. The texts of a row are consecutive."""

    ids: np.ndarray | ArrayOnDisk
    offsets: np.ndarray
    n_words: int
    labels: list  # of each row
    n_texts: np.ndarray  # of each row
    spans: np.ndarray | None = None  # [tokens, 2]: first character and last character + 1 in the text

    @classmethod
    def join(
        cls, encoded: list[np.ndarray], n_texts: np.ndarray, n_words: int, labels: list
    ) -> "EncodedTexts":
        """From an array per text: ids [tokens], or ids with their spans [tokens, 3]."""
        tokens = np.concatenate(encoded) if encoded else np.empty(0, dtype=np.int64)
        ids, spans = (tokens[:, 0], tokens[:, 1:]) if tokens.ndim == 2 else (tokens, None)
        return cls(ids, np.cumsum([0, *map(len, encoded)]), n_words, labels, n_texts, spans)

    @classmethod
    def load(cls, folder: Path) -> "EncodedTexts":
        """From the files of `_write`. Token ids are mapped: read from the disk when they are used."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        ids = open_array(folder / "ids.bin", meta["dtype"])
        spans = np.asarray(open_array(folder / "spans.bin", np.int32)).reshape(-1, 2)
        return cls(
            ids,
            np.load(folder / "offsets.npy"),
            meta["n_words"],
            meta["labels"],
            np.load(folder / "n_texts.npy"),
            spans if len(spans) == len(ids) else None,
        )

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def texts_of_row(row: dict) -> list[str]:
    """The text of a row, and the second one of a pair."""
    return [row[key] for key in ("text", "text_pair") if key in row]


def encode_rows(
    rows: Callable[[], Iterable[dict]],
    tokenizer: FastTokenizer,
    name: str,
    cache: str,
    key: object,
    end_id: int | None = None,
    texts_of: TextsOf = texts_of_row,
    encode: Encode | None = None,
    may_be_empty: bool = False,
) -> EncodedTexts:
    """Token ids and labels of the rows, from the cache if they are there; `end_id` follows each text.

    `rows()` is read only if they are not. `encode` is the tokenizer's `encode_batch` by default. Raises
    UserError if there are no rows, or if all their texts are empty and may not be.
    """

    def build(folder: Path) -> None:
        chunks = _encode_in_chunks(
            rows(), tokenizer, name, end_id, texts_of, encode or tokenizer.encode_batch
        )
        _write(folder, chunks, np.uint16 if len(tokenizer) <= 2**16 else np.uint32)

    texts = EncodedTexts.load(cached(cache, (key, tokenizer.fingerprint, end_id), build))
    if not len(texts.n_texts) or not (len(texts.ids) or may_be_empty):
        raise UserError(f"{name} holds no tokens: it has {len(texts.offsets) - 1} texts, all of them empty")
    return texts


def cached(cache: str, key: object, build: Callable[[Path], None]) -> Path:
    """The folder of the cache that `build` fills for `key`: built once, whole or not at all, by one process.

    One that is damaged is built again. Its permissions follow the umask, so that users can share a cache.
    Raises UserError if it cannot be written or read, and TrainingFailed if the disk is full.
    """
    digest = hashlib.sha256(f"{CACHE_FORMAT} {key}".encode()).hexdigest()[:20]
    folder = Path(cache) / digest
    try:
        if folder.is_dir() and damage_of(folder) is None:
            return folder
    except OSError as error:
        raise UserError(f"--dataset_cache {cache} cannot be read: {error.strerror}; {SHARE_CACHE}") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):  # other processes wait here, and then find it done
            if folder.is_dir() and (damage := damage_of(folder)):
                logger.warning(f"the cache {folder} is damaged ({damage}), and is built again")
                shutil.rmtree(folder)
            if not folder.is_dir():
                _build_whole(folder, build)
    except OSError as error:
        if refusal(error, folder) is None:  # for example, the network's
            raise
        fix = f"; {SHARE_CACHE}" if isinstance(error, PermissionError) else ""
        raise UserError(f"--dataset_cache {cache} cannot be written: {error.strerror}{fix}") from error
    return folder


def _build_whole(folder: Path, build: Callable[[Path], None]) -> None:
    """Called under the folder's lock, so what is there of others was left by processes that were killed."""
    for leftover in folder.parent.glob(f"{folder.name}.{'?' * 32}"):
        shutil.rmtree(leftover)
    tmp_path = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    tmp_path.mkdir()
    try:
        build(tmp_path)
        write_json(tmp_path / CONTENTS, {file.name: contents(file) for file in tmp_path.iterdir()})
        for path in [*tmp_path.iterdir(), tmp_path]:
            sync(path)
        os.rename(tmp_path, folder)
        sync(folder.parent)
    except Exception as error:  # each library that writes has its own
        if (code := refusal(error, folder)) in (errno.ENOSPC, errno.EDQUOT):
            written = sum(map(size_of, tmp_path.iterdir()))
            raise write_failure(folder, code, written) from error
        raise
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def damage_of(folder: Path) -> str | None:
    """What is wrong with a folder of the cache: a file that is missing, or has other contents.

    A process looks at a folder once, for about a second per gigabyte.
    """
    if folder in _UNDAMAGED:
        return None
    try:
        expected = json.loads((folder / CONTENTS).read_bytes())
        for name, (n_bytes, checksum) in expected.items():
            if size_of(folder / name) != n_bytes:
                return f"{name} has {size_of(folder / name)} bytes, not {n_bytes}"
            if contents(folder / name) != [n_bytes, checksum]:
                return f"the checksum of {name} is wrong"
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return f"{CONTENTS} is missing or damaged"
    _UNDAMAGED.add(folder)
    return None


def contents(file: Path) -> list[int]:
    """The size of a file, and its CRC-32."""
    checksum = 0
    with open(file, "rb") as stream:
        while block := stream.read(2**22):
            checksum = zlib.crc32(block, checksum)
    return [size_of(file), checksum]


def _encode_in_chunks(
    rows: Iterable[dict],
    tokenizer: FastTokenizer,
    name: str,
    end_id: int | None,
    texts_of: TextsOf,
    encode: Encode,
) -> Iterator[EncodedTexts]:
    stream = tqdm(rows, desc=f"encoding {name}", unit=" texts", disable=None)
    pairs = ((texts_of(row), row) for row in stream)
    chunks = in_chunks(pairs, ROWS_AT_ONCE, lambda pair: sum(map(len, pair[0])))
    for number, chunk in enumerate(chunks):
        texts_of_rows = [texts for texts, _ in chunk]
        texts = list(itertools.chain.from_iterable(texts_of_rows))
        encoded, n_words = encode(texts), sum(map(count_words, texts))
        if number == 0:
            warn_of_unknown_words(encoded, n_words, tokenizer.unk_id, name)
        if end_id is not None:  # the end of a line counts as a word
            encoded, n_words = [np.append(ids, end_id) for ids in encoded], n_words + len(texts)
        labels = [row["label"] for _, row in chunk if "label" in row]
        yield EncodedTexts.join(encoded, np.array([*map(len, texts_of_rows)]), n_words, labels)


def in_chunks(items: Iterable[T], n_items: int, length: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of at most so many items, and of no more characters than memory has room to encode at once."""
    chunk: list[T] = []
    n_characters = 0
    for item in items:
        chunk.append(item)
        n_characters += length(item)
        if len(chunk) == n_items or n_characters >= CHARACTERS_AT_ONCE:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def _write(folder: Path, chunks: Iterable[EncodedTexts], dtype: type[np.unsignedinteger]) -> None:
    lengths, n_texts = array("q", [0]), array("i")  # of many rows, so no lists
    labels: list = []
    n_words = 0
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "spans.bin", "wb") as spans_file:
        for chunk in chunks:
            np.asarray(chunk.ids).astype(dtype).tofile(ids_file)
            if chunk.spans is not None:
                chunk.spans.astype(np.int32).tofile(spans_file)
            lengths.frombytes(np.diff(chunk.offsets).astype(np.int64).tobytes())
            n_texts.frombytes(chunk.n_texts.astype(np.int32).tobytes())
            labels.extend(chunk.labels)
            n_words += chunk.n_words
    offsets = np.frombuffer(lengths, np.int64)
    np.save(folder / "offsets.npy", np.cumsum(offsets, out=offsets))
    np.save(folder / "n_texts.npy", np.array(n_texts, np.int32))
    meta = {"dtype": dtype.__name__, "n_words": n_words, "labels": labels}
    (folder / "meta.json").write_text(as_json(meta), encoding="utf-8")


def warn_of_unknown_words(encoded: list[np.ndarray], n_words: int, unk_id: int, name: str) -> None:
    """Warn if there is more than one unknown token to ten words."""
    n_unknown = sum(np.count_nonzero((ids if ids.ndim == 1 else ids[:, 0]) == unk_id) for ids in encoded)
    if n_unknown > n_words / 10:
        count = f"{n_unknown:,} [UNK] in the first {n_words:,} words"
        logger.warning(f"{name}: {count}; the tokenizer was made for other texts")


def find_tokenizer(
    name: str, source: Source, part: str, texts: Callable[[], Iterator[str]], cache: str
) -> FastTokenizer:
    """The tokenizer that `--tokenizer` names. `train:SIZE` learns it from `texts`, which are the named part
    of a source, and keeps it in the cache.
    """
    request = parse_training_request(name)
    if request is None:
        return load_tokenizer(name)
    vocabulary = cached(
        cache,
        ("vocabulary", request, source.key, part),
        lambda folder: train_tokenizer(texts, *request).save(folder / "vocab.txt"),
    )
    return Tokenizer.from_file(vocabulary / "vocab.txt")
