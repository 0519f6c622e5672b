"""The token cache: texts as memory-mapped token ids, encoded once."""

import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
from tqdm import tqdm

from checkpoints.files import as_json
from config.errors import UserError
from data.splits import Source
from data.tokenization import load_tokenizer, parse_training_request
from data.wordpiece import Tokenizer, train_tokenizer
from data.words import count_words
from utils import logger

CACHE_FORMAT = 5


SHARE_CACHE = "take another folder, or let its owner share it (chmod -R a+rX; g+w for those who add to it)"


ENCODING_CHUNK = 2000  # texts encoded at once: enough for all cores, little enough for memory


@dataclass
class EncodedTexts:
    """Texts as memory-mapped token ids: text i is ids[offsets[i]:offsets[i + 1]]. The texts of a row lie
    behind one another.
    """

    ids: np.ndarray
    offsets: np.ndarray
    n_words: int
    labels: list
    n_texts: np.ndarray  # of each row
    spans: np.ndarray | None = (
        None  # [tokens, 2]: where a token begins and ends in its text, if that was asked for
    )

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]


def cached(cache: str, key: object, build: Callable[[Path], None]) -> Path:
    """The folder of the cache that `build` fills for `key`: built once, whole or not at all, by one process.

    Its permissions follow the umask, so that users can share a cache. Raises UserError if it cannot be
    written or read.
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
        raise UserError(
            f"--dataset_cache {cache} cannot be written: {error.strerror or error}{fix}"
        ) from error
    return folder


def _check_readable(folder: Path) -> None:
    for file in folder.iterdir():
        with open(file, "rb"):
            pass


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

    `rows()` is read only if the cache does not have them. `encode` (default: the tokenizer's `encode_batch`)
    gives an array per text: ids [tokens], or ids with their spans [tokens, 3]. Raises UserError if there are
    no rows, or if all their texts are empty and may not be.
    """
    encode = encode or tokenizer.encode_batch

    def build(folder: Path) -> None:
        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
        end = [] if end_id is None else [end_id]
        ends, n_texts, labels, n_words = [0], [], [], 0
        stream = iter(rows())
        with (
            open(folder / "ids.bin", "wb") as file,
            open(folder / "spans.bin", "wb") as span_file,
            tqdm(desc=f"encoding {name}", unit=" texts", disable=None) as bar,
        ):
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


def warn_of_unknown_words(
    encoded: list[np.ndarray], texts: list[str], tokenizer: Tokenizer, name: str
) -> None:
    """Tell where there is more than an unknown token to ten words."""
    n_unknown = sum(
        np.count_nonzero((ids if ids.ndim == 1 else ids[:, 0]) == tokenizer.unk_id) for ids in encoded
    )
    n_words = sum(map(count_words, texts))
    if n_unknown > n_words / 10:
        found = f"{n_unknown:,} [UNK] in the first {n_words:,} words"
        logger.warning(f"{name}: {found}; the tokenizer was made for other texts")


def find_tokenizer(
    name: str, source: Source, part: str, texts: Callable[[], Iterator[str]], cache: str
) -> Tokenizer:
    """The tokenizer that `--tokenizer` names; `train:SIZE` learns it from `texts`, which are the named part
    of a source, and keeps it in the cache.
    """
    request = parse_training_request(name)
    if request is None:
        return load_tokenizer(name)
    folder = cached(
        cache,
        ("vocabulary", request, source.key, part),
        lambda folder: train_tokenizer(texts, *request).save(folder / "vocab.txt"),
    )
    return Tokenizer.from_file(folder / "vocab.txt")
