"""Which tokenizer a name means, and how it is read."""

import pytest
from helpers.published_tokenizers import (
    GENERIC,
    assert_as_transformers,
    publish,
)
from tokenizers import normalizers

from config.errors import UserError
from data.tokenization import load_tokenizer, parse_training_request
from data.wordpiece import SPECIAL_TOKENS


def test_a_saved_vocabulary_loads_from_its_file_and_its_folder(tokenizer, tiny_vocab):
    for name in (tiny_vocab, tiny_vocab.parent):
        loaded = load_tokenizer(str(name))
        assert (loaded.vocab, loaded.lowercase) == (tokenizer.vocab, tokenizer.lowercase)
        assert (loaded.pad_id, loaded.unk_id, loaded.cls_id, loaded.sep_id, loaded.mask_id) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[PAD]\n[UNK]\ngood\n", r"\[CLS\], \[SEP\], \[MASK\]"),
        (b"[PAD]\n\xe9\xff\n", "cannot be read"),
        (b"", r"\[PAD\]"),
    ],
    ids=["special tokens missing", "not UTF-8", "empty"],
)
def test_a_bad_vocabulary_is_a_sentence_that_names_the_file(tmp_path, content, reason):
    file = tmp_path / "my_vocab.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"my_vocab\.txt .*{reason}"):
        load_tokenizer(str(file))


@pytest.mark.parametrize("name", ["missing.txt", "/nowhere/vocab", "./nowhere"])
def test_a_missing_vocabulary_is_a_sentence_that_names_it(name):
    with pytest.raises(UserError, match=f"--tokenizer {name}: there is no such file"):
        load_tokenizer(name)


def test_ids_that_no_token_has_shift_no_other(tmp_path):
    """A line that is in a vocab.txt twice leaves one when it becomes tokenizer.json."""
    ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS, "film"])} | {"good": 8, "Good": 9}
    folder = publish(tmp_path, ids, GENERIC, normalizers.BertNormalizer(lowercase=False))
    ours = assert_as_transformers(folder, ["good Good film"])
    assert ours.encode("good Good film") == [8, 9, 5] and len(ours) == 10


def test_training_requests_are_parsed():
    assert parse_training_request("train:8192") == (8192, False)
    assert parse_training_request("train:200:uncased") == (200, True)
    assert parse_training_request("bert-base-cased") is None


@pytest.mark.parametrize(
    "name", ["train:", "train:many", "train:99", "train:-500", "train:500:cased", "train:500:uncased:x"]
)
def test_a_bad_training_request_says_how_to_write_it(name):
    with pytest.raises(UserError, match=f"{name}: write train:SIZE"):
        parse_training_request(name)
