"""Texts that are hard to tokenize, and tokenizers as they are published."""

import itertools
import json

import tokenizers
import transformers
from tokenizers import models, normalizers, pre_tokenizers

from data.tokenization import load_tokenizer
from data.wordpiece import SPECIAL_TOKENS

NASTY = [
    "", " ", " \t\r\n\u3000\u2028", "\x00", "\u200b\u200d\ufeff", "word", "A" * 10_000, "ab " * 4000,
    "a" * 100, "a" * 101, "emoji 😀 👩‍👩‍👧‍👦 ❤️ 🏳️‍🌈 🇫🇷", "young emoji 🫨 🪿 \U0001fae9 \U0001fadf \U0001fac6",
    "keycap 1️⃣",
    "中文字 混合 mixed中文text 𠀀 豈 㐀 한국어 ひらがな カタカナ が", "日本語、テキスト。「引用」",
    "café cafe\u0301 Ångström ñandú naïve ﬁ ß ẞ ŉ ǆ",
    "x\u0301\u0302\u0323 \u0301alone a\u0345 \u0958 \U0001d160",
    "ctrl \x01\x02\x07\x0b\x0c\x1b\x1c\x1f\x7f\x80\x85\x9f end", "tab\tline\nfeed\rend", "soft\u00adhyphen",
    "zero\u200bwidth\u200cjoin\u200d\u2060\ufeffer", "nul\x00in\x00side", "bad \ufffd character",
    "ΟΔΟΣ Σ ΣΑΣ σς Ὀδυσσεύς", "İstanbul ISPARTA ıi I\u0307", "unassigned \u0378 \U000e0fff \U0003fffd",
    "private \ue000 \U000f0000 \U0010ffff", "שלום עולם مرحبا بالعالم \u202eRTL\u202c", "हिन्दी में ไทย ខ្មែរ",
    "a<br /><br />b", "don't (stop) -- $5.00 a_b^c`d|e~f", "“quotes” — dash… «guillemets» ¿qué? §¶ † ′ ・",
    "½ ² Ⅷ ① ㎏ 𝒜𝓑 ﷺ K Å",
    "nbsp\u00a0en\u2002thin\u2009ideographic\u3000line\u2028paragraph\u2029mongolian\u180eend",
    "[MASK]", " [MASK] ", "[CLS] a [SEP] b [PAD] [UNK]", "([SEP])", "x[CLS]", "[CLS]x", "[MASK][MASK]",
    "[[MASK]]", "[MASK].", "[mask] [Mask] [ MASK ] [MASK", "中[MASK]文", "[MASK]\u0301", "[MASK]\u00a0a",
    "\u2028[MASK]\u2028", "[unused1] [XYZ]",
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
GERMAN = "Die Bäume stehen über dem Haus"
# Texts on which the two references agree; what they disagree about is in NASTY.
LANGUAGES = [
    GERMAN, "STRASSE Straße Öl", "L'été à l'École où naïve Cœur", "İstanbul ISPARTA ığdır Çok Güzel",
    "我喜欢 这部电影 mixed中文text", "Tiếng Việt rất Đẹp ĐƯỜNG ướt",
    "cafe\u0301 A\u030angstro\u0308m x\u0301\u0302", "emoji 😀 👩‍👩‍👧 ❤️",
    "ctrl \x01\x07\x0b\x1c\x7f\x85 end\tTab",
    "half [MASK] [PAD] [UNK] \u0301alone", "Йод ё हिन्दी",
]  # fmt: skip
FOUR = list(itertools.product((True, False), repeat=2))  # lowercase, strip accents
BERT, GENERIC = {"tokenizer_class": "BertTokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}


def assert_parity(pair, texts):
    ours, reference = pair
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == reference.convert_tokens_to_ids(reference.tokenize(text)), ascii(text[:80])


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
