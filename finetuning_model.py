"""The pretrained transformer with a classification head, and how a fine-tuned one is read back."""
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.constants import IGNORE_INDEX
from config.model import TransformerConfig
from layers.adapters import Tuning, apply_tuning, is_added, is_fused
from pretraining_model import TransformerWithLMHead, initialize

HEAD = "classification_head."  # how the names of its weights begin


@dataclass
class HeadConfig:
    """What fine-tuning adds to a transformer."""

    num_outputs: int
    pooling: str = "cls"
    tuning: Tuning = field(default_factory=Tuning)
    initializer_range: float = 0.02

    def __post_init__(self):
        if isinstance(self.tuning, dict):  # from JSON
            self.tuning = Tuning(**self.tuning)


class TransformerWithClfHead(TransformerWithLMHead):
    """Transformer with a head for texts (classes, a number, or the score of a choice), and the language-modelling head for an
    auxiliary loss. Heads for something else are subclasses, which `--finetuning_model_class` finds by name."""

    def __init_subclass__(cls):
        MODEL_CLASSES[cls.__name__] = cls

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(config)
        self.head = head
        self.dropout = nn.Dropout(config.dropout)
        self.classification_head = self.build_head()
        apply_tuning(self.transformer, head.tuning, head.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        lm_labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **of_the_kind: Tensor,
    ) -> Tensor | dict[str, Tensor]:
        """Score a batch that is padded on the right.

        Args:
            input_ids, attention_mask: [batch, seq], or [batch, choices, seq]; [CLS] last for a causal model, first for a bidirectional one.
            labels: [batch], class ids, or numbers for regression; what other heads want is in their `task_loss`.
            lm_labels: like input_ids, aligned with the positions; -100 asks for no loss. Without them no LM logits are computed.
            token_type_ids: like input_ids, the segment of each token, for models that have segment embeddings.
            of_the_kind: what else a batch of this kind of task has (`tasks/kinds.py`).
        Returns: logits [batch, num_outputs], or [batch, choices]; or, with `labels`, the summed losses `clf` and (if asked for) `lm`.
        """
        shape = input_ids.shape[:-1]
        input_ids, flat_mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        token_type_ids = None if token_type_ids is None else token_type_ids.flatten(0, -2)
        # Right padding lies in the future: a causal model that gets no mask can use the fastest attention.
        mask = None if self.config.causal else flat_mask
        query_positions = self.cls_positions(flat_mask) if self.reads_only_cls and lm_labels is None else None
        hidden_states = self.transformer(input_ids, mask, query_positions=query_positions, token_type_ids=token_type_ids)
        logits = self.score(hidden_states, flat_mask, shape, **of_the_kind).float()
        if labels is None:
            return logits
        losses = {"clf": self.task_loss(logits, labels, **of_the_kind)}
        if lm_labels is not None:
            losses["lm"] = self.loss(hidden_states, lm_labels.flatten(0, -2))
        return losses

    # What subclasses do otherwise.

    def build_head(self) -> nn.Module:
        """The module on top of the transformer."""
        return new_linear(self.config.embed_dim * len(self.head.pooling.split("_")), self.head.num_outputs, self.head)

    @property
    def reads_only_cls(self) -> bool:
        """Then most of the last layer need not be computed."""
        return self.head.pooling == "cls"

    def score(self, hidden_states: Tensor, attention_mask: Tensor, shape: torch.Size, n_choices: Tensor | None = None) -> Tensor:
        """Logits from the states of all positions (or of [CLS] alone), [texts, seq, embed]."""
        is_pooled = self.reads_only_cls and hidden_states.size(1) == 1
        pooled = hidden_states.squeeze(1) if is_pooled else self.pool(hidden_states, attention_mask)
        logits = self.classification_head(self.dropout(pooled))
        if n_choices is None:
            return logits
        missing = torch.arange(shape[1], device=logits.device) >= n_choices.unsqueeze(1)
        return logits.view(shape).masked_fill(missing, -math.inf)

    def task_loss(self, logits: Tensor, labels: Tensor, n_choices: Tensor | None = None) -> Tensor:
        """Cross-entropy over classes or choices, or squared error for a single number, summed over the batch."""
        if logits.size(1) == 1:
            return F.mse_loss(logits.squeeze(1), labels.float(), reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum")

    # Pooling.

    def pool(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """The state of [CLS], and the mean and maximum over the real tokens (ULMFiT's concat pooling: Howard & Ruder
        2018, section 3.3), as far as `pooling` names them: [batch, seq, embed] → [batch, parts * embed]."""
        rows, mask = torch.arange(len(hidden_states), device=hidden_states.device), attention_mask.unsqueeze(-1)
        poolings = {
            "cls": lambda: hidden_states[rows, self.cls_positions(attention_mask)],
            "mean": lambda: (hidden_states * mask).sum(1) / mask.sum(1),
            "max": lambda: hidden_states.masked_fill(mask == 0, -math.inf).amax(1),
        }
        return torch.cat([poolings[name]() for name in self.head.pooling.split("_")], dim=-1)

    def cls_positions(self, attention_mask: Tensor) -> Tensor:
        """Where [CLS] stands: [batch]. Last in a causal model, first in a bidirectional one."""
        lengths = attention_mask.sum(1)
        return lengths - 1 if self.config.causal else torch.zeros_like(lengths)


MODEL_CLASSES: dict[str, type[TransformerWithClfHead]] = {"TransformerWithClfHead": TransformerWithClfHead}


class TransformerWithTokenHead(TransformerWithClfHead):
    """Scores for each token: its tags, or whether an answer begins and ends there (Devlin et al. 2019, figure 4)."""

    reads_only_cls = False

    def build_head(self) -> nn.Module:
        """A linear layer that all positions share."""
        return new_linear(self.config.embed_dim, self.head.num_outputs, self.head)

    def score(
        self, hidden_states: Tensor, attention_mask: Tensor, shape: torch.Size, word_mask: Tensor | None = None, span_mask: Tensor | None = None
    ) -> Tensor:
        """[batch, seq, num_outputs]; with `span_mask` [batch, seq], minus infinity where it is 0."""
        logits = self.classification_head(self.dropout(hidden_states))
        return logits if span_mask is None else logits.masked_fill(span_mask.unsqueeze(-1) == 0, -math.inf)

    def task_loss(self, logits: Tensor, labels: Tensor, word_mask: Tensor | None = None, span_mask: Tensor | None = None) -> Tensor:
        """Cross-entropy of tags [batch, seq] (-100: none), or the mean of those of both ends of an answer [batch, 2]; summed."""
        if span_mask is None:
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum") / 2  # over the positions, for either end


class TransformerWithParserHead(TransformerWithClfHead):
    """Scores of all arcs between words and of the relations on them: deep biaffine attention (Dozat & Manning 2017, section 2)."""

    reads_only_cls = False

    def build_head(self) -> nn.Module:
        """The parser."""
        return Biaffine(self.config.embed_dim, self.head)

    def score(self, hidden_states: Tensor, attention_mask: Tensor, shape: torch.Size, word_mask: Tensor, heads: Tensor | None = None) -> Tensor:
        """[batch, seq, seq, 1 + relations]: of the arc from a word (second axis) to its head (third), and of each relation on it; what is
        neither a word nor [CLS], the root, is no head."""
        logits = self.classification_head(self.dropout(hidden_states))
        root = F.one_hot(self.cls_positions(attention_mask), hidden_states.size(1))
        arcs = logits[..., :1].masked_fill(((word_mask + root) == 0)[:, None, :, None], -math.inf)
        return torch.cat((arcs, logits[..., 1:]), dim=-1)

    def task_loss(self, logits: Tensor, labels: Tensor, word_mask: Tensor, heads: Tensor) -> Tensor:
        """Cross-entropy of the heads [batch, seq] plus that of the relations `labels` [batch, seq] on the true arcs; summed over words."""
        arc_loss = F.cross_entropy(logits[..., 0].flatten(0, 1), heads.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
        at_heads = heads.clamp(min=0)[:, :, None, None].expand(-1, -1, 1, logits.size(-1))
        relations = logits.gather(2, at_heads).squeeze(2)[..., 1:]
        labels = labels.masked_fill(heads == IGNORE_INDEX, IGNORE_INDEX)
        return arc_loss + F.cross_entropy(relations.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


class Biaffine(nn.Module):
    """Two views of each word, as a dependent and as a head, and a bilinear form over each pair (Dozat & Manning 2017, equations 4 to 9)."""

    ARC_DIM, RELATION_DIM = 512, 128

    def __init__(self, embed_dim: int, head: HeadConfig):
        super().__init__()
        self.arc_dependent, self.arc_head = (new_linear(embed_dim, self.ARC_DIM, head) for _ in range(2))
        self.relation_dependent, self.relation_head = (new_linear(embed_dim, self.RELATION_DIM, head) for _ in range(2))
        self.arc = nn.Parameter(torch.zeros(1, self.ARC_DIM + 1, self.ARC_DIM))
        self.relation = nn.Parameter(torch.zeros(head.num_outputs, self.RELATION_DIM + 1, self.RELATION_DIM + 1))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, embed] → [batch, dependent, head, 1 + relations]."""
        arc_dependent, arc_head = (F.gelu(one(hidden_states)) for one in (self.arc_dependent, self.arc_head))
        relation_dependent, relation_head = (with_one(F.gelu(one(hidden_states))) for one in (self.relation_dependent, self.relation_head))
        arcs = torch.einsum("bdi,rij,bhj->bdhr", with_one(arc_dependent), self.arc, arc_head)
        relations = torch.einsum("bdi,rij,bhj->bdhr", relation_dependent, self.relation, relation_head)
        return torch.cat((arcs, relations), dim=-1)


def with_one(states: Tensor) -> Tensor:
    """[..., dim] → [..., dim + 1]: a constant, so that the bilinear form has linear terms."""
    return F.pad(states, (0, 1), value=1.0)


def new_linear(n_inputs: int, n_outputs: int, head: HeadConfig) -> nn.Linear:
    """A linear layer of a head."""
    linear = nn.Linear(n_inputs, n_outputs)
    initialize(linear, head.initializer_range)
    return linear


def added_parameters(model: TransformerWithClfHead) -> tuple[str, ...]:
    """Names of the parameters that begin untrained: those of the head and of what the tuning adds, but for adapters that are fused."""
    return tuple(name for name in model.state_dict() if name.startswith(HEAD) or is_added(name) and not is_fused(name))
