"""The tokenizer against its reference, `pytorch_pretrained_bert.BertTokenizer`, and the vocabularies it takes."""

import random
import unicodedata

import pytest
from pytorch_pretrained_bert import BertTokenizer

from arguments import UserError
from tokenization import SPECIAL_TOKENS, Tokenizer, load_tokenizer, parse_training_request, train_tokenizer

NASTY = [
    "", " ", " \t\r\n\u3000\u2028", "\x00", "\u200b\u200d\ufeff", "word", "A" * 10_000, "ab " * 4000, "a" * 100,
    "a" * 101, "emoji 😀 👩‍👩‍👧‍👦 ❤️ 🏳️‍🌈 🇫🇷", "young emoji 🫨 🪿 \U0001fae9 \U0001fadf \U0001fac6", "keycap 1️⃣",
    "中文字 混合 mixed中文text 𠀀 豈 㐀 한국어 ひらがな カタカナ が", "日本語、テキスト。「引用」",
    "café cafe\u0301 Ångström ñandú naïve ﬁ ß ẞ ŉ ǆ", "x\u0301\u0302\u0323 \u0301alone a\u0345 \u0958 \U0001d160",
    "ctrl \x01\x02\x07\x0b\x0c\x1b\x1c\x1f\x7f\x80\x85\x9f end", "tab\tline\nfeed\rend", "soft\u00adhyphen",
    "zero\u200bwidth\u200cjoin\u200d\u2060\ufeffer", "nul\x00in\x00side", "bad \ufffd character",
    "ΟΔΟΣ Σ ΣΑΣ σς Ὀδυσσεύς", "İstanbul ISPARTA ıi I\u0307", "unassigned \u0378 \U000e0fff \U0003fffd",
    "private \ue000 \U000f0000 \U0010ffff", "שלום עולם مرحبا بالعالم \u202eRTL\u202c", "हिन्दी में ไทย ខ្មែរ",
    "a<br /><br />b", "don't (stop) -- $5.00 a_b^c`d|e~f", "“quotes” — dash… «guillemets» ¿qué? §¶ † ′ ・",
    "½ ² Ⅷ ① ㎏ 𝒜𝓑 ﷺ K Å",
    "nbsp\u00a0en\u2002thin\u2009ideographic\u3000line\u2028paragraph\u2029mongolian\u180eend",
    "[MASK]", " [MASK] ", "[CLS] a [SEP] b [PAD] [UNK]", "([SEP])", "x[CLS]", "[CLS]x", "[MASK][MASK]", "[[MASK]]",
    "[MASK].", "[mask] [Mask] [ MASK ] [MASK", "中[MASK]文", "[MASK]\u0301", "[MASK]\u00a0a", "\u2028[MASK]\u2028",
    "[unused1] [XYZ]",
]  # fmt: skip
# The reference deletes control characters before it looks for special tokens.
HIDDEN_SPECIAL_TOKENS = [
    "a\x1c[MASK]",
    "a\x0c[MASK] b",
    "[MASK]\x85a",
    "[MA\x00SK]",
    "[MA\u200bSK]",
    "[SEP\ufffd]",
    "\x00[MASK]",
]


@pytest.fixture(scope="module", params=["cased", "uncased"])
def pair(request, reviews, tmp_path_factory):
    """A tokenizer whose vocabulary was trained on reviews, and the reference that reads the file it saves."""
    texts = [row["text"] for row in reviews[::80]]
    trained = train_tokenizer(lambda: iter(texts), 500, lowercase=request.param == "uncased")
    assert trained.lowercase == (request.param == "uncased")
    file = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    trained.save(file)
    return trained, BertTokenizer(str(file), do_lower_case=trained.lowercase)


def assert_parity(pair, texts):
    ours, reference = pair
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == reference.convert_tokens_to_ids(reference.tokenize(text)), ascii(text[:80])


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
        (0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x300, 0x600), (0x900, 0x1200), (0x1E00, 0x2100), (0x2100, 0x3100),
        (0x3100, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000),
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


def test_training_gives_the_same_vocabulary_in_every_process(reviews, run_script, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(row["text"].replace("\n", " ") for row in reviews[:200]), encoding="utf-8")
    code = (
        "import sys, tokenization; lines = open(sys.argv[1], encoding='utf-8').readlines();"
        "tokenization.train_tokenizer(lambda: iter(lines), 500, False).save(sys.argv[2])"
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
    texts = ["the film was good " + "".join(map(chr, range(start, start + 20))) for start in range(0x4E00, 0x5E00, 20)]
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
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_a_simple_sentence_survives_encoding_and_decoding(tokenizer):
    sentence = "this is not a good film, but it was fun!"
    assert tokenizer.decode(tokenizer.encode(sentence)) == sentence


def test_a_saved_vocabulary_loads_from_its_file_and_its_folder(tokenizer, tiny_vocab):
    for name in (tiny_vocab, tiny_vocab.parent):
        loaded = load_tokenizer(str(name))
        assert (loaded.vocab, loaded.lowercase) == (tokenizer.vocab, tokenizer.lowercase)
        assert (loaded.pad_id, loaded.unk_id, loaded.cls_id, loaded.sep_id, loaded.mask_id) == (0, 1, 2, 3, 4)


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


def test_no_reference_is_imported_for_plain_text(run_script):
    """It imports torch and takes seconds."""
    code = (
        "import sys, tokenization; made = tokenization.train_tokenizer(lambda: iter(['a b']), 100, False);"
        "made.encode('a [MASK] b'); sys.exit('torch' in sys.modules)"
    )
    assert run_script("-c", code).returncode == 0
