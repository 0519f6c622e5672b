"""What the benchmarks share: corpus, model shape, both sides of a comparison, timing, and results.json."""

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from checkpoints.files import write_json
from config.groups import OptimizationArguments
from config.model import TransformerConfig, transformer_config
from data.corpus import Corpus, load_corpus
from finetuning_model import TransformerWithClfHead
from pretraining_model import TransformerWithLMHead
from pretraining_train import PretrainingConfig, lm_counts, lm_losses, pretrain
from training.loop import attach_schedule
from training.optimizers import build_optimizers
from training.step import Batches, LoopOptions, Objective, TrainingStep, wrap_model
from utils import start_run

RESULTS = ROOT / "benchmarks" / "results.json"
CACHE = str(ROOT / "dataset_cache")
TOKENIZER = "train:8192"
SHAPE = {"embed_dim": 256, "hidden_dim": 1024, "num_layers": 4, "num_heads": 8, "num_max_positions": 256}
NO_DROPOUT: dict = {"dropout": 0.0, "attention_dropout": 0.0}
BATCH_SIZE = 16
# The fastest-learning settings that docs/performance.md found at these sizes.
RECIPE: dict = {
    "initial_embeddings": "lsa",
    "residual_init": "zero",
    "output_bias": True,
    "activation": "gelu",
    "optimizer": "muon",
    "lr": 8e-3,
    "muon_lr": 0.02,
    "muon_momentum": 0.85,
    "schedule": "linear",
    "n_warmup": 5,
    "max_norm": 1.0,
    "sampled_softmax": 2048,
}
LM_OBJECTIVE = Objective(lm_losses, lm_counts, {"lm": 1.0})


def parse(description: str | None) -> argparse.Namespace:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt",
        default=os.environ.get("NANOGPT"),
        help="a nanoGPT checkout to compare with; without one, the peer is transformers",
    )
    return parser.parse_args()


def record(name: str, **figures) -> None:
    """Save a benchmark's figures in results.json and print them."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    figures |= {"command": command(), "machine": machine()}
    results[name] = figures
    write_json(RESULTS, dict(sorted(results.items())))
    print(f"{name}: {json.dumps(figures, indent=2)}", flush=True)


def command() -> str:
    """The command that started this benchmark, without where this machine keeps things."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def machine() -> str:
    """Processor, number of threads, and torch version."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(rounds: int, **measurements: Callable[[], float]) -> dict[str, list[float]]:
    """Take turns: call every function once per round, after a warm-up round that does not count.

    When the machine's speed drifts, it drifts for all of them.
    """
    results: dict[str, list[float]] = {name: [] for name in measurements}
    for number in range(rounds + 1):
        for name, measure in measurements.items():
            value = measure()
            if number:
                results[name].append(value)
    return results


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


# ------------------------------------------------------------------------------------------------- operations


def operations_per_token(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's forward pass; only matrix products count, and a multiply-add
    is two operations.

    2 L (4 d² + 2 d h) for the weight matrices of the layers, 2 L d (T + 1) for causal attention (scores and
    weighted sum, 2 d each for the (T + 1) / 2 positions that a token attends to on average), 2 d V for the
    language-modeling head. Training takes three times as many: each product has two in the backward pass.
    """
    d, h, n_layers = config.embed_dim, config.hidden_dim, config.num_layers
    return (
        2 * n_layers * (4 * d * d + 2 * d * h)
        + 2 * n_layers * d * (seq_len + 1)
        + 2 * d * config.num_embeddings
    )


def matmul_rate(config: TransformerConfig, n_tokens: int) -> float:
    """Operations per second of bare matrix products with the shapes of a training step: for each weight
    matrix, the forward product and both backward products.
    """
    d, h = config.embed_dim, config.hidden_dim
    shapes = [(d, 3 * d), (d, d), (d, h), (h, d)] * config.num_layers + [(d, config.num_embeddings)]
    operations = elapsed = 0.0
    for n_in, n_out in shapes:
        x, weight, grad = torch.randn(n_tokens, n_in), torch.randn(n_out, n_in), torch.randn(n_tokens, n_out)
        elapsed += seconds(partial(_products_of_linear_layer, x, weight, grad))
        operations += 3 * 2 * n_tokens * n_in * n_out
    return operations / elapsed


