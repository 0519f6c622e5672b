"""Pretraining on a GPU: losses in each precision, and throughput compared with nanoGPT's loop."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from common import (
    LM_OBJECTIVE,
    NO_DROPOUT,
    make_model,
    operations_per_token,
    peer_model,
    training_engine,
)
from gpu_device import halve_rows_to_fit, seconds_on, utilization
from gpu_plan import Plan, Pretraining
from gpu_race import Work, attempt, race
from ignite.engine import Events
from torch import Tensor

from config.model import transformer_config
from data.corpus import CorpusBatches
from pretraining_train import PretrainingConfig
from utils import start_run

TOLERANCE = 0.01  # the largest relative difference from the fp32 losses that counts as agreement
# An estimate: WikiText-103's training split has 103,227,021 words (Merity et al. 2016, table 1); we assume
# 1.16 WordPieces of bert-base-cased per word, including the [SEP] after every line.
TOKENS_PER_EPOCH = 120_000_000


def random_tokens(num_embeddings: int, n_tokens: int) -> np.ndarray:
    """Token ids [n_tokens] with the frequencies of words in text (Zipf's law), so that there is something to
    learn.
    """
    edges = np.cumsum(1 / np.arange(1, num_embeddings + 1))
    return np.searchsorted(edges, edges[-1] * np.random.default_rng(0).random(n_tokens))


def random_batches(model: Pretraining, config: PretrainingConfig, n_steps: int) -> CorpusBatches:
    """Random tokens, enough for that many steps and a few more."""
    n_tokens = (n_steps + 2) * config.train_batch_size * config.num_max_positions
    ids = random_tokens(model.num_embeddings, n_tokens)
    return CorpusBatches(ids, config.num_max_positions, config.train_batch_size, config.seed)


def our_pretraining(
    model: Pretraining, n_rows: int, n_steps: int, device: torch.device, **flags
) -> Callable[[], list[float]]:
    """A function that trains for some steps as pretraining_train.py does, and returns their losses."""
    config = PretrainingConfig(**model.flags | {"train_batch_size": n_rows, "device": str(device)} | flags)
    batches = random_batches(model, config, n_steps)
    engine = training_engine(make_model(config, model.num_embeddings), config, LM_OBJECTIVE, batches, n_steps)
    losses: list[Tensor] = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output["loss"])
    )

    def train() -> list[float]:
        losses.clear()
        engine.run(batches.starting_at(0), max_epochs=1, epoch_length=n_steps)
        return torch.stack(losses).tolist()

    return train


def peer_pretraining(
    model: Pretraining, n_rows: int, n_steps: int, device: torch.device, nanogpt: str | None, compile: bool
) -> Callable[[], float]:
    """The same in the loop of nanoGPT's train.py: bf16 autocast, fused AdamW, the next batch prefetched."""
    config = PretrainingConfig(**model.flags, train_batch_size=n_rows, device=str(device), precision="bf16")
    run, batches = start_run(config), random_batches(model, config, n_steps)
    sizes = ("embed_dim", "hidden_dim", "num_layers", "num_heads", "num_max_positions", "dropout")
    shape = {name: getattr(config, name) for name in sizes}
    _, peer, optimizer = peer_model(nanogpt, model.num_embeddings, config.lr, run.device, **shape)
    forward = torch.compile(peer) if compile else peer

    def train() -> float:
        peer.train()
        stream = map(run.to_device, batches.starting_at(0))
        batch = next(stream)
        for _ in range(n_steps):
            with run.autocast():
                _, loss = forward(batch["input_ids"], batch["labels"])
            batch = next(stream)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return train


def measure_losses(model: Pretraining, n_steps: int, device: torch.device, compile: bool) -> dict:
    """The losses of the first steps in each precision, from the same weights on the same batches.

    Without dropout, whose random numbers differ from kernel to kernel.
    """
    variants: dict[str, dict] = {"fp32": {"precision": "fp32"}, "bf16": {"precision": "bf16"}}
    if compile:
        variants["bf16_compiled"] = {"precision": "bf16", "compile": True}
    flags = NO_DROPOUT | {"lr": 1e-3, "n_warmup": min(10, n_steps)}

    def losses(n_rows: int) -> dict:
        def train(options: dict) -> list[float]:
            return our_pretraining(model, n_rows, n_steps, device, **flags | options)()

        notes: list[str] = []
        curves = {name: attempt(name, partial(train, options), notes) for name, options in variants.items()}
        return curves | {"notes": notes}

    results = halve_rows_to_fit(model.n_rows, losses, device)
    difference = largest_difference(*(results[name] for name in variants if results[name]))
    return results | {
        "largest_relative_difference": difference,
        "tolerance": TOLERANCE,
        "agree": difference <= TOLERANCE,
    }


def largest_difference(expected: list[float], *others: list[float]) -> float:
    """The largest relative difference from the expected values; NaN if any value is NaN."""
    return float(np.max(np.abs(np.array(others) / np.array(expected) - 1)))


def measure_pretraining(
    model: Pretraining,
    plan: Plan,
    device: torch.device,
    nanogpt: str | None,
    peak: float | None,
    matmul: float | None,
) -> dict:
    """Tokens per second of our side and of the peer, eager and compiled; also as fractions of the card's
    peak rate and of its rate on bare matrix products.
    """
    config = transformer_config(PretrainingConfig(**model.flags), model.num_embeddings)
    operations = operations_per_token(config, config.num_max_positions)

    def rates(n_rows: int) -> dict:
        def side(build: Callable[..., Callable[[], object]], **options) -> Work:
            return partial(seconds_on, device, build(model, n_rows, plan.n_steps, device, **options))

        sides = {
            "ours": partial(side, our_pretraining, precision="bf16"),
            "peer": partial(side, peer_pretraining, nanogpt=nanogpt, compile=False),
        }
        if plan.compile:
            sides |= {
                "ours_compiled": partial(side, our_pretraining, precision="bf16", compile=True),
                "peer_compiled": partial(side, peer_pretraining, nanogpt=nanogpt, compile=True),
            }
        n_tokens = plan.n_steps * n_rows * config.num_max_positions
        return race(sides, plan.n_rounds, n_tokens, "tokens_per_second", device)

    results = halve_rows_to_fit(model.n_rows, rates, device)
    for side in filter(None, results["sides"].values()):
        side["peak_fraction"] = utilization(side["tokens_per_second"], operations, peak)
        side["matmul_fraction"] = utilization(side["tokens_per_second"], operations, matmul)
    peer = "nanoGPT" if nanogpt else "transformers' GPT2LMHeadModel"
    return {"shape": asdict(config), "operations_per_trained_token": 3 * operations, "peer": peer} | results


def tutorial_hours(tutorial: dict) -> dict:
    """How long the tutorial's whole pretraining run would take on this card, from the measured rates."""
    n_epochs = PretrainingConfig().n_epochs
    sides = {name: side for name, side in tutorial["sides"].items() if side and name.startswith("ours")}
    n_tokens = n_epochs * TOKENS_PER_EPOCH
    return {
        "n_epochs": n_epochs,
        "tokens_per_epoch": TOKENS_PER_EPOCH,
        "is_estimate": True,
        "hours_on_one_card": {
            name: n_tokens / side["tokens_per_second"] / 3600 for name, side in sides.items()
        },
    }
