"""What the benchmarks share: corpus, shape, peers, clocks, and the file of results."""

import argparse
import importlib.util
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from checkpoints.files import write_json
from config.model import TransformerConfig, transformer_config
from data.corpus import Corpus, load_corpus
from pretraining_model import TransformerWithLMHead
from pretraining_train import PretrainingConfig, create_evaluation, lm_counts, lm_losses, pretrain
from training.optimizers import build_optimizers
from training.step import LoopOptions, Objective, TrainingStep, wrap_model
from utils import Run

RESULTS = ROOT / "benchmarks" / "results.json"
CACHE = str(ROOT / "dataset_cache")
TOKENIZER = "train:8192"
SHAPE = {"embed_dim": 256, "hidden_dim": 1024, "num_layers": 4, "num_heads": 8, "num_max_positions": 256}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
BATCH_SIZE = 16
# What docs/performance.md found to learn fastest in these sizes.
RECIPE = {
    "initial_embeddings": "lsa", "residual_init": "zero", "output_bias": True, "activation": "gelu", "optimizer": "muon", "lr": 8e-3,
    "muon_lr": 0.02, "muon_momentum": 0.85, "schedule": "linear", "n_warmup": 5, "max_norm": 1.0, "sampled_softmax": 2048,
}  # fmt: skip


def parse(description: str) -> argparse.Namespace:
    """The flags of a benchmark."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt",
        default=os.environ.get("NANOGPT"),
        help="a nanoGPT checkout; without one, transformers is the peer",
    )
    return parser.parse_args()


def record(name: str, **figures) -> None:
    """Put a benchmark's figures into results.json, and on the screen."""
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    figures |= {"command": command(), "machine": machine()}
    results[name] = figures
    write_json(RESULTS, dict(sorted(results.items())))
    print(f"{name}: {json.dumps(figures, indent=2)}", flush=True)


def command() -> str:
    """How this benchmark was started."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def machine() -> str:
    """Processor, threads and the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpuinfo.is_file()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(rounds: int, **works: Callable[[], float]) -> dict[str, list[float]]:
    """Call every function once a round, in turn, so that a machine whose speed drifts is as fair to each;
    first a warm-up.
    """
    results = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            value = work()
            if number:
                results[name].append(value)
    return results


def median_ratio(one: list[float], other: list[float]) -> float:
    """The median over the rounds of one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------------------------------------- operations


def operations_per_token(config: TransformerConfig, seq_len: int) -> float:
    """Floating-point operations of one token's forward pass, multiplications and additions, in matrix
    products alone.

    2 L (4 d² + 2 d h) for the layers' matrices, 2 L d (T + 1) for causal attention (scores and mixing, 2 d
    each for the (T + 1) / 2 positions that a token sees on average), 2 d V for the language-modelling head.
    Training: three times as many, since each product has two in the backward pass.
    """
    d, h, n_layers = config.embed_dim, config.hidden_dim, config.num_layers
    return (
        2 * n_layers * (4 * d * d + 2 * d * h)
        + 2 * n_layers * d * (seq_len + 1)
        + 2 * d * config.num_embeddings
    )


def matmul_rate(config: TransformerConfig, n_tokens: int) -> float:
    """Operations per second of bare matrix products in the shapes of a training step: each matrix forward,
    and both of its products backward, in the proportions of the model.
    """
    d, h = config.embed_dim, config.hidden_dim
    shapes = [(d, 3 * d), (d, d), (d, h), (h, d)] * config.num_layers + [(d, config.num_embeddings)]
    operations = spent = 0.0
    for n_in, n_out in shapes:
        x, weight, grad = torch.randn(n_tokens, n_in), torch.randn(n_out, n_in), torch.randn(n_tokens, n_out)
        spent += seconds(lambda x=x, weight=weight, grad=grad: (x @ weight.T, grad @ weight, grad.T @ x))
        operations += 3 * 2 * n_tokens * n_in * n_out
    return operations / spent


# ------------------------------------------------------------------------------------ the two sides of a race


def benchmark_corpus() -> Corpus:
    """IMDb reviews without their labels."""
    return load_corpus("imdb", TOKENIZER, CACHE)


def our_side(corpus: Corpus, batch_size: int = BATCH_SIZE, **changes):
    """Model, engine and evaluation as pretraining_train.py builds them."""
    config = PretrainingConfig(
        **SHAPE | NO_DROPOUT | {"train_batch_size": batch_size, "valid_batch_size": batch_size} | changes
    )
    run = Run(config, Path(tempfile.mkdtemp()), torch.device("cpu"), torch.float32, 0, 1)
    model = make_model(config, len(corpus.tokenizer))
    objective, options = (
        Objective(lm_losses, lm_counts, {"lm": 1.0}),
        LoopOptions(0, batch_size, max_norm=config.max_norm),
    )
    step = TrainingStep(wrap_model(model, run), build_optimizers(model, config), objective, run, options)
    return model, Engine(step), create_evaluation(model, corpus, None, run, config)


def make_model(config: PretrainingConfig, num_embeddings: int) -> TransformerWithLMHead:
    """The model that the flags describe."""
    torch.manual_seed(0)
    return TransformerWithLMHead(transformer_config(config, num_embeddings))


def peer_model(nanogpt: str | None, num_embeddings: int, **shape) -> tuple[str, nn.Module]:
    """nanoGPT's or transformers' model of the benchmark's shape; both give (logits, loss)."""
    torch.manual_seed(0)
    if nanogpt:
        shape = SHAPE | shape
        module = import_file(Path(nanogpt) / "model.py")
        config = module.GPTConfig(
            block_size=shape["num_max_positions"], vocab_size=num_embeddings, n_layer=shape["num_layers"],
            n_head=shape["num_heads"], n_embd=shape["embed_dim"], dropout=shape.get("dropout", 0.0), bias=False,
        )  # fmt: skip
        return "nanoGPT", with_hidden_dim(module.GPT(config), shape["embed_dim"], shape["hidden_dim"])
    return "transformers' GPT2LMHeadModel", TransformersPeer(gpt2_config(num_embeddings, **shape))


