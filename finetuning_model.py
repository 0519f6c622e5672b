"""The pretrained transformer with a classification head, and adapters that plug into its layers."""
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arguments import UserError
from pretraining_model import TransformerConfig, TransformerWithLMHead, initialize
from utils import WEIGHTS, file_digest, load_into, load_weights, read_run_config


@dataclass
class HeadConfig:
    """What fine-tuning adds to a transformer. One output: regression."""

    num_outputs: int
    pooling: str = "cls"
    adapters_dim: int = 0
    initializer_range: float = 0.02


class TransformerWithClfHead(TransformerWithLMHead):
    """Transformer with a classification (or regression) head, and the language-modelling head for an auxiliary loss."""

    def __init__(self, config: TransformerConfig, head: HeadConfig):
        super().__init__(config)
        self.head = head
        self.dropout = nn.Dropout(config.dropout)
        self.classification_head = nn.Linear(config.embed_dim * len(head.pooling.split("_")), head.num_outputs)
        initialize(self.classification_head, head.initializer_range)
        if head.adapters_dim:
            add_adapters(self, head.adapters_dim)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, lm_labels: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Classify a batch that is padded on the right.

        Args:
            input_ids, attention_mask: [batch, seq]; [CLS] last for a causal model, first for a bidirectional one.
            labels: [batch], class ids, or numbers for regression.
            lm_labels: [batch, seq], aligned with the positions; -100 asks for no loss. Without them no LM logits are computed.
        Returns: logits [batch, num_outputs]; or, with `labels`, the summed losses `clf` and (if asked for) `lm`.
        """
        # Right padding lies in the future: a causal model that gets no mask can use the fastest attention.
        mask = None if self.config.causal else attention_mask
        if self.head.pooling == "cls" and lm_labels is None:
            pooled = self.transformer(input_ids, mask, only=self.cls_positions(attention_mask)).squeeze(1)
        else:
            hidden_states = self.transformer(input_ids, mask)
            pooled = self.pool(hidden_states, attention_mask)
        logits = self.classification_head(self.dropout(pooled)).float()
        if labels is None:
            return logits
        losses = {"clf": classification_loss(logits, labels)}
        if lm_labels is not None:
            losses["lm"] = self.loss(hidden_states, lm_labels)
        return losses

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


class Adapter(nn.Module):
    """A bottleneck with a residual connection (Houlsby et al. 2019, section 2.1), near the identity at the start."""

    def __init__(self, embed_dim: int, adapters_dim: int):
        super().__init__()
        self.down = nn.Linear(embed_dim, adapters_dim)
        self.up = nn.Linear(adapters_dim, embed_dim)
        initialize(self.down, std=embed_dim**-0.5)
        initialize(self.up, std=1e-3)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., embed]."""
        return hidden_states + self.up(F.gelu(self.down(hidden_states)))


def add_adapters(model: TransformerWithLMHead, adapters_dim: int) -> None:
    """Fill both slots of every layer with an adapter and freeze all else but the LayerNorms and the head."""
    for layer in model.transformer.layers:
        layer.after_attention = Adapter(model.config.embed_dim, adapters_dim)
        layer.after_feed_forward = Adapter(model.config.embed_dim, adapters_dim)
    trained = {id(one) for module in model.modules() if isinstance(module, Adapter | nn.LayerNorm) for one in module.parameters()}
    trained |= {id(one) for one in model.classification_head.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad = id(parameter) in trained


def load_finetuned(folder: str | Path, flag: str) -> tuple[TransformerWithClfHead, list[str] | None]:
    """The model of a fine-tuning run folder and its labels (None: regression).

    Adapters are put onto the base that they were trained on. Raises UserError if the folder is not a fine-tuning run,
    or if the base is missing or not the same any more.
    """
    config = read_run_config(folder, flag)
    if "head" not in config:
        raise UserError(f"{flag} {folder} holds a pretrained model without a classification head; fine-tune it first")
    model_class = find_model_class(config["arguments"]["finetuning_model_class"])
    model = model_class(TransformerConfig(**config["model"]), HeadConfig(**config["head"]))
    weights = load_weights(Path(folder) / WEIGHTS)
    if config["base"]:
        weights = load_weights(find_base(Path(folder), config["base"])) | weights
    load_into(model, weights, f"{flag} {folder}")
    return model, config["labels"]


def find_model_class(name: str) -> type[TransformerWithClfHead]:
    """The class of this module that `--finetuning_model_class` names. Raises UserError if it is not a classifier."""
    model_class = globals().get(name)
    if not (isinstance(model_class, type) and issubclass(model_class, TransformerWithClfHead)):
        raise UserError(f"--finetuning_model_class {name} is not a classifier of finetuning_model.py")
    return model_class


def find_base(folder: Path, base: dict) -> Path:
    """The weights that a run folder's adapters belong to. Raises UserError if they are gone or others."""
    candidates = [folder / base["relative_path"] / WEIGHTS, Path(base["path"]) / WEIGHTS]
    file = next((one for one in candidates if one.is_file()), None)
    if file is None:
        raise UserError(f"the adapters of {folder} need the pretrained model {base['path']}, which is not there any more")
    if file_digest(file) != base["sha256"]:
        raise UserError(f"the adapters of {folder} were trained on other weights than {file} now holds")
    return file


def added_parameters(model: TransformerWithClfHead) -> tuple[str, ...]:
    """Names of the parameters that a pretrained checkpoint cannot hold."""
    return tuple(name for name in model.state_dict() if "classification_head." in name or ".after_" in name)


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, or squared error for a single output, summed over the batch."""
    if logits.size(1) == 1:
        return F.mse_loss(logits.squeeze(1), labels.float(), reduction="sum")
    return F.cross_entropy(logits, labels, reduction="sum")
