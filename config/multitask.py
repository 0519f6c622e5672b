"""The arguments of multi-task learning."""

from dataclasses import dataclass

from config.finetuning import FinetuningArguments
from config.flags import flag


@dataclass
class MultitaskConfig(FinetuningArguments):
    title = "multi-task learning"

    tasks: str | None = flag(
        None,
        "what to learn, with commas between: tasks of run_configs/, folders, or JSON files with the keys of "
        "a task",
    )
    conditioning: str = flag(
        "alignment,attention,norm,bottleneck",
        "what the task conditions, with commas between: the embeddings, attention scores, the LayerNorms of "
        "the upper layers, a bottleneck after the last one, updates of all matrices (lora); or none: "
        "plain multi-task learning",
    )
    conditioning_lr: float | None = flag(
        None,
        "peak learning rate of what makes the scales and shifts of a task (default: 2e-5 as in the paper, or "
        "lr, if that is lower)",
        least=0,
    )
    freeze_layers: str | None = flag(
        None, "layers whose own weights stay as they are, counted from 0: 0-4 or 0,2,5-7 (default: none)"
    )
    sampling: str = flag(
        "sequential",
        "which task comes next: one after the other until the data runs out, in proportion to its size or to "
        "a power of it (annealed: from 1 down to 0.2; temperature: 1 / sampling_temperature), or what the "
        "model is least sure of",
        (
            "sequential",
            "proportional",
            "annealed",
            "square_root",
            "uniform",
            "temperature",
            "uncertainty",
        ),
    )
    sampling_temperature: float = flag(2.0, "of --sampling temperature", least=0.01)
    rows_per_draw: int | None = flag(
        None,
        "rows of an optimizer step that a drawn task gives; 1: a task is drawn for each row (default: "
        "train_batch_size)",
        least=1,
    )
    uncertainty_candidates: int | None = flag(
        None,
        "examples of each task among which --sampling uncertainty chooses (default: the rows of an "
        "optimizer step)",
        least=1,
    )
    uncertainty_every: int = flag(
        1, "choose the rows of so many optimizer steps at once: cheaper, but less picky", least=1
    )
    uncertainty_equal_shares: bool = flag(
        False, "as many rows of each task, those that the model is least sure of; not in the paper"
    )
    uncertainty_proxy: str | None = flag(
        None,
        "regression=classification: the tasks whose scores those without an entropy take, with commas "
        "between (default: the mean of all others, rank by rank)",
    )
    add_task: str | None = flag(
        None,
        "learn one more task, as an embedding and a head, with the run folder of --model_checkpoint; all "
        "other weights stay",
    )
    patience_metric: str = flag(
        "average", "what progress is: the average of all tasks' main metrics, or TASK.metric"
    )
    glue_submission: str | None = flag(
        None, "folder for the predictions of the test splits, as the GLUE leaderboard wants them"
    )