def with_hidden_dim(gpt: nn.Module, embed_dim: int, hidden_dim: int) -> nn.Module:
    """nanoGPT's model with feed-forward blocks of a width of ours: its own are always four times as wide as
    the model.
    """
    for block in gpt.transformer.h if hidden_dim != 4 * embed_dim else ():
        block.mlp.c_fc = nn.Linear(embed_dim, hidden_dim, bias=False)
        block.mlp.c_proj = nn.Linear(hidden_dim, embed_dim, bias=False)
    return gpt


def gpt2_config(num_embeddings: int, **shape):
    """The same shape for transformers."""
    import transformers

    shape = SHAPE | shape
    dropout = shape.get("dropout", 0.0)
    return transformers.GPT2Config(
        vocab_size=num_embeddings, n_positions=shape["num_max_positions"], n_embd=shape["embed_dim"], n_layer=shape["num_layers"],
        n_head=shape["num_heads"], n_inner=shape["hidden_dim"], resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip


def gpt2_weights(model: TransformerWithLMHead) -> dict[str, Tensor]:
    """Our weights under the names of transformers' GPT2Model, whose Conv1D stores matrices transposed."""
    ours = model.transformer.state_dict()
    names = {
        "attention_norm": "ln_1", "attention.query_key_value": "attn.c_attn", "attention.projection": "attn.c_proj",
        "feed_forward_norm": "ln_2", "feed_forward.expansion": "mlp.c_fc", "feed_forward.projection": "mlp.c_proj",
    }  # fmt: skip
    theirs = {"wte.weight": ours["token_embeddings.weight"], "wpe.weight": ours["position_embeddings.weight"]}
    for index in range(model.config.num_layers):
        for one, other in names.items():
            weight = ours[f"layers.{index}.{one}.weight"]
            theirs[f"h.{index}.{other}.weight"] = weight.T.contiguous() if weight.dim() == 2 else weight
            theirs[f"h.{index}.{other}.bias"] = ours[f"layers.{index}.{one}.bias"]
    return theirs | {"ln_f.weight": ours["final_norm.weight"], "ln_f.bias": ours["final_norm.bias"]}


def pretrained(**changes) -> Path:
    """The folder of a short pretraining in the benchmark's shape, made at the first call."""
    name = "-".join(f"{key}_{value}" for key, value in changes.items()) or "default"
    folder = ROOT / "runs" / "benchmarks" / f"pretrained-{name}"
    if not (folder / "metrics.json").is_file():
        options = RECIPE | SHAPE | NO_DROPOUT | {"train_batch_size": BATCH_SIZE, "n_steps": 60} | changes
        pretrain(
            PretrainingConfig(
                dataset_path="imdb",
                tokenizer=TOKENIZER,
                dataset_cache=CACHE,
                output_dir=str(folder),
                overwrite=folder.exists(),
                **options,
            )
        )
    return folder


class TransformersPeer(nn.Module):
    """transformers' GPT-2 behind nanoGPT's interface."""

    def __init__(self, config):
        import transformers

        super().__init__()
        self.model = transformers.GPT2LMHeadModel(config)

    def forward(self, input_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(input_ids).logits
        return logits, F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(
            self.parameters(), learning_rate, betas, weight_decay=weight_decay, fused=device_type == "cuda"
        )


def import_file(path: Path):
    """A Python file of somebody else's, as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
