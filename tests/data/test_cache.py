"""The token cache."""

import itertools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from config.errors import TrainingFailed, UserError
from data.cache import cached, encode_rows, find_tokenizer
from data.corpus import load_corpus
from data.sources import open_source


def rows_of(*texts, **columns):
    return lambda: iter([{"text": text} | columns for text in texts])


def test_texts_are_encoded_once_and_read_back_as_they_were_encoded(tokenizer, tmp_path):
    n_reads = itertools.count()

    def read():
        assert next(n_reads) == 0, "the rows were read again"
        yield {"text": "a good film", "text_pair": "", "label": "pos"}
        yield {"text": "bad [MASK]", "text_pair": "it was", "label": "neg"}

    for _ in range(2):
        encoded = encode_rows(read, tokenizer, "films", str(tmp_path / "new" / "cache"), "key")
        texts = [encoded[index].tolist() for index in range(4)]
        assert texts == [tokenizer.encode(text) for text in ("a good film", "", "bad [MASK]", "it was")]
        assert encoded.labels == ["pos", "neg"] and encoded.n_words == 3 + 0 + 2 + 2
        assert isinstance(encoded.ids, np.memmap) and encoded.ids.dtype == np.uint16


def test_many_chunks_of_texts_stay_in_order(tokenizer, tmp_path):
    texts = [f"film {number}" for number in range(4500)]
    encoded = encode_rows(rows_of(*texts), tokenizer, "films", str(tmp_path), "key", end_id=tokenizer.sep_id)
    assert len(encoded.offsets) == 4501 and encoded.offsets[-1] == len(encoded.ids)
    for index in (0, 1999, 2000, 4499):
        assert encoded[index].tolist() == [*tokenizer.encode(texts[index]), tokenizer.sep_id]


@pytest.mark.parametrize("change", ["key", "tokenizer", "end"])
def test_what_changes_the_tokens_is_encoded_anew(change, tokenizer, tmp_path):
    other = type(tokenizer)([*tokenizer.vocab[:-1], "##zzzzz"])
    encode_rows(rows_of("one text"), tokenizer, "films", str(tmp_path), "key")
    made, key, end = {
        "key": (tokenizer, "k", None),
        "tokenizer": (other, "key", None),
        "end": (tokenizer, "key", 3),
    }[change]
    again = encode_rows(rows_of("one text", "another"), made, "films", str(tmp_path), key, end)
    assert len(again.offsets) == 3


def test_texts_of_unknown_words_are_told_of(tokenizer, tmp_path, caplog):
    texts = {"English": "this is not a good film", "Chinese": "这 部 电影 good"}
    for name, text in texts.items():
        encode_rows(lambda text=text: [{"text": text}] * 3, tokenizer, name, str(tmp_path), name)
    [message] = caplog.messages
    assert message == "Chinese: 12 [UNK] in the first 15 words; the tokenizer was made for other texts"


def test_an_edited_file_is_read_anew(tiny_vocab, tmp_path):
    file = tmp_path / "train.txt"
    for time_of_change, content in enumerate(("one\ntwo\n", "six\nten\n", "six\nten\nsix\n")):
        file.write_text(content)
        os.utime(file, (0, time_of_change))
        corpus = load_corpus(str(file), str(tiny_vocab), str(tmp_path / "cache"))
        encoded = [[*corpus.tokenizer.encode(line), corpus.tokenizer.sep_id] for line in content.splitlines()]
        assert [*corpus.train.ids, *corpus.valid.ids] == sum(encoded, [])


def test_a_trained_tokenizer_is_kept_in_the_cache(tmp_path, reviews):
    file = tmp_path / "train.txt"
    file.write_text("\n".join(row["text"] for row in reviews[:50]))
    n_reads = []

    def texts():
        n_reads.append(1)
        return (row["text"] for row in reviews[:50])

    first, second = (
        find_tokenizer("train:200", open_source(str(file)), "corpus", texts, str(tmp_path / "cache"))
        for _ in range(2)
    )
    assert first.vocab == second.vocab and len(n_reads) == 2  # one reading counts characters, one learns
    assert (
        len(find_tokenizer("train:300", open_source(str(file)), "corpus", texts, str(tmp_path / "cache")))
        == 300
    )


def test_a_build_that_fails_leaves_no_folder_and_the_next_one_succeeds(tmp_path):
    def build(folder):
        (folder / "half").write_text("half")
        raise UserError("row 7 is bad")

    with pytest.raises(UserError, match="row 7 is bad"):
        cached(str(tmp_path), "key", build)
    assert not [one for one in tmp_path.iterdir() if one.is_dir()]
    folder = cached(str(tmp_path), "key", lambda folder: (folder / "whole").write_text("whole"))
    assert {one.name for one in folder.iterdir()} == {"whole", "contents.json"}


def test_an_error_of_what_is_read_is_not_one_of_the_cache(tmp_path):
    def build(folder):
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError):
        cached(str(tmp_path), "key", build)


