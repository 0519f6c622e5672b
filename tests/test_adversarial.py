"""Adversarial training on the embeddings (Miyato, Dai & Goodfellow 2017)."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from config.model import TransformerConfig
from finetuning_model import HeadConfig, TransformerWithClfHead, worst_change
from layers.adapters import Tuning

EPSILON, LABELS = 0.01, torch.tensor([2, 0])


def make_model(turn: bool | None = True, causal=True, **head) -> TransformerWithClfHead:
    """A model that trains on moved inputs: always, never, or (None) by chance."""
    torch.manual_seed(0)
    shape = TransformerConfig(97, 32, 64, 24, 4, 3, 0.0, 0.0, causal=causal)
    model = TransformerWithClfHead(shape, HeadConfig(**{"num_outputs": 3} | head)).train()
    torch.nn.init.normal_(model.classification_head.weight)
    model.adversarial_epsilon = EPSILON
    if turn is not None:
        model.is_adversarial_turn = lambda: turn
    return model


def make_batch() -> dict[str, torch.Tensor]:
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    ids = torch.randint(97, mask.shape, generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": mask}


def test_the_worst_change_of_a_linear_loss_has_the_direction_of_its_weights():
    x, weights = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    weights[1, 2:] = 0.0  # as of padding, which no loss depends on
    change = worst_change(x, mask, lambda x: (x * weights).sum())
    for row, length in ((0, 4), (1, 2)):
        unit = weights[row] / weights[row].square().sum().sqrt()
        torch.testing.assert_close(change[row], unit * x[row, :length].square().sum().sqrt())


def test_a_loss_that_depends_on_nothing_changes_nothing():
    assert not worst_change(torch.randn(1, 2, 3), torch.ones(1, 2), lambda x: (0 * x).sum()).any()


@pytest.mark.parametrize("causal", [True, False])
def test_no_other_change_of_that_size_is_as_bad(causal):
    model, batch = make_model(causal=causal), make_batch()
    moved = model(**batch, labels=LABELS)["clf"]
    model.is_adversarial_turn = lambda: False
    embeddings = model.transformer.embed(batch["input_ids"], None if causal else batch["attention_mask"])
    sizes = (embeddings * batch["attention_mask"].unsqueeze(-1)).norm(dim=(1, 2), keepdim=True)
    assert moved > model(**batch, labels=LABELS)["clf"] + 1e-3
    for seed in range(20):
        noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(seed))
        noise = EPSILON * sizes * noise / noise.norm(dim=(1, 2), keepdim=True)
        states = model.transformer.encode(embeddings + noise, None if causal else batch["attention_mask"])
        logits = model.classification_head.score(states, batch["attention_mask"], {})
        assert cross_entropy(logits, LABELS, reduction="sum") < moved - 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_company_and_padding_do_not_change_what_an_example_is_moved_to(causal):
    model, batch = make_model(causal=causal), make_batch()
    both = model(**batch, labels=LABELS)["clf"]
    first = model(batch["input_ids"][:1], batch["attention_mask"][:1], LABELS[:1])["clf"]
    second = model(batch["input_ids"][1:, :5], batch["attention_mask"][1:, :5], LABELS[1:])["clf"]
    torch.testing.assert_close(both, first + second)


def test_gradients_reach_the_embeddings_but_not_through_the_direction():
    """The change is a constant: equation 3 has it at the weights as they are."""
    model, batch = make_model(), make_batch()
    model(**batch, labels=LABELS)["clf"].backward()
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    assert "transformer.token_embeddings.weight" in found

    model.zero_grad()
    leaf = model.transformer.embed(batch["input_ids"]).detach().requires_grad_()
    score = model.classification_head.score
    mask, size = batch["attention_mask"], lambda x: x.square().sum((1, 2), keepdim=True).sqrt()
    cross_entropy(score(model.transformer.encode(leaf), mask, {}), LABELS, reduction="sum").backward()
    change = EPSILON * size(leaf.detach() * mask.unsqueeze(-1)) * leaf.grad / size(leaf.grad)
    model.zero_grad()
    states = model.transformer.encode(model.transformer.embed(batch["input_ids"]) + change)
    cross_entropy(score(states, mask, {}), LABELS, reduction="sum").backward()
    assert {name for name, one in model.named_parameters() if one.grad is not None} == found.keys()
    for name, parameter in model.named_parameters():
        if name in found:
            torch.testing.assert_close(parameter.grad, found[name], atol=1e-6, rtol=1e-4)


def test_adapters_train_though_the_embeddings_are_frozen():
    model, batch = make_model(tuning=Tuning("houlsby", 8, "gelu")), make_batch()
    model(**batch, labels=LABELS)["clf"].backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        name for name, parameter in model.named_parameters() if parameter.requires_grad
    } - {"output_bias"}


def test_it_is_for_training_and_for_half_of_the_batches():
    model, batch = make_model(turn=None), make_batch()
    losses = {round(model(**batch, labels=LABELS)["clf"].item(), 4) for _ in range(20)}
    assert len(losses) == 2
    model.eval()
    assert {round(model(**batch, labels=LABELS)["clf"].item(), 4) for _ in range(20)} == {min(losses)}
    assert model(**batch).shape == (2, 3)


def test_choices_are_moved_one_by_one():
    model = make_model(num_outputs=1)
    batch = {name: tensor.unsqueeze(0) for name, tensor in make_batch().items()} | {
        "n_choices": torch.tensor([2])
    }
    moved = model(**batch, labels=torch.tensor([1]))["clf"]
    model.is_adversarial_turn = lambda: False
    assert moved > model(**batch, labels=torch.tensor([1]))["clf"]
