"""Time to reach the validation loss that nanoGPT has after 1.35M tokens, with the same texts, tokens, model
size and machine.

    python benchmarks/time_to_quality.py --nanogpt PATH_OF_A_CHECKOUT

Without a checkout, the peer is transformers' GPT-2 with its Trainer. The peer runs with three learning rates,
and its best loss is the target. Ours runs with three numbers of steps, and the shortest run that reaches the
target counts. All losses are over the whole validation corpus. Both times are of training alone, but ours
includes the latent semantic analysis.
"""

import json
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import (
    BATCH_SIZE,
    CACHE,
    NO_DROPOUT,
    RECIPE,
    SHAPE,
    TOKENIZER,
    TransformersPeer,
    benchmark_corpus,
    gpt2_config,
    import_file,
    parse,
    record,
    seconds,
)

from data.corpus import Corpus, CorpusBatches, EvaluationBlocks
from data.lsa import latent_semantic_analysis
from pretraining_train import PretrainingConfig, pretrain

SEQ = SHAPE["num_max_positions"]
N_STEPS = round(1.35e6 / (BATCH_SIZE * SEQ))
N_WARMUP = N_STEPS // 10
LEARNING_RATES = (5e-4, 1e-3, 2e-3)
OUR_STEPS = (75, 95, 120)


@torch.inference_mode()
def validation_loss(peer, corpus: Corpus) -> float:
    """Mean loss per token over the validation corpus, for a model with nanoGPT's interface."""
    peer.eval()
    total = n_labels = 0
    for batch in EvaluationBlocks(corpus.valid.ids, SEQ, BATCH_SIZE):
        for input_ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            real = labels >= 0
            _, loss = peer(input_ids[None, : real.sum()], labels[None, real])
            total, n_labels = total + loss.item() * real.sum().item(), n_labels + real.sum().item()
    return total / n_labels


def run_nanogpt(checkout: str, corpus: Corpus, lr: float) -> dict[str, float]:
    """nanoGPT's own train.py, in a copy of the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        data = copy / "data" / "benchmark"
        data.mkdir()
        for name, split in (("train", corpus.train), ("val", corpus.valid)):
            np.asarray(split.ids).astype("uint16").tofile(data / f"{name}.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(corpus.tokenizer)}))
        options = {
            "dataset": "benchmark",
            "device": "cpu",
            "compile": False,
            "dtype": "float32",
            "n_layer": SHAPE["num_layers"],
            "n_head": SHAPE["num_heads"],
            "n_embd": SHAPE["embed_dim"],
            "block_size": SEQ,
            "batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": 1,
            "max_iters": N_STEPS,
            "lr_decay_iters": N_STEPS,
            "warmup_iters": N_WARMUP,
            "learning_rate": lr,
            "min_lr": lr / 10,
            "eval_interval": N_STEPS,
            "eval_iters": 1,
            "log_interval": 1,
        }
        command = [sys.executable, "train.py", *(f"--{name}={value}" for name, value in options.items())]
        printed = subprocess.run(command, cwd=copy, check=True, capture_output=True, text=True).stdout
        # The first and the last iteration include an evaluation; nanoGPT also does one step too many.
        times = [float(ms) / 1000 for ms in re.findall(r"^iter \d+:.* time ([\d.]+)ms", printed, re.M)][1:-1]
        checkpoint = torch.load(copy / "out" / "ckpt.pt", weights_only=True)
        module = import_file(copy / "model.py")
        model = module.GPT(module.GPTConfig(**checkpoint["model_args"]))
        model.load_state_dict(checkpoint["model"])
        return {
            "loss": validation_loss(model, corpus),
            "seconds": sum(times) * N_STEPS / len(times),
            "lr": lr,
        }


def run_transformers(corpus: Corpus, lr: float) -> dict[str, float]:
    """transformers' GPT-2 and Trainer, with a cosine schedule."""
    import transformers

    stream = CorpusBatches(corpus.train.ids, SEQ, 1, seed=0)

    class Blocks(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return N_STEPS * BATCH_SIZE

        def __getitem__(self, index: int) -> dict:
            block = stream[index]["input_ids"][0]
            return {"input_ids": block, "labels": block}

    torch.manual_seed(0)
    peer = TransformersPeer(gpt2_config(len(corpus.tokenizer), **SHAPE))
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=N_STEPS,
        learning_rate=lr,
        warmup_steps=N_WARMUP,
        lr_scheduler_type="cosine",
        adam_beta2=0.95,
        weight_decay=0.1,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    trained = transformers.Trainer(peer.model, arguments, train_dataset=Blocks()).train()
    return {
        "loss": validation_loss(peer, corpus),
        "seconds": trained.metrics["train_runtime"],
        "lr": lr,
    }


def run_ours(corpus: Corpus, n_steps: int) -> dict[str, float]:
    """Our `pretrain` with the recipe."""
    config = PretrainingConfig(
        dataset_path="imdb",
        tokenizer=TOKENIZER,
        dataset_cache=CACHE,
        train_batch_size=BATCH_SIZE,
        n_steps=n_steps,
        output_dir=tempfile.mkdtemp(),
        **RECIPE | SHAPE | NO_DROPOUT,
    )
    metrics = pretrain(config)
    n_tokens = n_steps * BATCH_SIZE * SEQ
    embeddings = torch.randn(len(corpus.tokenizer), SHAPE["embed_dim"])
    analysis = seconds(lambda: latent_semantic_analysis(embeddings, corpus.train.ids, SEQ))
    return {
        "loss": metrics["loss"],
        "seconds": n_tokens / metrics["tokens_per_second"] + analysis,
        "seconds_of_analysis": analysis,
        "tokens": n_tokens,
    }


def main() -> None:
    """Measure and record."""
    flags = parse(__doc__)
    corpus = benchmark_corpus()
    ours = [run_ours(corpus, n_steps) for n_steps in OUR_STEPS]
    print(json.dumps(ours), flush=True)
    peers = [
        run_nanogpt(flags.nanogpt, corpus, lr) if flags.nanogpt else run_transformers(corpus, lr)
        for lr in LEARNING_RATES
    ]
    best = min(peers, key=lambda run: run["loss"])
    reached = [run["seconds"] for run in ours if run["loss"] <= best["loss"]]
    record(
        "time_to_quality_vs_peer",
        ratio=best["seconds"] / reached[0] if reached else None,  # None: not reached
        ours=ours,
        peers=peers,
        peer_tokens=N_STEPS * BATCH_SIZE * SEQ,
        peer="nanoGPT, train.py" if flags.nanogpt else "transformers' GPT-2 and Trainer",
    )


if __name__ == "__main__":
    main()
