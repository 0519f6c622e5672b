"""How similar two answers are, as SQuAD's evaluation has it (Rajpurkar et al. 2016, section 6.1)."""

import re
import string
from collections import Counter


def normalized_words(text: str) -> list[str]:
    """Words without case, punctuation and articles."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(answer: str, gold: str) -> float:
    """1 if the words are the same, else 0."""
    return float(normalized_words(answer) == normalized_words(gold))


def token_f1(answer: str, gold: str) -> float:
    """F1 of the words that they share."""
    answer_words, gold_words = normalized_words(answer), normalized_words(gold)
    if not answer_words or not gold_words:
        return float(answer_words == gold_words)
    n_shared = (Counter(answer_words) & Counter(gold_words)).total()
    return 2 * n_shared / (len(answer_words) + len(gold_words))
