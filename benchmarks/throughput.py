"""Training throughput compared with a peer and with bare matrix products; evaluation compared with training.

    python benchmarks/throughput.py --nanogpt PATH_OF_A_CHECKOUT

Both sides train a model of the same shape (4 layers × 256, vocabulary 8,192, context 256, batch 16) with
AdamW on the same tokens, taking turns within one process. Operations are counted by the formula in
`common.operations_per_token`.
"""

import itertools
import statistics
from collections.abc import Callable

import torch
from common import (
    BATCH_SIZE,
    LM_OBJECTIVE,
    NO_DROPOUT,
    SHAPE,
    benchmark_corpus,
    make_model,
    matmul_rate,
    median_ratio,
    operations_per_token,
    parse,
    peer_model,
    record,
    seconds,
    side_by_side,
    training_engine,
)
from torch import nn

from config.model import TransformerConfig
from data.corpus import Corpus, CorpusBatches
from pretraining_model import TransformerWithLMHead
from pretraining_train import PretrainingConfig
from utils import Batch

N_STEPS, ROUNDS = 4, 7
N_TOKENS = BATCH_SIZE * SHAPE["num_max_positions"]


def our_side(
    stream: CorpusBatches, num_embeddings: int, **flags
) -> tuple[TransformerWithLMHead, Callable[[], object]]:
    """Our model, and a function that trains it on the first steps of the stream."""
    flags |= {"train_batch_size": BATCH_SIZE, "device": "cpu", "precision": "fp32"}
    config = PretrainingConfig(**SHAPE | NO_DROPOUT | flags)
    model = make_model(config, num_embeddings)
    engine = training_engine(model, config, LM_OBJECTIVE, stream, N_STEPS)
    batches = [stream[step] for step in range(N_STEPS)]
    return model, lambda: engine.run(itertools.cycle(batches), max_epochs=1, epoch_length=N_STEPS)


def train_peer(peer: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    """nanoGPT's loop: forward, backward, clip, step."""
    peer.train()
    for batch in batches:
        _, loss = peer(batch["input_ids"], batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()


@torch.inference_mode()
def evaluate(model: nn.Module, batches: list[Batch]) -> None:
    """Forward passes alone."""
    model.eval()
    for batch in batches:
        model(**batch)


def race(corpus: Corpus, nanogpt: str | None) -> tuple[dict[str, list[float]], TransformerConfig, str]:
    """Tokens per second of each side, round by round (operations per second for `matmul`); also our model's
    shape and the peer's name.
    """
    stream = CorpusBatches(corpus.train.ids, SHAPE["num_max_positions"], BATCH_SIZE, seed=0)
    batches, num_embeddings = [stream[step] for step in range(N_STEPS)], len(corpus.tokenizer)
    model, train = our_side(stream, num_embeddings)
    _, train_sampled = our_side(stream, num_embeddings, sampled_softmax=512)
    _, train_muon = our_side(stream, num_embeddings, sampled_softmax=512, optimizer="muon")
    peer_name, peer, optimizer = peer_model(nanogpt, num_embeddings, 1e-3, torch.device("cpu"))
    rates = side_by_side(
        ROUNDS,
        matmul=lambda: matmul_rate(model.config, N_TOKENS),
        ours=lambda: N_STEPS * N_TOKENS / seconds(train),
        peer=lambda: N_STEPS * N_TOKENS / seconds(lambda: train_peer(peer, optimizer, batches)),
        sampled=lambda: N_STEPS * N_TOKENS / seconds(train_sampled),
        muon=lambda: N_STEPS * N_TOKENS / seconds(train_muon),
        evaluation=lambda: N_STEPS * N_TOKENS / seconds(lambda: evaluate(model, batches)),
    )
    return rates, model.config, peer_name


def main() -> None:
    """Measure and record."""
    flags = parse(__doc__)
    rates, config, peer_name = race(benchmark_corpus(), flags.nanogpt)
    per_trained_token = 3 * operations_per_token(config, SHAPE["num_max_positions"])
    medians = {name: round(statistics.median(values)) for name, values in rates.items() if name != "matmul"}
    record(
        "throughput_vs_matmul",
        ratio=median_ratio([per_trained_token * rate for rate in rates["ours"]], rates["matmul"]),
        ratio_of_peer=median_ratio([per_trained_token * rate for rate in rates["peer"]], rates["matmul"]),
        matmul_gflops=statistics.median(rates["matmul"]) / 1e9,
        operations_per_trained_token=per_trained_token,
        tokens_per_second=medians["ours"],
    )
    record(
        "throughput_vs_peer",
        ratio=median_ratio(rates["ours"], rates["peer"]),
        ratio_with_sampled_softmax=median_ratio(rates["sampled"], rates["peer"]),
        ratio_with_sampled_softmax_and_muon=median_ratio(rates["muon"], rates["peer"]),
        tokens_per_second=medians,
        peer=peer_name,
    )
    record(
        "evaluation_vs_training",
        ratio=median_ratio(rates["evaluation"], rates["ours"]),
        tokens_per_second=medians,
    )


if __name__ == "__main__":
    main()
