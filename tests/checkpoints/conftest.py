"""Published checkpoints, for the tests of this folder."""

import pytest
from helpers.published import VOCABULARY, save_random, save_tokenizer

from data.wordpiece import SPECIAL_TOKENS, Tokenizer


@pytest.fixture(scope="module", params=["gpt2", "bert", "roberta"])
def folder(request, tmp_path_factory, reviews, tokenizer):
    """A checkpoint as it would be published: config, weights, tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    save_random(request.param, folder)
    save_tokenizer(request.param, folder, reviews, tokenizer)
    return folder


@pytest.fixture
def german(tmp_path):
    """A checkpoint that lowercases and keeps accents, which its vocabulary alone does not tell."""
    folder = tmp_path / "german"
    save_random("bert", folder)
    words = ["die", "bäume", "stehen", "über", "dem", "haus", "good", "bad", "film"]
    unused = [f"[unused{index}]" for index in range(VOCABULARY - len(SPECIAL_TOKENS) - len(words))]
    Tokenizer([*SPECIAL_TOKENS, *words, *unused]).save(folder / "vocab.txt")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
    return folder
