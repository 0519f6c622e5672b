"""The arguments of fine-tuning."""

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

from config.flags import Arguments, check_types, flag, replace
from config.groups import EngineArguments, ModelArguments, OptimizationArguments
from config.presets import read_dataset


@dataclass
class InputArguments(Arguments):
    title = "inputs"

    dataset_cache: str = flag("dataset_cache", "folder for encoded datasets")
    tokenizer: str | None = flag(None, "as in pretraining (default: the checkpoint's own)")
    train_subset_size: int | None = flag(
        None, "train on so many examples, drawn by the seed (default: all)", least=1
    )
    max_length: int | None = flag(None, "longest input, in tokens (default: num_max_positions)", least=4)
    truncation: str = flag(
        "head",
        "which end of a longer text to keep; both: a quarter of head, the rest of tail",
        ("head", "tail", "both"),
    )


@dataclass
class TaskArguments(InputArguments):
    title = "task"

    kind: str = flag(
        "auto",
        "of the task (auto: classification, or regression if labels are fractional)",
        (
            "auto",
            "classification",
            "regression",
            "multiple_choice",
            "tagging",
            "question_answering",
            "parsing",
        ),
    )
    dataset_path: str = flag(
        "imdb", "a task of run_configs/, hub:owner/name[:config][@revision], a folder or a file"
    )
    text_column: str | None = flag(
        None,
        "column of the texts, words or questions; also a.b for b inside of a, or a text made of columns "
        "like '{a}: {b}' (default: text, tokens or question)",
    )
    text_pair_column: str | None = flag(
        None,
        "column of the second texts of pairs, or of the contexts of questions (default: text_pair, if "
        "there is one, or context)",
    )
    choices_column: str | None = flag(
        None,
        "column of the lists of choices, or their columns with commas between them; {choice} in a text is "
        "where they go (default: choices)",
    )
    heads_column: str | None = flag(None, "column of the heads of words, for parsing (default: head)")
    label_column: str | None = flag(
        None, "column of the labels, tags, answers or relations (default: label, tags, answers or deprel)"
    )
    group_column: str | None = flag(
        None,
        "column of what examples belong to (the question of an answer, say), for exact matches of whole "
        "groups of a classification",
    )
    label_names: str | None = flag(
        None,
        "names of the labels in the order of their numbers, with commas between them; of choices: what the "
        "labels call them (default: inferred)",
    )
    blank: str | None = flag(None, "what a choice fills, where a text has it, like _")
    skip_unlabelled: bool = flag(False, "leave out examples without a label, instead of refusing them")
    train_split: str | None = flag(None, "name of the training split; a+b: both (default: train)")
    valid_split: str | None = flag(
        None,
        "name of the validation split; none: hold out a part of the training split (default: valid, "
        "validation or dev)",
    )
    test_split: str | None = flag(None, "name of the test split; none: there is none (default: test)")
    doc_stride: int = flag(
        128, "tokens from one window of a long context to the next, for questions", least=1
    )
    max_answer_length: int = flag(30, "tokens of the longest answer", least=1)
    unanswerable: bool = flag(False, "some questions have no answer, and the model has to say so")
    num_classes: int | None = flag(
        None, "number of classes; 1: regression (default: inferred from the labels)", least=1
    )
    patience_metric: str = flag(
        "auto",
        "what progress is (auto: accuracy, pearson, F1 of tags and answers, or las)",
        (
            "auto",
            "accuracy",
            "macro_f1",
            "f1",
            "matthews",
            "pearson",
            "spearman",
            "exact_match",
            "uas",
            "las",
            "loss",
        ),
    )


TaskConfig = TypeVar("TaskConfig", bound=TaskArguments)


def with_task(config: TaskConfig) -> TaskConfig:
    """The config with what the task of run_configs/ that `dataset_path` names says about the other flags.

    Flags that were given, or differ from their defaults, stay. Raises UserError for a mistake in the file.
    """
    where = f"--dataset_path {config.dataset_path}"
    values = check_types(type(config), read_dataset(config.dataset_path), where)
    unset = {
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) == field.default and field.name not in config.explicit_flags
    }
    return replace(config, **{key: values[key] for key in unset & values.keys() - {"dataset_path"}})


