"""The heads of fine-tuning: for texts, choices, tags, answers and dependency trees."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.constants import IGNORE_INDEX
from config.model import TransformerConfig
from layers.adapters import Tuning, apply_tuning, is_added, is_fused
from pretraining_attention import at_positions
from pretraining_dropout import Dropout
from pretraining_model import LanguageModel, initialize

HEAD_PREFIX = "classification_head."  # of the names of its weights


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


class ClfHead(nn.Linear):
    """Scores of a text, pooled to one state: of its classes, a number, or how well a choice fits."""

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(len(head.pooling.split("_")) * config.embed_dim, head.num_outputs)
        initialize(self, head.initializer_range)
        self.causal, self.pooling, self.dropout = config.causal, head.pooling, Dropout(config.dropout)

    @property
    def reads_only_cls(self) -> bool:
        """Whether `score` reads the state of [CLS] alone: then most of the last layer is not computed."""
        return self.pooling == "cls"

    def score(self, hidden_states: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Logits [texts, num_outputs] from hidden states [texts, seq, embed] (or [texts, 1, embed] of [CLS]).

        With `n_choices` [batch] they are [batch, choices], -inf for choices that an example does not have.
        """
        is_pooled = self.reads_only_cls and hidden_states.size(1) == 1
        if is_pooled:
            pooled = hidden_states.squeeze(1)
        else:
            pooled = pool(hidden_states, attention_mask, self.pooling, self.causal)
        logits = self(self.dropout(pooled))
        if "n_choices" not in inputs:
            return logits
        n_choices = inputs["n_choices"].unsqueeze(1)
        logits = logits.view(len(n_choices), -1)
        return logits.masked_fill(torch.arange(logits.size(1), device=logits.device) >= n_choices, -math.inf)

    def loss(self, logits: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy, or squared error for a single output, summed over the batch; labels [batch]."""
        if logits.size(1) == 1:
            return F.mse_loss(logits.squeeze(1), labels.float(), reduction="sum")
        return F.cross_entropy(logits, labels, reduction="sum")

    def entropy(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch]: of the classes or choices, as of `relative_entropy`; NaN for a number."""
        is_number = logits.size(1) == 1 and "n_choices" not in inputs
        return torch.full_like(logits[:, 0], math.nan) if is_number else relative_entropy(logits)


class TagHead(nn.Linear):
    """Scores of the tags of each token (Devlin et al. 2019, figure 4d)."""

    reads_only_cls = False

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(config.embed_dim, head.num_outputs)
        initialize(self, head.initializer_range)
        self.dropout = Dropout(config.dropout)

    def score(self, hidden_states: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch, seq, embed] → [batch, seq, tags]."""
        return self(self.dropout(hidden_states))

    def loss(self, logits: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the tags, labels [batch, seq] (-100: none), summed over words."""
        return summed_cross_entropy(logits, labels)

    def entropy(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch]: the mean over words of the entropies of their tags."""
        return mean_over_words(relative_entropy(logits), inputs["word_mask"])


class AnswerHead(TagHead):
    """For each token, the scores that an answer begins or ends there (Devlin et al. 2019, figure 4c)."""

    def score(self, hidden_states: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch, seq, embed] → [batch, seq, 2], -inf where `span_mask` [batch, seq] is 0."""
        logits = super().score(hidden_states, attention_mask, inputs)
        return logits.masked_fill(inputs["span_mask"].unsqueeze(-1) == 0, -math.inf)

    def loss(self, logits: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean of the cross-entropies of the answer's two ends, labels [batch, 2], summed over the batch."""
        return F.cross_entropy(logits, labels, reduction="sum") / 2

    def entropy(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch]: the mean of the entropies of the answer's two ends."""
        return relative_entropy(logits.transpose(1, 2)).mean(1)


class Biaffine(nn.Module):
    """A bilinear form over all pairs of a dependent and a head (Dozat & Manning 2017, equations 4 to 9)."""

    ARC_DIM, RELATION_DIM = 512, 128

    def __init__(self, embed_dim: int, head: HeadConfig):
        super().__init__()
        self.arc_dependent = new_linear(embed_dim, self.ARC_DIM, head)
        self.arc_head = new_linear(embed_dim, self.ARC_DIM, head)
        self.relation_dependent = new_linear(embed_dim, self.RELATION_DIM, head)
        self.relation_head = new_linear(embed_dim, self.RELATION_DIM, head)
        self.arc = nn.Parameter(torch.zeros(1, self.ARC_DIM + 1, self.ARC_DIM))
        self.relation = nn.Parameter(
            torch.zeros(head.num_outputs, self.RELATION_DIM + 1, self.RELATION_DIM + 1)
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[batch, seq, embed] → [batch, dependent, head, 1 + relations]."""
        arc_dependent = append_one(F.gelu(self.arc_dependent(hidden_states)))
        arc_head = F.gelu(self.arc_head(hidden_states))
        relation_dependent = append_one(F.gelu(self.relation_dependent(hidden_states)))
        relation_head = append_one(F.gelu(self.relation_head(hidden_states)))
        arcs = torch.einsum("bdi,rij,bhj->bdhr", arc_dependent, self.arc, arc_head)
        relations = torch.einsum("bdi,rij,bhj->bdhr", relation_dependent, self.relation, relation_head)
        return torch.cat((arcs, relations), dim=-1)


class ParserHead(Biaffine):
    """Scores of all arcs between words and of their relations (Dozat & Manning 2017, section 2)."""

    reads_only_cls = False

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(config.embed_dim, head)
        self.causal, self.dropout = config.causal, Dropout(config.dropout)

    def score(self, hidden_states: Tensor, attention_mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch, seq, embed] → [batch, dependent, head, 1 + relations], of the arc and its relations.

        Only words (`word_mask` [batch, seq]) and [CLS], the root, can be heads.
        """
        logits = self(self.dropout(hidden_states))
        root = F.one_hot(cls_positions(attention_mask, self.causal), hidden_states.size(1))
        is_head = (inputs["word_mask"] + root) > 0
        arcs = logits[..., :1].masked_fill(~is_head[:, None, :, None], -math.inf)
        return torch.cat((arcs, logits[..., 1:]), dim=-1)

    def loss(self, logits: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of the `heads` [batch, seq] plus that of the relations, summed over words.

        The relations, labels [batch, seq], are scored on the true arcs.
        """
        heads = inputs["heads"]
        at_heads = heads.clamp(min=0)[:, :, None, None].expand(-1, -1, 1, logits.size(-1))
        relations = logits.gather(2, at_heads).squeeze(2)[..., 1:]
        labels = labels.masked_fill(heads == IGNORE_INDEX, IGNORE_INDEX)
        return summed_cross_entropy(logits[..., 0], heads) + summed_cross_entropy(relations, labels)

    def entropy(self, logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """[batch]: the mean over words of the entropies of their heads."""
        return mean_over_words(relative_entropy(logits[..., 0]), inputs["word_mask"])


Head = ClfHead | TagHead | ParserHead


class TransformerWithClfHead(LanguageModel):
    """Transformer with a head for texts: classes, a number, or the score of a choice.

    It keeps the LM head, for an auxiliary loss. Subclasses, which `--finetuning_model_class` finds by name,
    have other heads: a `head_class` with `reads_only_cls`, `score` and `loss`.
    """

    head_class: ClassVar[type[Head]] = ClfHead

    def __init_subclass__(cls):
        MODEL_CLASSES[cls.__name__] = cls

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(config)
        self.head = head
        self.adversarial_epsilon = 0.0  # how far training inputs move, relative to their norm
        self.classification_head = self.head_class(config, head)
        apply_tuning(self.transformer, head.tuning, head.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        lm_labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> Tensor | dict[str, Tensor]:
        """Score a batch that is padded on the right.

        Args:
            input_ids, attention_mask: [batch, seq], or [batch, choices, seq]; [CLS] last for a causal model,
                first for a bidirectional one.
            labels: what the head's `loss` wants.
            lm_labels: like input_ids, aligned with the positions; -100 asks for no loss. Without them no LM
                logits are computed.
            token_type_ids: like input_ids, the segment of each token, for models with segment embeddings.
            inputs: whatever else the head's `score` and `loss` read of the batch.
        Returns: logits as of `score`, in float32; or, with `labels`, the summed losses `clf` and, with
            `lm_labels`, `lm`.
        """
        head = self.classification_head
        input_ids, flat_mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        token_type_ids = None if token_type_ids is None else token_type_ids.flatten(0, -2)
        # Right padding lies in the future of all real tokens. Without a mask, attention is at its fastest.
        mask = None if self.config.causal else flat_mask
        only_cls = head.reads_only_cls and lm_labels is None
        query_positions = cls_positions(flat_mask, self.config.causal) if only_cls else None

        def encode(embeddings: Tensor) -> tuple[Tensor, Tensor]:
            states = self.transformer.encode(embeddings, mask, query_positions=query_positions)
            return states, head.score(states, flat_mask, inputs).float()

        embeddings = self.transformer.embed(input_ids, mask, token_type_ids)
        if labels is not None and self.is_adversarial_turn():
            change = worst_change(embeddings, flat_mask, lambda x: head.loss(encode(x)[1], labels, inputs))
            embeddings = embeddings + self.adversarial_epsilon * change
        hidden_states, logits = encode(embeddings)
        if labels is None:
            return logits
        losses = {"clf": head.loss(logits, labels, inputs)}
        if lm_labels is not None:
            losses["lm"] = self.loss(hidden_states, lm_labels.flatten(0, -2))
        return losses

    def is_adversarial_turn(self) -> bool:
        """Whether to train on moved inputs: in half of the micro-batches, by chance.

        The paper adds up the losses of moved and unmoved inputs, which takes more time for the same number of
        examples.
        """
        return self.training and self.adversarial_epsilon > 0 and bool(torch.rand(()) < 0.5)


MODEL_CLASSES: dict[str, type[TransformerWithClfHead]] = {"TransformerWithClfHead": TransformerWithClfHead}


class TransformerWithTagHead(TransformerWithClfHead):
    """Transformer that tags words."""

    head_class = TagHead


class TransformerWithAnswerHead(TransformerWithClfHead):
    """Transformer that marks answers in texts."""

    head_class = AnswerHead


class TransformerWithParserHead(TransformerWithClfHead):
    """Transformer that draws dependency trees."""

    head_class = ParserHead


def worst_change(embeddings: Tensor, attention_mask: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of all changes as large as the embeddings, the one that raises the loss most, to first order.

    It is ‖x‖ g / ‖g‖ for embeddings x [batch, seq, embed] at which `loss`, summed over the batch, has the
    gradient g; the norms are over a sequence (Miyato, Dai & Goodfellow 2017, equation 3, where embeddings are
    normalized, and ‖x‖ is a constant).
    """
    x = embeddings.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    size = (x * attention_mask.unsqueeze(-1)).norm(dim=(1, 2), keepdim=True)
    return size * gradient / gradient.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def cls_positions(attention_mask: Tensor, causal: bool) -> Tensor:
    """[batch]: [CLS] comes last in a causal model, first in a bidirectional one."""
    lengths = attention_mask.sum(1)
    return lengths - 1 if causal else torch.zeros_like(lengths)


def pool(hidden_states: Tensor, attention_mask: Tensor, pooling: str, causal: bool) -> Tensor:
    """[batch, seq, embed] → [batch, n_poolings * embed].

    `pooling` names what is concatenated: the state of [CLS], and the mean and maximum over the real tokens
    (Howard & Ruder 2018, section 3.3).
    """
    mask, cls = attention_mask.unsqueeze(-1), cls_positions(attention_mask, causal)
    poolings = {
        "cls": lambda: at_positions(hidden_states, cls).squeeze(1),
        "mean": lambda: (hidden_states * mask).sum(1) / mask.sum(1),
        "max": lambda: hidden_states.masked_fill(mask == 0, -math.inf).amax(1),
    }
    return torch.cat([poolings[name]() for name in pooling.split("_")], dim=-1)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed over all positions: logits [batch, seq, classes], labels [batch, seq] (-100: none)."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")


def relative_entropy(logits: Tensor) -> Tensor:
    """[..., classes] → [...]: the entropy of the prediction over the logarithm of the number of classes, from
    0 to 1. Classes with a logit of -inf do not count."""
    log_probabilities = logits.log_softmax(-1)
    summands = log_probabilities.exp() * log_probabilities.masked_fill(logits == -math.inf, 0.0)
    n_classes = (logits != -math.inf).sum(-1)
    return -summands.sum(-1) / (n_classes.log() + 1e-5)


def mean_over_words(values: Tensor, word_mask: Tensor) -> Tensor:
    """[batch, seq] → [batch]: the mean where `word_mask` is 1; 0 if there are no words."""
    return (values * word_mask).sum(1) / word_mask.sum(1).clamp(min=1)


def append_one(states: Tensor) -> Tensor:
    """[..., dim] → [..., dim + 1]: a constant gives the bilinear form its linear terms."""
    return F.pad(states, (0, 1), value=1.0)


def new_linear(n_inputs: int, n_outputs: int, head: HeadConfig) -> nn.Linear:
    """A linear layer, initialized as the head asks for."""
    linear = nn.Linear(n_inputs, n_outputs)
    initialize(linear, head.initializer_range)
    return linear


def untrained_names(model: TransformerWithClfHead) -> set[str]:
    """Names of the weights that start untrained: the head's, and the tuning's except adapters to fuse."""
    return {
        name
        for name in model.state_dict()
        if name.startswith(HEAD_PREFIX) or (is_added(name) and not is_fused(name))
    }
