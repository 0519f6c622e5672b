"""How many words a text has, in any script."""

import re

# Scripts that are written without spaces between words. Each letter is a word in these:
HAN = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HIRAGANA, THAI_AND_LAO, KHMER = "\u3041-\u309f", "\u0e00-\u0eff", "\u1780-\u17ff\u19e0-\u19ff"
MYANMAR = "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"
LETTERS = HAN + HIRAGANA + THAI_AND_LAO + KHMER + MYANMAR
# Each run of letters is one in these (Tibetan marks the ends of syllables):
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
TIBETAN = "\u0f20-\u0f33\u0f40-\u0f6c\u0f71-\u0f84\u0f8d-\u0fbc"
WITHOUT_SPACES = re.compile(f"[{LETTERS}{KATAKANA}{TIBETAN}]")
WORD = re.compile(rf"(?=\w)[{LETTERS}]|[{KATAKANA}]+|[{TIBETAN}]+|[^\W{LETTERS}{KATAKANA}{TIBETAN}]+")


def count_words(text: str) -> int:
    """How many words a text has, for perplexities per word.

    Words are separated by spaces, as in the results published for WikiText, where punctuation marks and <unk>
    are words too. In a script without spaces they are separated by Unicode's default boundaries (UAX #29,
    section 4), which need no dictionary; punctuation is no word then, unless it stands alone. None of our
    libraries knows these boundaries, so here are their rules for letters.
    """
    pieces = text.split()
    if text.isascii() or not WITHOUT_SPACES.search(text):
        return len(pieces)
    return sum(max(1, len(WORD.findall(piece))) if WITHOUT_SPACES.search(piece) else 1 for piece in pieces)
