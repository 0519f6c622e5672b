"""The groups of flags that several scripts share."""

import math
from dataclasses import dataclass

from config.errors import UserError
from config.flags import Arguments, flag


@dataclass
class NotifyArguments(Arguments):
    title = "run"

    notify: list[str] | None = flag(
        None,
        "address to tell of the start, the end and a failure, as the apprise library writes it: "
        "mailto://…, tgram://…; may be repeated, is never saved",
    )


@dataclass
class RunArguments(NotifyArguments):
    title = "run"

    output_dir: str | None = flag(None, "folder to write (default: runs/<date>_<time>_<host>)")
    overwrite: bool = flag(False, "delete what output_dir holds first")
    resume: str | None = flag(None, "run folder to go on with; it gives all other arguments")
    seed: int = flag(42, "seed of initialisation, batches and dropout", least=0, most=2**62)
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps …")
    precision: str = flag("auto", "auto is what the device is fast at", ("auto", "fp32", "bf16", "fp16"))
    compile: bool = flag(False, "compile the model with torch.compile")
    log_every: int = flag(10, "optimizer steps between rows of training scalars in the logs", least=1)
    tracker: str = flag(
        "none",
        "log to an experiment tracker, too, set up by its own environment variables; "
        "pip install -r requirements-trackers.txt",
        ("none", "wandb", "mlflow", "clearml"),
    )
    save_every: int = flag(
        1000, "optimizer steps between checkpoints to resume from; the last two are kept", least=1
    )
    timeout: int = flag(
        1800, "seconds that a process waits for the others before it gives up, of several", least=1
    )
    local_rank: int = flag(-1, "set by torch.distributed.launch")


@dataclass
class OptimizationArguments(RunArguments):
    title = "optimization"

    train_batch_size: int = flag(8, "sequences per process and forward pass", least=1)
    valid_batch_size: int = flag(8, "sequences per process in an evaluation", least=1)
    gradient_accumulation_steps: int = flag(1, "forward passes per optimizer step", least=1)
    optimizer: str = flag(
        "adamw", "muon: Muon for the layers' matrices, AdamW for the rest", ("adamw", "muon")
    )
    lr: float = flag(2.5e-4, "peak learning rate of AdamW", least=0)
    muon_lr: float = flag(0.02, "peak learning rate of Muon", least=0)
    muon_momentum: float = flag(0.95, "momentum of Muon; lower for runs of few steps", least=0, most=0.999)
    layer_lr_decay: float = flag(
        1.0, "learning rates of a layer, relative to the layer above it", least=0, most=1
    )
    weight_decay: float = flag(0.0, "decoupled weight decay, on matrices alone", least=0)
    gradient_checkpointing: bool = flag(
        False,
        "compute each layer a second time in the backward pass, instead of keeping its activations: less "
        "memory, about a third more time",
    )
    max_norm: float = flag(
        0.25, "clip the gradient's norm to this, once per optimizer step; 0: never", least=0
    )
    n_epochs: int = flag(50, "passes over the training data", least=0)
    n_steps: int | None = flag(None, "stop after so many optimizer steps, whatever n_epochs says", least=0)
    n_warmup: int = flag(1000, "optimizer steps of linear warm-up", least=0)
    warmup_ratio: float = flag(
        0.0, "warm up for this fraction of all optimizer steps; 0: for n_warmup steps", least=0, most=1
    )
    schedule: str = flag("cosine", "decay of the learning rate to 0 after the warm-up", ("cosine", "linear"))
    eval_every: int = flag(-1, "optimizer steps between evaluations; -1: at the end of each epoch")

    def __post_init__(self):
        super().__post_init__()
        if self.warmup_ratio and self.n_warmup != type(self).n_warmup:
            raise UserError(
                f"n_warmup {self.n_warmup} and warmup_ratio {self.warmup_ratio:g} contradict each other; "
                f"leave one out (n_warmup {type(self).n_warmup} or warmup_ratio 0 undoes that of a preset)"
            )

    def warmup_steps(self, n_steps: int) -> int:
        """Optimizer steps of warm-up in a training of `n_steps`; a fraction is rounded up."""
        return math.ceil(self.warmup_ratio * n_steps) if self.warmup_ratio else self.n_warmup


@dataclass
class ModelArguments(Arguments):
    title = "model"

    embed_dim: int = flag(410, "width of the hidden states", least=1)
    hidden_dim: int = flag(2100, "width of the feed-forward blocks", least=1)
    num_max_positions: int = flag(256, "longest sequence, in tokens", least=4)
    num_heads: int = flag(10, "attention heads; must divide embed_dim", least=1)
    num_layers: int = flag(16, "transformer layers", least=1)
    dropout: float = flag(
        0.1, "dropout on embeddings and on the output of each sub-layer", least=0, most=0.99
    )
    attention_dropout: float = flag(
        0.1, "dropout on attention weights; 0 allows the fastest kernels on a CPU", least=0, most=0.99
    )
    initializer_range: float = flag(0.02, "standard deviation of the initial weights", least=0)
    activation: str = flag(
        "gelu_new",
        "of the feed-forward blocks: GPT-2's GELU, BERT's, which is faster on a CPU, or ReLU",
        ("gelu_new", "gelu", "relu"),
    )
    residual_init: str = flag(
        "scaled",
        "initial residual projections: scaled by depth, or zero, so that layers start as the identity",
        ("scaled", "zero"),
    )
    sinusoidal_embeddings: bool = flag(False, "fixed sinusoidal positions instead of learned ones")
    output_bias: bool = flag(
        False,
        "a bias per token in the language-modelling head, which starts at its log frequency in the corpus",
    )
    sampled_softmax: int = flag(
        0, "train with a softmax over the tokens of the batch and so many others; 0: over all", least=0
    )
    mlm: bool = flag(False, "bidirectional model, masked-language-modelling loss")


@dataclass
class EngineArguments(Arguments):
    title = "many trainings"

    workers: int | None = flag(
        None,
        "trainings side by side on this machine, each in a process of its own, through Ray (default: one "
        "after the other, without Ray); on a cluster: at most so many",
        least=1,
    )
    ray_address: str | None = flag(
        None, "Ray cluster to train on, host:port or auto (default: RAY_ADDRESS, if that is set)"
    )
    gpus_per_training: float | None = flag(
        None,
        "GPUs of each training on Ray; a fraction shares one (default: 1, or a share if there are fewer than "
        "workers)",
        least=0,
    )
    max_retries: int = flag(3, "how many times Ray goes on with a training whose process was killed", least=0)
