"""Optimizers, schedule, and the optimizer step."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from config.groups import OptimizationArguments
from config.model import TransformerConfig
from finetuning_model import HeadConfig, TransformerWithClfHead
from finetuning_train import FinetuningConfig, finetuning_objective
from layers.adapters import Tuning
from pretraining_model import TransformerLayer, TransformerWithLMHead
from training.optimizers import Muon, build_optimizers, learning_rate_factor
from training.step import LoopOptions, Objective, TrainingStep, split_batch
from utils import Run


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_muon_takes_the_steps_of_torchs_muon(shape):
    """torch's iterates in bfloat16, ours in float32: the same up to that precision."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([{"params": [ours]}], lr=0.1, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1),
    ]
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved, difference = (theirs - start).norm(), (ours - theirs).norm()
    assert difference < 0.03 * moved


def test_muon_orthogonalizes_stacked_matrices_one_by_one():
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 10) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    singular_values = torch.linalg.svdvals(Muon.orthogonalize(matrices, 5))
    assert ((singular_values > 0.4) & (singular_values < 1.4)).all()
    alone = torch.cat([Muon.orthogonalize(one[None], 5) for one in matrices])
    torch.testing.assert_close(Muon.orthogonalize(matrices, 5), alone)


def test_muon_treats_queries_keys_and_values_apart():
    torch.manual_seed(0)
    together = nn.Parameter(torch.zeros(12, 4))
    apart = [nn.Parameter(torch.zeros(4, 4)) for _ in range(3)]
    together.grad = torch.randn(12, 4)
    for parameter, gradient in zip(apart, together.grad.chunk(3), strict=True):
        parameter.grad = gradient.clone()
    Muon([{"params": [together], "n_blocks": 3}], lr=0.1).step()
    Muon([{"params": apart}], lr=0.1).step()
    torch.testing.assert_close(together, torch.cat(list(apart)))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(optimizer):
    model = TransformerWithLMHead(TransformerConfig(50, 16, 32, 8, 2, 2))
    optimizers = build_optimizers(model, OptimizationArguments(optimizer=optimizer, weight_decay=0.1))
    groups = [group for one in optimizers for group in one.param_groups]
    assert sorted(id(one) for group in groups for one in group["params"]) == sorted(
        map(id, model.parameters())
    )
    for group in groups:
        assert {one.dim() >= 2 for one in group["params"]} == {group["weight_decay"] > 0}
    in_muon = {id(one) for group in optimizers[-1].param_groups for one in group["params"]}
    hidden = {id(one) for name, one in model.named_parameters() if "layers" in name and one.dim() == 2}
    assert (in_muon == hidden) is (optimizer == "muon")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_deeper_layers_learn_more_slowly(optimizer):
    model = TransformerWithClfHead(TransformerConfig(50, 16, 32, 8, 2, 2), HeadConfig(3))
    optimizers = build_optimizers(
        model, OptimizationArguments(optimizer=optimizer, lr=0.1, muon_lr=0.1, layer_lr_decay=0.5)
    )
    rates = {
        id(one): group["lr"] for each in optimizers for group in each.param_groups for one in group["params"]
    }
    expected = {
        "classification_head": 0.1,
        "final_norm": 0.1,
        "layers.1": 0.05,
        "layers.0": 0.025,
        "embeddings": 0.0125,
    }
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(
            next(rate for part, rate in expected.items() if part in name)
        ), name


def test_schedule_warms_up_and_decays_to_zero():
    factors = [learning_rate_factor(step, 10, 110, "cosine") for step in range(111)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.5) and factors[110] == pytest.approx(0)
    assert all(later <= earlier for earlier, later in zip(factors[10:], factors[11:], strict=False))
    assert learning_rate_factor(35, 10, 110, "linear") == pytest.approx(0.75)
    assert learning_rate_factor(35, 10, 110, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_split_batch_keeps_rows_together():
    batch = {"input_ids": torch.arange(12).view(6, 2), "labels": torch.arange(6)}
    parts = split_batch(batch, 4)
    assert [len(part["labels"]) for part in parts] == [2, 4]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), batch["input_ids"])


