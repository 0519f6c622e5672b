"""What fine-tuning trains, by name: all of the model, its head, its biases, or modules that are added to a
frozen transformer.

Bottleneck adapters and their fusion fill the slots of a layer; LoRA stands in for a linear layer. None of
them changes the names of the transformer's own weights, so a checkpoint loads with or without them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.errors import UserError
from pretraining_model import ACTIVATIONS, Transformer, TransformerLayer, initialize


@dataclass
class Tuning:
    """What is trained, and the sizes of what is added."""

    name: str = "full"
    width: int = 64  # of a bottleneck
    activation: str = "gelu"
    rank: int = 8  # of LoRA
    alpha: float = 8.0
    fused: dict[str, dict] = field(default_factory=dict)  # name of an adapter → its tuning, for fusion
    drop_last: bool = False  # no adapters and no fusion in the last layer

    @property
    def is_full(self) -> bool:
        """Does the whole model train?"""
        return self.name == "full"


# ---------------------------------------------------------------------------------------- bottleneck adapters


class Adapter(nn.Module):
    """A bottleneck with a residual connection (Houlsby et al. 2019, section 2.1), near the identity at the
    start.
    """

    def __init__(self, embed_dim: int, width: int, activation: str = "gelu"):
        super().__init__()
        self.down = nn.Linear(embed_dim, width)
        self.up = nn.Linear(width, embed_dim)
        self.activation = ACTIVATIONS[activation]()
        initialize(self.down, std=embed_dim**-0.5)
        initialize(self.up, std=1e-3)

    def read(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """What goes into the bottleneck: the output of the sub-layer."""
        return output

    def bottleneck(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., embed]."""
        return self.up(self.activation(self.down(hidden_states)))

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """[..., embed] → [..., embed]."""
        return output + self.bottleneck(self.read(output, residual, norm))


class PfeifferAdapter(Adapter):
    """The same bottleneck, which reads what the layer would hand on (Pfeiffer et al. 2021, section 3.1 and
    appendix).
    """

    def read(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """The residual sum; normalised, where the layer normalises it."""
        return output + residual if norm is None else norm(output + residual)


class AdapterFusion(nn.Module):
    """Attention over the outputs of several trained adapters (Pfeiffer et al. 2021, section 3.2).

    The query is what the adapters read, keys and values are what their bottlenecks put out. The value matrix
    starts as the identity, so that training begins with a mean of the adapters.
    """

    def __init__(self, embed_dim: int, adapters: dict[str, Adapter], initializer_range: float):
        super().__init__()
        self.adapters = nn.ModuleDict(adapters)
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        initialize(self.query, initializer_range)
        initialize(self.key, initializer_range)
        nn.init.eye_(self.value.weight)

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """[batch, seq, embed] → [batch, seq, embed]."""
        adapters = list(self.adapters.values())
        seen = adapters[0].read(output, residual, norm)
        outputs = torch.stack(
            [adapter.bottleneck(seen) for adapter in adapters], dim=2
        )  # [batch, seq, adapters, embed]
        scores = torch.einsum("bse,bsae->bsa", self.query(seen), self.key(outputs))
        return output + torch.einsum("bsa,bsae->bse", scores.softmax(-1), self.value(outputs))


# ------------------------------------------------------------------------------------------------------- LoRA


class LoRALinear(nn.Linear):
    """The layer that makes queries, keys and values, with a low-rank update of the first and the last (Hu et
    al. 2022, sections 4.1 and 4.2). The update is zero at the start.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        self.lora_down = nn.Parameter(torch.empty(2, rank, self.in_features))
        self.lora_up = nn.Parameter(torch.zeros(2, self.in_features, rank))
        nn.init.kaiming_uniform_(self.lora_down[0], a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.lora_down[1], a=math.sqrt(5))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., 3 * embed]."""
        query, key, value = super().forward(hidden_states).chunk(3, dim=-1)
        query_update, value_update = (
            F.linear(F.linear(hidden_states, down), up) * self.scale
            for down, up in zip(self.lora_down, self.lora_up, strict=True)
        )
        return torch.cat((query + query_update, key, value + value_update), dim=-1)


# --------------------------------------------------------------------------------------- what trains, by name


def add_houlsby(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Two adapters: behind attention and behind feed-forward."""
    layer.after_attention = Adapter(embed_dim, tuning.width, tuning.activation)
    layer.after_feed_forward = Adapter(embed_dim, tuning.width, tuning.activation)


def add_pfeiffer(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """One adapter, behind feed-forward."""
    layer.after_feed_forward = PfeifferAdapter(embed_dim, tuning.width, tuning.activation)


def add_lora(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Low-rank updates of queries and values."""
    layer.attention.query_key_value = LoRALinear(layer.attention.query_key_value, tuning.rank, tuning.alpha)


def add_fusion(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Several Pfeiffer adapters, and attention over them."""
    adapters = {
        name: PfeifferAdapter(embed_dim, one["width"], one["activation"])
        for name, one in tuning.fused.items()
    }
    layer.after_feed_forward = AdapterFusion(embed_dim, adapters, initializer_range)


def nothing(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Leave the layer as it is."""


def is_added(name: str) -> bool:
    """Is it the name of a parameter that no checkpoint of a transformer has?"""
    return ".after_" in name or ".lora_" in name


def is_fused(name: str) -> bool:
    """Is it the name of a parameter of an adapter that was trained before its fusion?"""
    return ".adapters." in name


@dataclass(frozen=True)
class Method:
    """What a kind of tuning adds to a layer, and which parameters of the transformer it trains, by name."""

    add: Callable[[TransformerLayer, Tuning, int, float], None]
    trains: Callable[[str], bool]
    settings: tuple[str, ...] = ()  # of a Tuning, those that matter to it


METHODS = {
    "full": Method(nothing, lambda name: True),
    "head": Method(nothing, lambda name: False),
    "bitfit": Method(nothing, lambda name: name.endswith("bias")),  # Ben Zaken et al. 2022
    "houlsby": Method(
        add_houlsby, lambda name: is_added(name) or "norm" in name, ("width", "activation", "drop_last")
    ),
    "pfeiffer": Method(add_pfeiffer, is_added, ("width", "activation", "drop_last")),
    "lora": Method(add_lora, is_added, ("rank", "alpha", "drop_last")),
    "fusion": Method(add_fusion, lambda name: is_added(name) and not is_fused(name), ("drop_last",)),
}
FLAGS = {
    "width": "adapters_dim",
    "activation": "adapter_activation",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "drop_last": "drop_last",
}


def apply_tuning(transformer: Transformer, tuning: Tuning, initializer_range: float) -> None:
    """Add to a transformer what the tuning adds, and freeze what it does not train."""
    method = METHODS[tuning.name]
    layers = list(transformer.layers)
    for layer in layers[:-1] if tuning.drop_last else layers:
        method.add(layer, tuning, transformer.config.embed_dim, initializer_range)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad = parameter.requires_grad and method.trains(name)


def saved_names(model: nn.Module, tuning: Tuning) -> set[str]:
    """The names of the weights that a run has to keep: all, or those that its base does not have."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name for name in model.state_dict() if tuning.is_full or name in trained or is_added(name)}


def check_settings(name: str, **given: int | bool) -> None:
    """Raises UserError for settings that a tuning by this name does not have. They are off unless somebody
    gives them.
    """
    settings = METHODS[name].settings
    for setting, value in given.items():
        if value and setting not in settings:
            known = ", ".join(f"--{FLAGS[one]}" for one in settings) or "none"
            raise UserError(f"--{FLAGS[setting]} does not apply to --tuning {name}; flags that do: {known}")
