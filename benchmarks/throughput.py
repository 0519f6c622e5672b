"""Training tokens per second beside a peer and beside bare matrix products; evaluation beside training.

    python benchmarks/throughput.py --nanogpt PATH_OF_A_CHECKOUT

Both sides train the same shape (4 layers × 256, vocabulary 8,192, context 256, batch 16) with AdamW on the
same tokens, in turns within one process. The operations counted are those of the formula in
`common.operations_per_token`.
"""

import itertools
import statistics

import torch
from common import (
    BATCH_SIZE,
    SHAPE,
    benchmark_corpus,
    matmul_rate,
    median_ratio,
    operations_per_token,
    our_side,
    parse,
    peer_model,
    record,
    seconds,
    side_by_side,
)

from data.corpus import CorpusBatches

N_STEPS, ROUNDS = 4, 7
N_TOKENS = BATCH_SIZE * SHAPE["num_max_positions"]


def main() -> None:
    """Measure and record."""
    flags = parse(__doc__)
    corpus = benchmark_corpus()
    stream = CorpusBatches(corpus.train.ids, SHAPE["num_max_positions"], BATCH_SIZE, seed=0)
    batches = [stream[step] for step in range(N_STEPS)]
    model, trainer, evaluate = our_side(corpus)
    _, sampled, _ = our_side(corpus, sampled_softmax=512)
    _, muon, _ = our_side(corpus, sampled_softmax=512, optimizer="muon")
    peer_name, peer = peer_model(flags.nanogpt, len(corpus.tokenizer))
    optimizer = peer.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")

    def run_ours(engine) -> float:
        return (
            N_STEPS
            * N_TOKENS
            / seconds(lambda: engine.run(itertools.cycle(batches), max_epochs=1, epoch_length=N_STEPS))
        )

    def run_peer() -> float:  # nanoGPT's loop: forward, backward, clip, step
        def steps() -> None:
            peer.train()
            for batch in batches:
                _, loss = peer(batch["input_ids"], batch["labels"])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                loss.item()

        return N_STEPS * N_TOKENS / seconds(steps)

    def run_evaluation() -> float:
        model.eval()
        with torch.inference_mode():
            return N_STEPS * N_TOKENS / seconds(lambda: [model(**batch) for batch in batches])

    rates = side_by_side(
        ROUNDS, matmul=lambda: matmul_rate(model.config, N_TOKENS), ours=lambda: run_ours(trainer), peer=run_peer,
        sampled=lambda: run_ours(sampled), muon=lambda: run_ours(muon), evaluation=run_evaluation,
    )  # fmt: skip
    per_token = operations_per_token(model.config, SHAPE["num_max_positions"])
    tokens_per_second = {
        name: round(statistics.median(values)) for name, values in rates.items() if name != "matmul"
    }
    record(
        "throughput_vs_matmul",
        ratio=median_ratio([3 * per_token * rate for rate in rates["ours"]], rates["matmul"]),
        ratio_of_peer=median_ratio([3 * per_token * rate for rate in rates["peer"]], rates["matmul"]),
        matmul_gflops=statistics.median(rates["matmul"]) / 1e9,
        operations_per_trained_token=3 * per_token,
        tokens_per_second=tokens_per_second["ours"],
    )
    record(
        "throughput_vs_peer",
        ratio=median_ratio(rates["ours"], rates["peer"]),
        ratio_with_sampled_softmax=median_ratio(rates["sampled"], rates["peer"]),
        ratio_with_sampled_softmax_and_muon=median_ratio(rates["muon"], rates["peer"]),
        tokens_per_second=tokens_per_second,
        peer=peer_name,
    )
    record(
        "evaluation_vs_training",
        ratio=median_ratio(rates["evaluation"], rates["ours"]),
        tokens_per_second=tokens_per_second,
    )


if __name__ == "__main__":
    main()