def _products_of_linear_layer(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input, gradient of the weight."""
    return x @ weight.T, grad @ weight, grad.T @ x


# --------------------------------------------------------------------------------- both sides of a comparison


def benchmark_corpus() -> Corpus:
    """IMDb reviews without their labels."""
    return load_corpus("imdb", TOKENIZER, CACHE)


def make_model(config: PretrainingConfig, num_embeddings: int) -> TransformerWithLMHead:
    """The model that the flags describe, with the same initial weights in every call."""
    torch.manual_seed(0)
    return TransformerWithLMHead(transformer_config(config, num_embeddings))


def training_engine(
    model: TransformerWithLMHead | TransformerWithClfHead,
    config: OptimizationArguments,
    objective: Objective,
    batches: Batches,
    n_steps: int,
) -> Engine:
    """The engine that trains a model as our scripts do, without evaluations, checkpoints and logs."""
    run = start_run(config)
    wrapped = wrap_model(model, run)
    optimizers = build_optimizers(model, config)
    options = LoopOptions.from_flags(config, batches, n_steps=n_steps)
    engine = Engine(TrainingStep(wrapped, optimizers, objective, run, options))
    attach_schedule(engine, optimizers, options)
    return engine


def peer_model(
    nanogpt: str | None, num_embeddings: int, lr: float, device: torch.device, **shape
) -> tuple[str, nn.Module, torch.optim.Optimizer]:
    """Name, model and AdamW of the peer, nanoGPT or transformers, in the benchmark's shape.

    Both models return (logits, loss). `shape` overrides SHAPE.
    """
    torch.manual_seed(0)
    if not nanogpt:
        peer = TransformersPeer(gpt2_config(num_embeddings, **shape)).to(device)
        is_cuda = device.type == "cuda"
        optimizer = torch.optim.AdamW(peer.parameters(), lr, (0.9, 0.95), weight_decay=0.1, fused=is_cuda)
        return "transformers' GPT2LMHeadModel", peer, optimizer
    shape = SHAPE | {"dropout": 0.0} | shape
    embed_dim, hidden_dim = shape["embed_dim"], shape["hidden_dim"]
    module = import_file(Path(nanogpt) / "model.py")
    config = module.GPTConfig(
        block_size=shape["num_max_positions"],
        vocab_size=num_embeddings,
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        n_embd=embed_dim,
        dropout=shape["dropout"],
        bias=False,
    )
    gpt = module.GPT(config)
    for block in gpt.transformer.h if hidden_dim != 4 * embed_dim else ():  # nanoGPT knows no other width
        block.mlp.c_fc = nn.Linear(embed_dim, hidden_dim, bias=False)
        block.mlp.c_proj = nn.Linear(hidden_dim, embed_dim, bias=False)
    gpt.to(device)
    return "nanoGPT", gpt, gpt.configure_optimizers(0.1, lr, (0.9, 0.95), device.type)


def gpt2_config(num_embeddings: int, **shape):
    """The benchmark's shape as a transformers.GPT2Config; `shape` overrides SHAPE."""
    import transformers

    shape = SHAPE | {"dropout": 0.0} | shape
    return transformers.GPT2Config(
        vocab_size=num_embeddings,
        n_positions=shape["num_max_positions"],
        n_embd=shape["embed_dim"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        n_inner=shape["hidden_dim"],
        resid_pdrop=shape["dropout"],
        embd_pdrop=shape["dropout"],
        attn_pdrop=shape["dropout"],
    )


def gpt2_weights(model: TransformerWithLMHead) -> dict[str, Tensor]:
    """Our weights under the names of transformers' GPT2Model, whose Conv1D stores matrices transposed."""
    ours = model.transformer.state_dict()
    names = {
        "attention_norm": "ln_1",
        "attention.query_key_value": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward.expansion": "mlp.c_fc",
        "feed_forward.projection": "mlp.c_proj",
    }
    theirs = {"wte.weight": ours["token_embeddings.weight"], "wpe.weight": ours["position_embeddings.weight"]}
    for index in range(model.config.num_layers):
        for our_name, their_name in names.items():
            weight = ours[f"layers.{index}.{our_name}.weight"]
            theirs[f"h.{index}.{their_name}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
            theirs[f"h.{index}.{their_name}.bias"] = ours[f"layers.{index}.{our_name}.bias"]
    return theirs | {"ln_f.weight": ours["final_norm.weight"], "ln_f.bias": ours["final_norm.bias"]}


def pretrained(**changes) -> Path:
    """The folder of a short pretraining run in the benchmark's shape; the first call does the training."""
    name = "-".join(f"{key}_{value}" for key, value in changes.items()) or "default"
    folder = ROOT / "runs" / "benchmarks" / f"pretrained-{name}"
    if not (folder / "metrics.json").is_file():
        options = RECIPE | SHAPE | NO_DROPOUT | {"train_batch_size": BATCH_SIZE, "n_steps": 60} | changes
        config = PretrainingConfig(
            dataset_path="imdb",
            tokenizer=TOKENIZER,
            dataset_cache=CACHE,
            output_dir=str(folder),
            overwrite=folder.exists(),
            **options,
        )
        pretrain(config)
    return folder


class TransformersPeer(nn.Module):
    """transformers' GPT-2 with nanoGPT's interface."""

    def __init__(self, config):
        import transformers

        super().__init__()
        self.model = transformers.GPT2LMHeadModel(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(input_ids).logits
        return logits, F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def import_file(path: Path) -> ModuleType:
    """Import a Python file that lies outside of the project."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
