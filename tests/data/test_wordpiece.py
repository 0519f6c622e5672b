"""WordPiece beside its reference, `pytorch_pretrained_bert`, and how a vocabulary is learned."""

import random
import unicodedata

import pytest
from helpers.published_tokenizers import (
    HIDDEN_SPECIAL_TOKENS,
    NASTY,
    assert_parity,
)
from pytorch_pretrained_bert import BertTokenizer

from data.wordpiece import SPECIAL_TOKENS, Tokenizer, train_tokenizer


@pytest.fixture(scope="module", params=["cased", "uncased"])
def pair(request, reviews, tmp_path_factory):
    """A tokenizer whose vocabulary was trained on reviews, and the reference that reads the file it saves."""
    texts = [row["text"] for row in reviews[::80]]
    trained = train_tokenizer(lambda: iter(texts), 500, lowercase=request.param == "uncased")
    assert trained.lowercase == (request.param == "uncased")
    file = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    trained.save(file)
    return trained, BertTokenizer(str(file), do_lower_case=trained.lowercase)


def test_ids_of_real_reviews_are_the_references(pair, reviews):
    texts = [row["text"][:700] for row in reviews[::12]]
    assert len(texts) > 2000
    assert_parity(pair, texts)


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_ids_of_nasty_texts_are_the_references(pair, text):
    assert_parity(pair, [text, f"before {text} after", f"({text})"])


@pytest.mark.parametrize("text", HIDDEN_SPECIAL_TOKENS, ids=ascii)
def test_special_tokens_are_found_where_the_reference_finds_them(pair, text):
    assert_parity(pair, [text])


def test_lone_surrogates_are_dropped_as_by_the_reference(pair):
    """JSON escapes (`\\ud83d`) and command lines that are not UTF-8 hold such characters."""
    assert_parity(pair, ["half an emoji \ud83d", "\udce9", "[MASK] \ud800"])


def test_training_accepts_lone_surrogates():
    assert "a" in train_tokenizer(lambda: iter(["a b \ud83d c"] * 10), 100, lowercase=False).token_to_id


def test_ids_of_random_unicode_are_the_references(pair):
    draw = random.Random(0)
    planes = [
        (0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x600), (0x900, 0x1200), (0x1E00, 0x2100),
        (0x2100, 0x3100), (0x3100, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000),
    ]  # fmt: skip
    pieces = [*SPECIAL_TOKENS, " ", " ", " ", "\t", "\n", "\u0301", "\u200d", "Σ", "I"]

    def text():
        return "".join(
            draw.choice(pieces) if draw.random() < 0.3 else chr(draw.randrange(*draw.choice(planes)))
            for _ in range(draw.randrange(1, 40))
        )

    assert_parity(pair, [text() for _ in range(2000)])


def test_training_gives_the_same_vocabulary_although_many_pairs_are_equally_frequent(reviews):
    texts = [row["text"] for row in reviews[:600]]
    vocabularies = [list(train_tokenizer(lambda: iter(texts), 3000, lowercase=False).vocab) for _ in range(8)]
    assert all(one == vocabularies[0] for one in vocabularies)


@pytest.mark.processes("each has its own order of sets")
def test_training_gives_the_same_vocabulary_in_every_process(reviews, run_script, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(row["text"].replace("\n", " ") for row in reviews[:200]), encoding="utf-8")
    code = (
        "import sys; from data.wordpiece import train_tokenizer;"
        "lines = open(sys.argv[1], encoding='utf-8').readlines();"
        "train_tokenizer(lambda: iter(lines), 500, False).save(sys.argv[2])"
    )
    for seed in ("1", "2"):
        result = run_script("-c", code, corpus, tmp_path / seed, env={"PYTHONHASHSEED": seed})
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("size", [100, 500, 1234])
def test_training_respects_the_size(reviews, size):
    trained = train_tokenizer(lambda: (row["text"] for row in reviews[:100]), size, lowercase=True)
    assert trained.vocab[:5] == list(SPECIAL_TOKENS)
    assert len(trained) == len(trained.token_to_id) == size


def test_a_corpus_with_many_characters_still_learns_words():
    texts = [
        "the film was good " + "".join(map(chr, range(start, start + 20)))
        for start in range(0x4E00, 0x5E00, 20)
    ]
    trained = train_tokenizer(lambda: iter(texts), 300, lowercase=False)
    assert {"the", "film", "was", "good"} < set(trained.vocab)


def test_training_on_almost_nothing_gives_a_small_vocabulary():
    assert len(train_tokenizer(lambda: iter(["ab"]), 500, lowercase=False)) < 20


def test_uncased_training_learns_neither_capitals_nor_accents():
    trained = train_tokenizer(lambda: iter(["Été À La CAFÉ"] * 20), 100, lowercase=True)
    learned = "".join(trained.vocab[5:])
    assert learned == learned.lower() == unicodedata.normalize("NFD", learned)


def test_batches_keep_the_order_of_fast_and_slow_texts(tokenizer):
    texts = ["a good film", "ΟΔΟΣ", "x[CLS]", "", "bad"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [
        tokenizer.encode(text) for text in texts
    ]


def test_a_simple_sentence_survives_encoding_and_decoding(tokenizer):
    sentence = "this is not a good film, but it was fun!"
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence


def test_a_vocabulary_with_windows_line_ends_loads(tokenizer, tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(tokenizer.vocab).encode())
    assert Tokenizer.from_file(tmp_path / "vocab.txt").vocab == tokenizer.vocab


@pytest.mark.parametrize(
    ("tokens", "lowercase"),
    [
        (["good", "##ly", "中", "1", "[unused1]", "[SOLO]"], True),
        (["good", "Good"], False),
        (["good", "##LY"], False),
        (["good", "É"], False),
        (["good", "café"], False),  # an uncased tokenizer could never produce it
        (["हिन्दी"], False),
    ],
)
def test_case_is_inferred_from_the_vocabulary(tokens, lowercase):
    assert Tokenizer([*SPECIAL_TOKENS, *tokens]).lowercase == lowercase


def test_a_cased_vocabulary_of_a_script_without_capitals_keeps_its_vowel_signs():
    sentence = "यह एक अच्छी फिल्म है"
    trained = train_tokenizer(lambda: iter([sentence] * 50), 300, lowercase=False)
    assert trained.decode(trained.encode(sentence)) == sentence


def test_special_tokens_may_have_any_id():
    tokenizer = Tokenizer(["good", "[MASK]", "[SEP]", "[CLS]", "[UNK]", "[PAD]"])
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.special_ids) == (5, 1, [5, 4, 3, 2, 1])
    assert tokenizer.encode("good [MASK] evil") == [0, 1, 4]


@pytest.mark.processes("it looks at what a new process imports")
def test_no_reference_is_imported_for_plain_text(run_script):
    """It imports torch and takes seconds."""
    code = (
        "import sys; from data.wordpiece import train_tokenizer;"
        "tokenizer = train_tokenizer(lambda: iter(['a b']), 100, False);"
        "tokenizer.encode('a [MASK] b'); sys.exit('torch' in sys.modules)"
    )
    assert run_script("-c", code).returncode == 0
