"""Byte-level BPE beside `transformers`."""

import pytest
import tokenizers
from helpers.published_tokenizers import (
    FOUR,
    GENERIC,
    LANGUAGES,
    NASTY,
    assert_as_transformers,
    publish,
)
from tokenizers import models, normalizers

from data.byte_level import ByteLevelTokenizer


@pytest.fixture(scope="module")
def byte_pairs(reviews) -> models.BPE:
    learner = tokenizers.ByteLevelBPETokenizer()
    texts = [*(row["text"] for row in reviews[:100]), *LANGUAGES]
    learner.train_from_iterator(texts, vocab_size=600, special_tokens=["<|endoftext|>"], show_progress=False)
    return learner._tokenizer.model


@pytest.mark.parametrize(("lowercase", "strip_accents"), FOUR)
def test_the_normalizer_of_a_byte_level_tokenizer_is_heeded(lowercase, strip_accents, byte_pairs, tmp_path):
    steps = [normalizers.NFD(), normalizers.StripAccents()] if strip_accents else []
    steps += [normalizers.Lowercase()] if lowercase else []
    folder = publish(tmp_path, settings=GENERIC, normalizer=normalizers.Sequence(steps), model=byte_pairs)
    ours = assert_as_transformers(folder, LANGUAGES + NASTY)
    assert (ours.encode("Haus") == ours.encode("haus")) == lowercase
    assert (ours.encode("stü") == ours.encode("stu")) == strip_accents


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("vocab.json", "GPT2Tokenizer"),
        ("vocab.json", "RobertaTokenizer"),
        ("tokenizer.json", "GPT2Tokenizer"),
        ("tokenizer.json", "RobertaTokenizer"),
        ("tokenizer.json", "PreTrainedTokenizerFast"),
    ],
)
def test_a_space_before_the_first_word_is_what_the_checkpoint_says(file, name, byte_pairs, tmp_path):
    settings = {"tokenizer_class": name, "add_prefix_space": True, "pad_token": "<|endoftext|>"}
    settings |= {f"{part}_token": "<|endoftext|>" for part in ("bos", "eos", "sep", "cls", "unk", "mask")}
    publish(tmp_path, settings=settings, normalizer=None, model=byte_pairs)
    if file == "vocab.json":
        byte_pairs.save(str(tmp_path))
        (tmp_path / "tokenizer.json").unlink()
    ours = assert_as_transformers(tmp_path, [text for text in LANGUAGES if "[" not in text])
    assert isinstance(ours, ByteLevelTokenizer)
    assert (ours.encode("film") == ours.encode(" film")) == (name != "PreTrainedTokenizerFast")
