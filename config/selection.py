"""The arguments of task selection: phase 1, which represents sources, and phase 2, which ranks them."""

from dataclasses import dataclass, fields

from config.finetuning import FinetuningConfig
from config.flags import Arguments, flag, flags_of, positional
from config.groups import EngineArguments, NotifyArguments, OptimizationArguments

# Flags of finetuning_train.py that are set for each source, or that make no sense for all of them.
SET_BY_POOL = {"output_dir", "overwrite", "resume", "local_rank", "notify", "restarts", "adapters"}
SET_BY_POOL |= {"dataset_path", "tracker", *(field.name for field in fields(EngineArguments))}
SET_BY_POOL |= {"tokenizer"}  # the base model's own
POOLINGS = ("cls", "mean", "max", "cls_mean", "cls_mean_max", "pooler")
REPRESENTATIONS = ("esm", "textemb", "semb", "taskemb", "tokens")


@dataclass
class MapArguments(Arguments):
    title = "Embedding Space Maps"

    esm: str = flag(
        "linear",
        "how the map of embeddings is learned: W x + b by gradient descent, as published; the same by ridge "
        "regression towards the identity; x + U V x + b; or x + U gelu(V x) + b",
        ("linear", "ridge", "low_rank", "nonlinear"),
    )
    esm_rank: int = flag(32, "rank of U and V", least=1)
    n_texts: int = flag(10_000, "represent a source by at most so many of its training texts", least=2)
    sentence_model: str | None = flag(
        None, "model of sentence-transformers for semb: hf:NAME or a folder (MiniLM, say)"
    )


@dataclass
class RepresentationConfig(MapArguments, OptimizationArguments):
    """One way to describe one source; a job of selection_train.py."""

    model_checkpoint: str = flag("", "the base model")
    source: str = flag("", "run folder of the fine-tuning on the source")
    represent: str = flag("esm", "what to compute", REPRESENTATIONS)
    dataset_cache: str = flag("dataset_cache", "folder for encoded datasets")

    # Those of the paper (section 3); its weight decay pulls W to 0.
    train_batch_size: int = flag(32, "embeddings per optimizer step", least=1)
    valid_batch_size: int = flag(64, "texts per forward pass", least=1)
    lr: float = flag(1e-3, "peak learning rate of AdamW", least=0)
    weight_decay: float = flag(0.01, "decoupled weight decay, on matrices alone", least=0)
    max_norm: float = flag(1.0, "clip the gradient's norm to this; 0: never", least=0)
    n_epochs: int = flag(10, "passes over the embeddings", least=0)
    n_warmup: int = flag(0, "optimizer steps of linear warm-up", least=0)
    schedule: str = flag("linear", "decay of the learning rate to 0 after the warm-up", ("cosine", "linear"))


@dataclass
class MapTrainingArguments(MapArguments):
    title = "Embedding Space Maps"

    esm_lr: float = flag(1e-3, "peak learning rate of the map", least=0)
    esm_n_epochs: int = flag(10, "passes over the embeddings", least=0)
    esm_batch_size: int = flag(32, "embeddings per optimizer step", least=1)
    esm_weight_decay: float = flag(0.01, "weight decay of the map", least=0)


@dataclass
class SelectionConfig(MapTrainingArguments, EngineArguments, NotifyArguments):
    title = "sources (all other flags are those of finetuning_train.py, for all of them)"

    sources: str | None = flag(
        None,
        "with commas between: tasks of run_configs/, folders, JSON files with the keys of a task, or run "
        "folders of fine-tuned models; hub: fetches the maps that others have published for the base model, "
        "hub:*sentiment* those with such names",
    )
    represent: str = flag(
        "esm,textemb,tokens",
        "what to write of each source, with commas between: its map (esm), the mean embedding of its texts "
        "(textemb), the same of another model (semb), gradients (taskemb), the tokens that occur (tokens)",
    )
    training: dict = flags_of(FinetuningConfig, without=SET_BY_POOL)
    output_dir: str = flag("runs/pool", "folder of the pool; the same command continues it")
    list_maps: bool = flag(False, "only print the names of the maps that hub: in --sources means")
    publish: str | None = flag(
        None, "upload the maps to the Hub: an owner (one repository per source), or owner/name of one source"
    )


@dataclass
class RankConfig(Arguments):
    title = "ranking (all other flags are those of finetuning_train.py, for the target)"

    target: str | None = flag(None, "the task to find sources for: of run_configs/, a folder, or a JSON file")
    pool: str = flag(
        "runs/pool", "folder of selection_train.py; or hub:, hub:PATTERN: the maps that others have published"
    )
    methods: str = flag(
        "esm-logme", "what to rank by, with commas between, or all; fusion, or else the first one, sorts"
    )
    training: dict = flags_of(FinetuningConfig, without=SET_BY_POOL)
    shortlist: int = flag(
        50,
        "of a larger pool, let the methods rank only the best by esm-logme, which are found by rough scores "
        "of all and exact ones of few; 0: all",
        least=0,
    )
    top: int = flag(10, "sources to show; the files have all that were ranked", least=1)
    n_bootstrap: int = flag(20, "samples of the target's rows, for the spread of the ranks; 0: none", least=0)
    n_steps_few_shot: int = flag(50, "optimizer steps of few-shot and frozen-transfer", least=1)
    sentence_model: str | None = flag(None, "as in selection_train.py, for semb")
    output_dir: str | None = flag(
        None, "folder for ranking.csv, ranking.json and ranking.png (default: runs/ranking_<target>)"
    )
    overwrite: bool = flag(False, "replace the ranking in output_dir")


@dataclass
class EvaluationConfig(Arguments):
    title = "evaluation of rankings"

    transfer_results: str = positional("folder of a finished grid of finetuning_transfer.py")
    pool: str = flag("runs/pool", "folder of selection_train.py with the same sources, by their names")
    methods: str = flag("all", "what to evaluate, with commas between, or all")
    n_steps_few_shot: int = flag(50, "optimizer steps of few-shot and frozen-transfer", least=1)
    sentence_model: str | None = flag(None, "as in selection_train.py, for semb")
