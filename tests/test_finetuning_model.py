"""The classification head."""

import pytest
import torch

from checkpoints.finetuned import load_finetuned
from config.command_line import parse_argv
from config.constants import IGNORE_INDEX
from config.model import TransformerConfig
from finetuning_model import HeadConfig, TransformerWithClfHead, pool
from finetuning_train import FinetuningConfig, finetune
from layers.adapters import Tuning

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
    torch.testing.assert_close(pool(states, batch["attention_mask"], "cls", causal), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tuning", ["full", "houlsby", "pfeiffer"])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_last_layer_for_cls_alone_gives_the_same_logits_and_gradients(causal, pre_norm, tuning):
    model, batch = make_model(causal, pre_norm, tuning=Tuning(tuning, width=8)), random_batch()
    states = model.transformer(batch["input_ids"], None if causal else batch["attention_mask"])
    whole = model.classification_head(pool(states, batch["attention_mask"], "cls", causal))
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