def test_parts_of_similar_length_leave_hardly_any_padding():
    lengths = torch.tensor([3, 4, 5, 9, 10, 20])
    mask = (torch.arange(20) < lengths[:, None]).long()
    batch = {
        "input_ids": torch.arange(120).view(6, 20) * mask,
        "attention_mask": mask,
        "labels": torch.arange(6),
    }
    parts = split_batch(batch, max_rows=3, max_tokens=22)
    assert [list(part["input_ids"].shape) for part in parts] == [[3, 5], [2, 10], [1, 20]]
    assert torch.cat([part["labels"] for part in parts]).tolist() == list(range(6))
    assert sum(part["input_ids"].sum() for part in parts) == batch["input_ids"].sum()
    assert len(split_batch(batch, max_rows=6, max_tokens=1)) == 6, "a row longer than a part is a part"


@pytest.mark.parametrize("causal", [True, False])
def test_a_step_does_not_depend_on_its_parts(causal, tmp_path):
    lengths = torch.tensor([3, 4, 5, 9, 10, 20])
    mask = (torch.arange(20) < lengths[:, None]).long()
    input_ids = torch.randint(50, mask.shape, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": torch.arange(6) % 3}
    objective = Objective(
        lambda model, part: model(**part), lambda whole: {"clf": len(whole["labels"])}, {"clf": 1.0}
    )
    weights = []
    for part_tokens in (None, 16):
        torch.manual_seed(0)
        model = TransformerWithClfHead(
            TransformerConfig(50, 16, 32, 24, 2, 2, 0.0, 0.0, causal=causal), HeadConfig(3, "cls_mean_max")
        )
        run = Run(None, tmp_path, torch.device("cpu"), torch.float32, 0, 1)
        optimizers = build_optimizers(model, OptimizationArguments(lr=0.01))
        options = LoopOptions(3, train_batch_size=6, part_tokens=part_tokens, max_norm=0.25)
        trainer = Engine(TrainingStep(model, optimizers, objective, run, options))
        trainer.run([batch] * 3)
        weights.append(torch.cat([one.detach().flatten() for one in model.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-4)


def lengths_that_change(causal: bool, n_steps: int = 6) -> list[dict]:
    """Batches of other lengths each, with labels for both losses."""
    generator, batches = torch.Generator().manual_seed(0), []
    for _ in range(n_steps):
        lengths = torch.randint(2, 24, (12,), generator=generator).sort().values
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        input_ids = torch.randint(50, mask.shape, generator=generator) * mask
        lm_labels = input_ids.masked_fill((mask == 0) | (not causal) & (input_ids % 7 > 0), -100)
        batches.append(
            {
                "input_ids": input_ids,
                "attention_mask": mask,
                "labels": torch.arange(12) % 3,
                "lm_labels": lm_labels,
            }
        )
    return batches


def train(
    batches: list[dict], folder: Path, causal: bool, wrap=lambda model: model, tuning: str = "full",
    dropout: float = 0.1, **options,
) -> tuple[list[float], torch.Tensor]:  # fmt: skip
    """The losses of all steps and the weights after them."""
    torch.manual_seed(0)
    config = FinetuningConfig(train_batch_size=12, lr=0.01, lm_loss_coef=0.5, **options)
    head = HeadConfig(3, tuning=Tuning(tuning, width=4))
    shape = TransformerConfig(50, 16, 32, 24, 2, 2, dropout, dropout, causal=causal)
    model = TransformerWithClfHead(shape, head)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    run = Run(config, folder, torch.device("cpu"), torch.float32, 0, 1)
    options = LoopOptions.from_flags(config, batches, part_tokens=64)
    step = TrainingStep(
        wrap(model), build_optimizers(model, config), finetuning_objective(config), run, options
    )
    trainer, losses = Engine(step), []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"].item())
    )
    trainer.run(batches)
    return losses, torch.cat([one.detach().flatten() for one in model.parameters()])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tuning", ["full", "pfeiffer"])
def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(
    causal, tuning, tmp_path, monkeypatch
):
    calls, forward = [], TransformerLayer.forward
    monkeypatch.setattr(TransformerLayer, "forward", lambda *inputs: calls.append(1) or forward(*inputs))
    results = []
    for gradient_checkpointing in (False, True):
        results.append(
            train(
                lengths_that_change(causal),
                tmp_path,
                causal,
                tuning=tuning,
                gradient_checkpointing=gradient_checkpointing,
            )
        )
        results[-1] += (len(calls),)
        calls.clear()
    (losses, weights, n_calls), (losses_again, weights_again, n_calls_again) = results
    assert n_calls_again == 2 * n_calls
    torch.testing.assert_close(losses, losses_again)
    torch.testing.assert_close(weights, weights_again)


@pytest.mark.parametrize("causal", [True, False])
def test_a_compiled_model_is_not_compiled_anew_for_each_length(causal, tmp_path):
    """Dynamo's part of --compile; the whole of it is in test_slow.py. A masked language model waits for its
    labels, which breaks the graph. Compiled models draw other random numbers for dropout.
    """
    from torch._dynamo.testing import CompileCounter

    batches, counter = lengths_that_change(causal), CompileCounter()
    eager = train(batches, tmp_path, causal, dropout=0)
    compiled = train(
        batches, tmp_path, causal, lambda model: torch.compile(model, backend=counter), dropout=0
    )
    assert counter.frame_count <= (3 if causal else 12)
    torch.testing.assert_close(compiled[0], eager[0])
    torch.testing.assert_close(compiled[1], eager[1])


def test_if_one_optimizer_finds_an_overflow_none_steps(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.vector, self.matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.eye(4))

        def forward(self, input_ids):
            return (self.vector * input_ids).sum() + self.matrix.sum()

    model = Model()
    optimizers = [torch.optim.AdamW([model.vector], lr=0.1), Muon([{"params": [model.matrix]}], lr=0.1)]
    objective = Objective(
        lambda wrapped, batch: {"loss": wrapped(batch["input_ids"])}, lambda batch: {"loss": 1}, {"loss": 1.0}
    )
    run = Run(None, tmp_path, torch.device("cpu"), torch.float16, 0, 1)
    trainer = Engine(TrainingStep(model, optimizers, objective, run, LoopOptions(2, train_batch_size=1)))
    too_much, enough = ({"input_ids": torch.full((1, 4), value)} for value in (1e36, 1.0))
    trainer.run([too_much])
    assert torch.equal(model.vector, torch.ones(4)) and torch.equal(model.matrix, torch.eye(4))
    trainer.run([enough], max_epochs=1)
    assert all(one.isfinite().all() for one in model.parameters())
    assert not torch.equal(model.vector, torch.ones(4)) and not torch.equal(model.matrix, torch.eye(4))


def test_gradients_are_synchronised_only_in_the_last_part_of_a_step():
    """What DistributedDataParallel would see in each of two processes."""

    class Wrapped(nn.Linear):
        is_synchronised = True

        @contextlib.contextmanager
        def no_sync(self):
            self.is_synchronised = False
            yield
            self.is_synchronised = True

        def forward(self, input_ids):
            calls.append(self.is_synchronised)
            return super().forward(input_ids)

    model, calls = Wrapped(2, 1), []
    run = Run(None, Path(), torch.device("cpu"), torch.float32, rank=0, world_size=2)
    objective = Objective(
        lambda wrapped, batch: {"loss": wrapped(batch["input_ids"]).sum()},
        lambda batch: {"loss": 1},
        {"loss": 1.0},
    )
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    trainer = Engine(TrainingStep(model, optimizers, objective, run, LoopOptions(1, train_batch_size=2)))
    trainer.run([{"input_ids": torch.ones(6, 2)}], max_epochs=1)
    assert calls == [False, False, True]