def damages() -> dict:
    """What may happen to a file: (file) → None."""

    def flip_a_bit(file):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    def plant_a_pickle(file):
        np.save(file.with_suffix(".npy"), np.array([{"an": "object"}], dtype=object))
        os.replace(file.with_suffix(".npy"), file)

    return {
        "removed": os.unlink,
        "emptied": lambda file: file.write_bytes(b""),
        "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
        "flipped": flip_a_bit,
        "pickled": plant_a_pickle,
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("name", ["ids.bin", "offsets.npy", "n_texts.npy", "meta.json", "contents.json"])
def test_what_is_damaged_is_told_and_built_again(name, damage, tokenizer, tmp_path, caplog, monkeypatch):
    def encode():
        monkeypatch.setattr("data.cache._UNDAMAGED", set())  # as a new process
        texts = rows_of("a good film", "a bad one", label="pos")
        encoded = encode_rows(texts, tokenizer, "films", str(tmp_path), "key")
        return encoded.ids.tolist(), encoded.offsets.tolist(), encoded.labels

    before = encode()
    [file] = tmp_path.glob(f"*/{name}")
    damages()[damage](file)
    assert encode() == before
    assert f"the cache {file.parent} is damaged" in caplog.text and "is built again" in caplog.text
    caplog.clear()
    assert encode() == before and not caplog.text


def test_a_vocabulary_that_was_cut_is_learned_again(tmp_path, reviews, monkeypatch):
    file = tmp_path / "train.txt"
    file.write_text("\n".join(row["text"] for row in reviews[:50]))

    def vocabulary():
        monkeypatch.setattr("data.cache._UNDAMAGED", set())
        return load_corpus(str(file), "train:200", str(tmp_path / "cache")).tokenizer.vocab

    before = vocabulary()
    [kept] = (tmp_path / "cache").glob("*/vocab.txt")
    os.truncate(kept, kept.stat().st_size // 2)
    assert vocabulary() == before


def test_what_killed_processes_left_goes(tmp_path):
    folder = cached(str(tmp_path), "key", lambda folder: (folder / "whole").write_text("whole"))
    leftover = folder.rename(f"{folder}.{'0' * 32}")
    cached(str(tmp_path), "key", lambda folder: (folder / "whole").write_text("whole"))
    assert not leftover.exists()


def test_a_full_disk_is_told_with_the_room_that_it_takes(small_disk, tokenizer):
    disk, fill = small_disk
    (disk / "cache").mkdir()
    filler = fill(20_000)
    sentence = (
        r"/cache/.* cannot be written: No space left on device; it takes at least 0.0 MB, and 0.0 MB are"
    )
    with pytest.raises(TrainingFailed, match=sentence):
        encode_rows(rows_of(*["good " * 1000] * 100), tokenizer, "films", str(disk / "cache"), "key")
    assert not [path for path in (disk / "cache").iterdir() if path.is_dir()]
    filler.unlink()
    texts = encode_rows(rows_of(*["good " * 1000] * 100), tokenizer, "films", str(disk / "cache"), "key")
    assert len(texts.ids) == 100_000


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_what_the_cache_holds_has_the_permissions_of_the_umask(umask, tokenizer, tmp_path):
    before = os.umask(umask)
    try:
        encode_rows(rows_of("text"), tokenizer, "films", str(tmp_path / "cache"), "key")
        find_tokenizer(
            "train:200",
            open_source("rotten_tomatoes"),
            "corpus",
            lambda: iter(["text"]),
            str(tmp_path / "cache"),
        )
    finally:
        os.umask(before)
    made = [tmp_path / "cache", *(tmp_path / "cache").rglob("*")]
    assert len(made) > 8, "two entries, their locks, their files"
    assert {path: path.stat().st_mode & 0o777 for path in made} == {
        path: (0o777 if path.is_dir() else 0o666) & ~umask for path in made
    }


@pytest.mark.processes("it becomes another user")
@pytest.mark.parametrize(
    "closed, verb", [("entry/file", "read"), ("entry", "read"), (".", "read"), ("to_others", "written")]
)
def test_a_cache_of_somebody_else_that_is_closed_is_a_sentence(closed, verb):
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def use(cache, key):
        if os.geteuid() == 0:
            os.setuid(65534)  # root may do everything
        try:
            cached(cache, key, lambda folder: None)
        except UserError as error:
            results.put(str(error))
        else:
            results.put("no error")

    with tempfile.TemporaryDirectory() as cache:  # pytest's own folders are closed to others
        os.chmod(cache, 0o755)
        entry = cached(cache, "key", lambda folder: (folder / "file").write_text(""))
        path = {"entry/file": entry / "file", "entry": entry, ".": Path(cache), "to_others": Path(cache)}[
            closed
        ]
        path.chmod(0o555 if closed == "to_others" else 0)
        process = context.Process(target=use, args=(cache, "another key" if closed == "to_others" else "key"))
        process.start()
        sentence = results.get(timeout=20)
        process.join()
        path.chmod(0o755)
    assert (
        sentence.startswith(
            f"--dataset_cache {cache} cannot be {verb}: Permission denied; take another folder, or"
        )
        and "\n" not in sentence
    )


@pytest.mark.processes("it is about two of them")
def test_two_processes_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(2), context.Queue()

    def build(folder):
        with open(tmp_path / "builds", "a") as log:
            log.write("x")
        time.sleep(0.3)  # so that the other process comes while this one builds
        (folder / "result").write_text("done")

    def work():
        ready.wait(20)
        results.put((cached(str(tmp_path / "cache"), "key", build) / "result").read_text())

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=20) for _ in processes] == ["done", "done"]
    for process in processes:
        process.join(20)
    assert (tmp_path / "builds").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_a_sentence(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--dataset_cache .*file"):
        encode_rows(rows_of("text"), tokenizer, "films", str(tmp_path / "file" / "cache"), "key")


def test_texts_that_are_all_empty_are_a_sentence(tokenizer, tmp_path):
    for texts in (["", " "], []):
        with pytest.raises(UserError, match=f"films holds no tokens: it has {len(texts)} texts"):
            encode_rows(rows_of(*texts), tokenizer, "films", str(tmp_path), texts)


def test_the_cache_keeps_the_count_of_words(tokenizer, tmp_path):
    rows = rows_of("the film", "我喜欢电影")
    texts = encode_rows(rows, tokenizer, "films", str(tmp_path), "key", tokenizer.sep_id)
    assert texts.n_words == 3 + 6
