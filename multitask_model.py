"""One transformer for many tasks, conditioned on the task, with a head for each (Pilault et al. 2021)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.model import TransformerConfig
from finetuning_model import MODEL_CLASSES, Head, HeadConfig, cls_positions
from layers.adapters import Tuning, apply_tuning
from layers.conditional import Condition, apply_conditioning
from pretraining_model import LanguageModel

SEQUENCES = ("input_ids", "attention_mask", "token_type_ids")


@dataclass
class TaskHead:
    """What the model has for one task."""

    model_class: str  # of fine-tuning, which has such a head
    num_outputs: int


@dataclass
class MultitaskShape:
    """What multi-task learning adds to a transformer."""

    tasks: dict[str, TaskHead]
    max_length: int  # of the inputs, in tokens
    conditioning: list[str] = field(default_factory=list)  # some of layers.conditional.PARTS
    pooling: str = "cls"
    tuning: Tuning = field(default_factory=Tuning)
    initializer_range: float = 0.02

    @classmethod
    def from_json(cls, values: dict) -> "MultitaskShape":
        """The shape that config.json of a run describes."""
        tasks = {name: TaskHead(**task) for name, task in values["tasks"].items()}
        return cls(**values | {"tasks": tasks, "tuning": Tuning(**values["tuning"])})


class TaskEmbeddings(nn.Module):
    """A learned vector for each task, and the linear layer that makes the condition z of it."""

    def __init__(self, names: list[str], embed_dim: int):
        super().__init__()
        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(embed_dim)) for name in names})
        self.transform = nn.Linear(embed_dim, embed_dim)

    def forward(self, names: Iterable[str]) -> Tensor:
        """z of some tasks, [tasks, embed]."""
        return self.transform(torch.stack([self.vectors[name] for name in names]))


class MultitaskTransformer(LanguageModel):
    """A transformer whose conditional parts know the task of each example, with a head for each task."""

    def __init__(self, config: TransformerConfig, shape: MultitaskShape):
        super().__init__(config)
        self.shape, self.condition = shape, Condition()
        apply_tuning(self.transformer, shape.tuning, shape.initializer_range)
        apply_conditioning(self.transformer, self.condition, shape.conditioning, shape.max_length)
        self.task_embeddings = (
            TaskEmbeddings(list(shape.tasks), config.embed_dim) if shape.conditioning else None
        )
        self.heads = nn.ModuleDict({name: self.build_head(task) for name, task in shape.tasks.items()})

    def build_head(self, task: TaskHead) -> Head:
        """The head that fine-tuning has for tasks of this kind."""
        shape = self.shape
        head = HeadConfig(task.num_outputs, shape.pooling, shape.tuning, shape.initializer_range)
        return MODEL_CLASSES[task.model_class].head_class(self.config, head)

    def head(self, name: str) -> Head:
        """The head of a task."""
        return cast(Head, self.heads[name])  # ModuleDict is not generic

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        task_ids: Tensor,
        token_type_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Score a batch that may mix tasks, as `join_batches` makes it.

        Args:
            input_ids, attention_mask, token_type_ids: [sequences, seq], padded on the right.
            task_ids: [sequences], by the order of the tasks in `inputs`.
            inputs: what `join_batches` leaves of the batch of each task, under `task/key`.
        Returns: for each task in the batch its logits, in float32; or, with labels, its summed loss.
        """
        batches = split_by_task(inputs)
        self.condition.task_ids = task_ids
        if self.task_embeddings is not None:
            self.condition.embeddings = self.task_embeddings(batches)
        mask = None if self.config.causal else attention_mask  # right padding is in the future of all tokens
        only_cls = all(self.head(name).reads_only_cls for name in batches)
        query_positions = cls_positions(attention_mask, self.config.causal) if only_cls else None
        hidden_states = self.transformer(
            input_ids, mask, query_positions=query_positions, token_type_ids=token_type_ids
        )
        return {name: self.score_task(name, hidden_states, batch) for name, batch in batches.items()}

    def score_task(self, name: str, hidden_states: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Logits of the examples of one task, or the sum of their losses."""
        head, mask = self.head(name), batch["attention_mask"].flatten(0, -2)
        states = hidden_states.index_select(0, batch["rows"].flatten())[:, : mask.size(1)]
        logits = head.score(states, mask, batch).float()
        return head.loss(logits, batch["labels"], batch) if "labels" in batch else logits

    def parameter_depths(self) -> dict[str, int]:
        """As of LanguageModel; the tasks' vectors lie as near to the output as their heads."""
        return {
            name: 0 if name.startswith(("task_embeddings.", "heads.")) else depth  # whatever a task is called
            for name, depth in super().parameter_depths().items()
        }

    def hidden_matrices(self) -> dict[str, int]:
        """As of LanguageModel; γ and β of a FiLM are stacked, and updates are no stacks."""
        matrices = super().hidden_matrices()
        films = {name: 2 for name in matrices if name.endswith(".film.weight")}
        return matrices | films | {name: 1 for name in matrices if ".task_update." in name}

    def conditioning_parameters(self) -> list[str]:
        """The names of what makes z, γ and β."""
        films = (f"transformer.{name}" for name, _ in self.transformer.named_parameters() if ".film." in name)
        embeddings = (name for name, _ in self.named_parameters() if name.startswith("task_embeddings."))
        return [*films, *embeddings]


class OneTask(nn.Module):
    """A multi-task model with the interface of a fine-tuned one: it scores batches of one of its tasks."""

    def __init__(self, model: MultitaskTransformer, name: str):
        super().__init__()
        self.model, self.name = model, name
        self.config, self.max_length = model.config, model.shape.max_length

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits of a batch, as a `tasks.examples.Collator` makes it."""
        return self.model(**join_batches({self.name: batch}))[self.name]


def join_batches(batches: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of the batches of several tasks, for `MultitaskTransformer.forward`.

    The sequences of all are one under the other, padded to the longest: input_ids, attention_mask, maybe
    token_type_ids [sequences, seq], and task_ids [sequences], in the order of `batches`. What else a task's
    batch has stays apart, under `task/key`, with its attention_mask and `task/rows`, where its sequences are:
    [batch], or [batch, choices].
    """
    seq = max(batch["input_ids"].size(-1) for batch in batches.values())
    joined: dict[str, list[Tensor]] = {}
    inputs: dict[str, Tensor] = {}
    n_sequences = 0
    for task_id, (name, batch) in enumerate(batches.items()):
        shape = batch["input_ids"].shape[:-1]
        for key in SEQUENCES:
            if key in batch:
                sequences = batch[key].flatten(0, -2)
                joined.setdefault(key, []).append(F.pad(sequences, (0, seq - sequences.size(1))))
        device = batch["input_ids"].device
        rows = torch.arange(n_sequences, n_sequences + shape.numel(), device=device)
        joined.setdefault("task_ids", []).append(torch.full_like(rows, task_id))
        kept = {key: tensor for key, tensor in batch.items() if key not in ("input_ids", "token_type_ids")}
        inputs |= {f"{name}/{key}": tensor for key, tensor in (kept | {"rows": rows.view(shape)}).items()}
        n_sequences += shape.numel()
    return {key: torch.cat(tensors) for key, tensors in joined.items()} | inputs


def split_by_task(batch: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What `join_batches` has under `task/key`, by task and key."""
    batches: dict[str, dict[str, Tensor]] = {}
    for name_and_key, tensor in batch.items():
        name, slash, key = name_and_key.rpartition("/")
        if slash:
            batches.setdefault(name, {})[key] = tensor
    return batches
