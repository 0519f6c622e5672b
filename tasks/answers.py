"""How much two answers have in common, as SQuAD's evaluation sees it (Rajpurkar et al. 2016, section 6.1)."""

import re
import string
from collections import Counter


def normalized(text: str) -> list[str]:
    """Words without case, punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(answer: str, gold: str) -> float:
    """1 if both are the same words."""
    return float(normalized(answer) == normalized(gold))


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words that both have."""
    found, wanted = normalized(answer), normalized(gold)
    if not found or not wanted:
        return float(found == wanted)
    n_common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * n_common / (len(found) + len(wanted))