@dataclass
class TuningArguments(Arguments):
    title = "what trains"

    tuning: str = flag(
        "full",
        "what trains: the whole model, its head, also its biases, adapters (two or one per layer), LoRA, "
        "or the fusion of --adapters",
        ("full", "head", "bitfit", "houlsby", "pfeiffer", "lora", "fusion"),
    )
    adapters_dim: int = flag(
        0, "width of the adapters; 0: embed_dim / reduction_factor. Alone, it means --tuning houlsby", least=0
    )
    reduction_factor: int = flag(16, "how much narrower than the model adapters are", least=1)
    adapter_activation: str = flag(
        "auto",
        "of the adapters (auto: relu for pfeiffer, gelu for houlsby)",
        ("auto", "relu", "gelu", "swish", "tanh"),
    )
    lora_rank: int = flag(8, "rank of LoRA's updates", least=1)
    lora_alpha: float = flag(8.0, "LoRA's updates are multiplied by this / lora_rank", least=0)
    adapters: str | None = flag(None, "run folders of trained adapters to fuse, with commas between them")
    drop_last: bool = flag(False, "no adapters and no fusion in the last layer")
    unfreeze_every: int = flag(
        0,
        "train the head alone, and one layer more, from the top, every so many steps; 0: all from the start",
        least=0,
    )


@dataclass
class FinetuningArguments(InputArguments, TuningArguments, ModelArguments, OptimizationArguments):
    """What fine-tuning and multi-task learning share."""

    title = "fine-tuning"

    model_checkpoint: str | None = flag(
        None,
        "run folder of a pretraining or of another fine-tuning, hf:NAME or a folder of the transformers "
        "library (GPT-2, BERT, RoBERTa), or none: from scratch (default: the newest in runs/)",
    )
    pooling: str = flag(
        "cls",
        "what the head sees: the state of [CLS], the mean or maximum over the text, or several of them",
        ("cls", "mean", "max", "cls_mean", "cls_mean_max"),
    )
    patience: int = flag(0, "stop after so many evaluations without progress; 0: never", least=0)
    eval_test: bool = flag(True, "measure the best model on the test split, if there is one")

    # The defaults that differ from pretraining's.
    train_batch_size: int = flag(16, "sequences per process and forward pass", least=1)
    part_tokens: int | None = flag(
        None,
        "tokens of a batch that are computed at once, in sequences of similar length (default: 1,024 on a "
        "CPU, 16,384 on a GPU)",
        least=1,
    )
    valid_batch_size: int = flag(32, "sequences per process in an evaluation", least=1)
    lr: float = flag(6e-5, "peak learning rate of AdamW", least=0)
    n_epochs: int = flag(3, "passes over the training data", least=0)
    n_warmup: int = flag(500, "optimizer steps of linear warm-up", least=0)
    schedule: str = flag("linear", "decay of the learning rate to 0 after the warm-up", ("cosine", "linear"))


@dataclass
class FinetuningConfig(TaskArguments, FinetuningArguments, EngineArguments):
    title = "heads and losses"

    finetuning_model_class: str | None = flag(
        None, "class of finetuning_model.py to fine-tune (default: that of the kind)"
    )
    clf_loss_coef: float = flag(1.0, "weight of the classification loss", least=0)
    lm_loss_coef: float = flag(
        0.0, "weight of the auxiliary language-modelling loss; 0: not computed", least=0
    )
    adversarial_epsilon: float = flag(
        0.0,
        "adversarial training: in half of the micro-batches, move the embeddings by this share of their norm "
        "to where the classification loss is higher",
        least=0,
    )
    mlm_probability: float = flag(
        0.15, "fraction of the tokens to predict, for the auxiliary loss of an mlm model", least=0.001, most=1
    )
    restarts: int = flag(
        1, "train so many times, with the seeds seed, seed + 1, …, and report means and deviations", least=1
    )
