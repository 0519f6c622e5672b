"""Case, accents and Chinese characters, as a checkpoint's settings have them, beside `transformers`."""

import pytest
from helpers.published_tokenizers import (
    BERT,
    FOUR,
    GENERIC,
    GERMAN,
    HIDDEN_SPECIAL_TOKENS,
    LANGUAGES,
    NASTY,
    assert_as_transformers,
    assert_parity,
    publish,
    vocabulary,
)
from pytorch_pretrained_bert import BertTokenizer
from tokenizers import normalizers

from config.errors import UserError
from data.tokenization import load_tokenizer
from data.wordpiece import SPECIAL_TOKENS, Tokenizer


@pytest.mark.parametrize(("lowercase", "strip_accents"), FOUR)
@pytest.mark.parametrize("source", ["vocab.txt", "tokenizer.json", "both", "both, generic"])
def test_case_and_accents_are_what_the_checkpoint_says(source, lowercase, strip_accents, tmp_path):
    vocab, wanted = vocabulary(*FOUR), {"do_lower_case": lowercase, "strip_accents": strip_accents}
    settings = BERT | wanted
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    other = normalizers.BertNormalizer(lowercase=not lowercase, strip_accents=not strip_accents)
    if source == "vocab.txt":
        publish(tmp_path, vocab, settings)
    elif source == "tokenizer.json":
        publish(tmp_path, vocab, GENERIC, normalizer)
    elif source == "both":  # its class heeds the settings
        publish(tmp_path, vocab, settings, other)
    else:  # its class heeds tokenizer.json, which has another vocabulary too
        publish(tmp_path, vocab[::-1], GENERIC | {name: not value for name, value in wanted.items()})
        publish(tmp_path, vocab, normalizer=normalizer)
    is_coupled = lowercase == strip_accents
    ours = assert_as_transformers(tmp_path, LANGUAGES if is_coupled else LANGUAGES + NASTY)
    assert ours.unk_id not in ours.encode(GERMAN)


@pytest.mark.parametrize("lowercase", [True, False])
def test_where_the_settings_are_those_of_the_reference_so_are_the_ids(lowercase, tmp_path):
    """Also of a vocabulary that would be guessed to be cased."""
    folder = publish(tmp_path, vocabulary(*FOUR), {"do_lower_case": lowercase, "strip_accents": None})
    ours = load_tokenizer(str(folder))
    reference = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=lowercase, max_len=10**9)
    texts = LANGUAGES + NASTY + HIDDEN_SPECIAL_TOKENS
    assert ours.file == ("tokenizer.json" if lowercase else "vocab.txt")
    assert_parity((ours, reference), texts)
    assert_parity((ours, reference), [f"({text}) {text}" for text in texts])


def test_an_uncased_german_vocabulary_that_keeps_accents_knows_its_words(tmp_path):
    settings = BERT | {"do_lower_case": True, "strip_accents": False}
    folder = publish(tmp_path, vocabulary((True, False)), settings)
    ours = assert_as_transformers(folder, LANGUAGES)
    assert ours.decode(ours.encode(GERMAN)) == GERMAN.lower()
    assert Tokenizer(ours.vocab).encode(GERMAN).count(ours.unk_id) == 3  # the vocabulary alone cannot tell


def test_a_vocabulary_that_looks_uncased_may_be_cased(tmp_path):
    folder = publish(tmp_path, [*SPECIAL_TOKENS, "good", "film"], BERT | {"do_lower_case": False})
    assert assert_as_transformers(folder, ["good Good film"]).encode("good Good film") == [5, 1, 6]


def test_chinese_characters_stay_together_where_the_settings_say_so(tmp_path):
    settings = BERT | {"do_lower_case": False, "tokenize_chinese_chars": False}
    folder = publish(tmp_path, [*SPECIAL_TOKENS, "电影", "电"], settings)
    assert assert_as_transformers(folder, LANGUAGES).encode("电影 电") == [5, 6]


@pytest.mark.parametrize(
    "normalizer",
    [
        None,
        normalizers.Lowercase(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        normalizers.Prepend("x"),
    ],
    ids=["none", "lowercase", "sequence", "prepend"],
)
def test_any_normalizer_of_tokenizer_json_is_heeded(normalizer, tmp_path):
    texts = [text for text in LANGUAGES + NASTY if text]  # Prepend changes an empty text
    assert_as_transformers(publish(tmp_path, vocabulary(*FOUR), GENERIC, normalizer), texts)


def test_settings_that_say_nothing_leave_the_choice_to_tokenizer_json_and_then_to_the_vocabulary(tmp_path):
    vocab = vocabulary(*FOUR)
    publish(tmp_path, vocab, {"model_max_length": 512, "strip_accents": None})
    assert not load_tokenizer(str(tmp_path)).lowercase
    publish(tmp_path, vocab, normalizer=normalizers.BertNormalizer(lowercase=True, strip_accents=False))
    ours = load_tokenizer(str(tmp_path))
    assert ours.lowercase and ours.decode(ours.encode(GERMAN)) == GERMAN.lower()


@pytest.mark.parametrize("normalizer", ["none", None], ids=["vocab.txt", "tokenizer.json"])
def test_a_setting_that_is_neither_true_nor_false_is_a_sentence(normalizer, tmp_path):
    publish(tmp_path, [*SPECIAL_TOKENS, "good"], {"do_lower_case": "yes"}, normalizer)
    sentence = r"^\S*tokenizer_config\.json: do_lower_case must be true or false, not 'yes'$"
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(str(tmp_path))


def test_tokenizers_that_encode_differently_have_different_fingerprints():
    vocab = vocabulary(*FOUR)
    cases = [normalizers.BertNormalizer(lowercase=lower, strip_accents=strip, handle_chinese_chars=chinese)
             for lower, strip in FOUR for chinese in (True, False)]  # fmt: skip
    assert len({str(Tokenizer(vocab, case).fingerprint) for case in cases}) == len(cases)
    guessed = normalizers.BertNormalizer(lowercase=False)
    assert Tokenizer(vocab).fingerprint == Tokenizer(vocab, guessed).fingerprint == vocab
