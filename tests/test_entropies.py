"""How unsure the heads are of their predictions, against scipy, example by example."""

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.kinds import CAUSAL
from helpers.mixed import make_model, random_batch, randomize, without_labels

from finetuning_model import relative_entropy
from multitask_model import OneTask


def expected_entropy(logits: np.ndarray) -> float:
    """Of the classes that can be chosen, over the logarithm of their number (Pilault et al. 2021, eq. 7)."""
    possible = logits[np.isfinite(logits)].astype(np.float64)
    probabilities = np.exp(possible - possible.max()) / np.exp(possible - possible.max()).sum()
    return scipy.stats.entropy(probabilities) / (np.log(len(possible)) + 1e-5)


def expected_of_example(name: str, logits: np.ndarray, batch: dict, row: int, causal: bool) -> float:
    """By the example's own words, contexts and choices, whatever the head makes of the rest."""
    length = int(batch["attention_mask"][row].sum(-1).max())
    cls = length - 1 if causal else 0
    if name == "topic":
        return expected_entropy(logits)
    if name == "choices":
        return expected_entropy(logits[: int(batch["n_choices"][row])])
    if name == "answers":
        allowed = [position for position in range(length) if batch["span_mask"][row, position]]
        return np.mean([expected_entropy(logits[allowed, end]) for end in (0, 1)])
    words = [position for position in range(length) if batch["word_mask"][row, position]]
    if name == "tags":
        return np.mean([expected_entropy(logits[word]) for word in words])
    return np.mean([expected_entropy(logits[word, sorted({*words, cls}), 0]) for word in words])


@CAUSAL
@pytest.mark.parametrize("name", ["topic", "choices", "answers", "tags", "trees"])
def test_entropies_are_those_of_scipy_example_by_example(name, causal):
    model = randomize(make_model([], causal=causal))
    batch = random_batch(name, [9, 20, 6, 7], causal)
    with torch.no_grad():
        logits = OneTask(model, name)(**without_labels(batch))
    entropies = model.head(name).entropy(logits, batch)
    assert entropies.shape == (4,) and entropies.std() > 1e-3
    for row, entropy in enumerate(entropies.tolist()):
        expected = expected_of_example(name, logits[row].numpy(), batch, row, causal)
        assert entropy == pytest.approx(expected, abs=1e-6)


def test_a_number_has_no_entropy_and_certainty_has_none_left():
    model, batch = make_model([]), random_batch("score", [6, 9], True)
    logits = OneTask(model, "score")(**without_labels(batch))
    assert model.head("score").entropy(logits, batch).isnan().tolist() == [True, True]
    certain, uniform = torch.tensor([[1e4, 0.0, -1e4]]), torch.zeros(1, 7)
    single = torch.tensor([[-torch.inf, 2.0]])
    assert relative_entropy(certain).item() == relative_entropy(single).item() == 0.0
    assert relative_entropy(uniform).item() == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_without_words_has_an_entropy_of_zero():
    model, batch = randomize(make_model([])), random_batch("tags", [6, 9], True)
    batch["word_mask"][0] = 0
    for name in ("tags", "trees"):
        logits = OneTask(model, name)(**without_labels(batch))
        entropies = model.head(name).entropy(logits, batch)
        assert entropies[0] == 0 and entropies[1] > 0
