"""The heads: what classification pools, what losses sum up, how unsure predictions are."""

import numpy as np
import pytest
import scipy.stats
import torch
from helpers.kinds import CAUSAL
from helpers.mixed import make_model as make_multitask_model
from helpers.mixed import random_batch, randomize, without_labels

from checkpoints.finetuned import load_finetuned
from config.command_line import parse_argv
from config.constants import IGNORE_INDEX
from config.model import TransformerConfig
from finetuning_model import HeadConfig, TransformerWithClfHead, relative_entropy
from finetuning_train import FinetuningConfig, finetune
from layers.adapters import Tuning
from multitask_model import OneTask

SHAPE = TransformerConfig(97, 32, 64, 24, 4, 3, 0.0, 0.0)


def make_model(causal=True, pre_norm=True, **head) -> TransformerWithClfHead:
    torch.manual_seed(0)
    shape = TransformerConfig(**vars(SHAPE) | {"causal": causal, "pre_norm": pre_norm})
    return TransformerWithClfHead(shape, HeadConfig(**{"num_outputs": 3} | head)).eval()


def random_batch(lengths=(9, 5)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(97, mask.shape, generator=generator), "attention_mask": mask}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "cls_mean_max"])
def test_padding_and_company_do_not_change_a_prediction(causal, pooling):
    model, batch = make_model(causal, pooling=pooling), random_batch()
    together = model(**batch)
    alone = model(batch["input_ids"][1:, :5], batch["attention_mask"][1:, :5])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_cls_pooling_reads_the_last_real_token_of_a_causal_model_and_the_first_of_a_bidirectional_one(causal):
    model, batch = make_model(causal), random_batch()
    states = model.transformer(batch["input_ids"], None if causal else batch["attention_mask"])
    expected = states[[0, 1], [8, 4]] if causal else states[:, 0]
    torch.testing.assert_close(model.classification_head.pool(states, batch["attention_mask"]), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tuning", ["full", "houlsby", "pfeiffer"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_last_layer_for_cls_alone_gives_the_same_logits_and_gradients(causal, pre_norm, tuning):
    model, batch = make_model(causal, pre_norm, tuning=Tuning(tuning, width=8)), random_batch()
    states = model.transformer(batch["input_ids"], None if causal else batch["attention_mask"])
    whole = model.classification_head(model.classification_head.pool(states, batch["attention_mask"]))
    alone = model(**batch)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
    trained = [one for one in model.parameters() if one.requires_grad]
    gradients = zip(
        *(
            torch.autograd.grad(logits.logsumexp(1).sum(), trained, allow_unused=True)
            for logits in (alone, whole)
        ),
        strict=True,
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_losses_are_sums_and_lm_logits_are_computed_only_on_request(monkeypatch):
    model, batch = make_model(), random_batch()
    labels = torch.tensor([2, 0])
    losses = model(**batch, labels=labels)
    expected = torch.nn.functional.cross_entropy(model(**batch), labels) * 2
    torch.testing.assert_close(losses["clf"], expected)

    def refuse(*_):
        raise AssertionError("LM logits were computed")

    monkeypatch.setattr(model, "loss", refuse)
    monkeypatch.setattr(model, "logits", refuse)
    assert set(model(**batch, labels=labels)) == {"clf"}
    with pytest.raises(AssertionError):
        model(**batch, labels=labels, lm_labels=torch.full_like(batch["input_ids"], IGNORE_INDEX))


def test_regression_is_squared_error():
    model, batch = make_model(num_outputs=1), random_batch()
    labels = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(
        model(**batch, labels=labels)["clf"], ((model(**batch)[:, 0] - labels) ** 2).sum()
    )


def test_a_class_of_the_users_own_is_trained_and_found_again(finetuning, tmp_path):
    class TwiceAsSure(TransformerWithClfHead):
        def forward(self, *args, labels=None, **kwargs):
            return (
                super().forward(*args, labels=labels, **kwargs)
                if labels is not None
                else 2 * super().forward(*args, **kwargs)
            )

    flags = [
        *finetuning,
        "--n_steps",
        1,
        "--finetuning_model_class",
        "TwiceAsSure",
        "--output_dir",
        tmp_path / "run",
    ]
    finetune(parse_argv(FinetuningConfig, "", list(map(str, flags))))
    model = load_finetuned(tmp_path / "run", "RUN_FOLDER")
    assert type(model) is TwiceAsSure


# -------------------------------------------------------------------------------------------------- entropies


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
    model = randomize(make_multitask_model([], causal=causal))
    batch = random_batch(name, [9, 20, 6, 7], causal)
    with torch.no_grad():
        logits = OneTask(model, name)(**without_labels(batch))
    entropies = model.head(name).entropy(logits, batch)
    assert entropies.shape == (4,) and entropies.std() > 1e-3
    for row, entropy in enumerate(entropies.tolist()):
        expected = expected_of_example(name, logits[row].numpy(), batch, row, causal)
        assert entropy == pytest.approx(expected, abs=1e-6)


def test_a_number_has_no_entropy_and_certainty_has_none_left():
    model, batch = make_multitask_model([]), random_batch("score", [6, 9], True)
    logits = OneTask(model, "score")(**without_labels(batch))
    assert model.head("score").entropy(logits, batch).isnan().tolist() == [True, True]
    certain, uniform = torch.tensor([[1e4, 0.0, -1e4]]), torch.zeros(1, 7)
    single = torch.tensor([[-torch.inf, 2.0]])
    assert relative_entropy(certain).item() == relative_entropy(single).item() == 0.0
    assert relative_entropy(uniform).item() == pytest.approx(1.0, abs=1e-5)


def test_a_sentence_without_words_has_an_entropy_of_zero():
    model, batch = randomize(make_multitask_model([])), random_batch("tags", [6, 9], True)
    batch["word_mask"][0] = 0
    for name in ("tags", "trees"):
        logits = OneTask(model, name)(**without_labels(batch))
        entropies = model.head(name).entropy(logits, batch)
        assert entropies[0] == 0 and entropies[1] > 0
