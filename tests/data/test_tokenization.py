"""The tokenizer against its references, and the vocabularies it takes.

Where accents are stripped if and only if it lowercases, that is `pytorch_pretrained_bert`, else
`transformers`.
"""

import itertools
import json
import random
import unicodedata

import pytest
import tokenizers
import transformers
from pytorch_pretrained_bert import BertTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.tokenization import load_tokenizer, parse_training_request
from data.wordpiece import SPECIAL_TOKENS, Tokenizer, train_tokenizer

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
        "import sys; import data.wordpiece as tokenization; lines = open(sys.argv[1], encoding='utf-8').readlines();"
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


# ------------------------------------------------------------------------------------- what a checkpoint says


GERMAN = "Die Bäume stehen über dem Haus"
# Texts on which the two references agree; what they disagree about is in NASTY.
LANGUAGES = [
    GERMAN, "STRASSE Straße Öl", "L'été à l'École où naïve Cœur", "İstanbul ISPARTA ığdır Çok Güzel",
    "我喜欢 这部电影 mixed中文text", "Tiếng Việt rất Đẹp ĐƯỜNG ướt", "cafe\u0301 A\u030angstro\u0308m x\u0301\u0302",
    "emoji 😀 👩‍👩‍👧 ❤️", "ctrl \x01\x07\x0b\x1c\x7f\x85 end\tTab", 
    "half [MASK] [PAD] [UNK] \u0301alone", "Йод ё हिन्दी",
]  # fmt: skip
FOUR = list(itertools.product((True, False), repeat=2))  # lowercase, strip accents
BERT, GENERIC = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}


def words_of(texts, lowercase, strip_accents) -> set[str]:
    """The words of texts and their characters, as word pieces."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    text = normalizer.normalize_str(" ".join(texts))
    characters = set("".join(text.split()))
    words = {word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text)}
    return words | characters | {f"##{character}" for character in characters}


def vocabulary(*cases) -> list[str]:
    learned = set().union(*(words_of(LANGUAGES, *case) for case in cases)) - set(SPECIAL_TOKENS)
    return [*SPECIAL_TOKENS, *sorted(learned)]


def publish(folder, vocab=None, settings=None, normalizer="none", model=None):
    """A checkpoint's folder, with vocab.txt or, where there is a normalizer, tokenizer.json."""
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if normalizer == "none":
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocab), encoding="utf-8")
        return folder
    ids = {token: index for index, token in enumerate(vocab)} if isinstance(vocab, list) else vocab
    fast = tokenizers.Tokenizer(model or models.WordPiece(ids, unk_token="[UNK]"))
    is_bytes = isinstance(fast.model, models.BPE)
    bert, gpt2 = pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.pre_tokenizer = gpt2 if is_bytes else bert
    if normalizer is not None:
        fast.normalizer = normalizer
    fast.add_special_tokens(["<|endoftext|>"] if is_bytes else list(SPECIAL_TOKENS))
    fast.save(str(folder / "tokenizer.json"))
    return folder


def assert_as_transformers(folder, texts):
    """Both encode alike, and so does what we save for a run folder."""
    ours, theirs = load_tokenizer(str(folder)), transformers.AutoTokenizer.from_pretrained(folder)
    saved = folder / "run" / ours.file
    saved.parent.mkdir()
    ours.save(saved)
    again = load_tokenizer(str(saved.parent))
    assert again.fingerprint == ours.fingerprint and again.file == ours.file
    for text in texts:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == again.encode(text) == ids, ascii(text)
    return ours


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


def test_ids_that_no_token_has_shift_no_other(tmp_path):
    """A line that is in a vocab.txt twice leaves one when it becomes tokenizer.json."""
    ids = {token: index for index, token in enumerate([*SPECIAL_TOKENS, "film"])} | {"good": 8, "Good": 9}
    folder = publish(tmp_path, ids, GENERIC, normalizers.BertNormalizer(lowercase=False))
    ours = assert_as_transformers(folder, ["good Good film"])
    assert ours.encode("good Good film") == [8, 9, 5] and len(ours) == 10


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
        "import sys; import data.wordpiece as tokenization; made = tokenization.train_tokenizer(lambda: iter(['a b']), 100, False);"
        "made.encode('a [MASK] b'); sys.exit('torch' in sys.modules)"
    )
    assert run_script("-c", code).returncode == 0
