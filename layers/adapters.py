"""What fine-tuning trains, by name: all of the model, its head, its biases, or modules added to a frozen one.

Bottleneck adapters and their fusion fill the slots of a layer; LoRA replaces a linear layer. None of them
changes the names of the transformer's own weights, so a checkpoint loads with or without them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.errors import UserError
from pretraining_model import ACTIVATIONS, Transformer, TransformerLayer, initialize


@dataclass
class Tuning:
    """The method by its name in METHODS, and its settings."""

    name: str = "full"
    width: int = 64  # of a bottleneck
    activation: str = "gelu"
    rank: int = 8  # of LoRA
    alpha: float = 8.0
    fused: dict[str, dict] = field(default_factory=dict)  # name of an adapter → its tuning, for fusion
    drop_last: bool = False  # no adapters and no fusion in the last layer

    @property
    def is_full(self) -> bool:
        """Whether the whole model trains."""
        return self.name == "full"


# ---------------------------------------------------------------------------------------- bottleneck adapters


class Adapter(nn.Module):
    """A bottleneck with a residual connection, near the identity at first (Houlsby et al. 2019, sec. 2.1)."""

    def __init__(self, embed_dim: int, width: int, activation: str = "gelu"):
        super().__init__()
        self.down = nn.Linear(embed_dim, width)
        self.up = nn.Linear(width, embed_dim)
        self.activation = ACTIVATIONS[activation]()
        initialize(self.down, std=embed_dim**-0.5)
        initialize(self.up, std=1e-3)

    def bottleneck_input(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """The output of the sub-layer, [batch, seq, embed]."""
        return output

    def bottleneck(self, hidden_states: Tensor) -> Tensor:
        """[..., embed] → [..., embed]."""
        return self.up(self.activation(self.down(hidden_states)))

    def forward(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """[..., embed] → [..., embed]."""
        return output + self.bottleneck(self.bottleneck_input(output, residual, norm))


class PfeifferAdapter(Adapter):
    """A bottleneck that reads the output of the whole layer (Pfeiffer et al. 2021, section 3.1, appendix)."""

    def bottleneck_input(self, output: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
        """The residual sum, normalised if the layer is post-norm."""
        return output + residual if norm is None else norm(output + residual)


class AdapterFusion(nn.Module):
    """Attention over the outputs of several trained adapters (Pfeiffer et al. 2021, section 3.2).

    The query is the adapters' input, keys and values are their bottlenecks' outputs. The value matrix starts
    as the identity, so training begins with a mean of the adapters.
    """

    def __init__(self, embed_dim: int, adapters: Mapping[str, Adapter], initializer_range: float):
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
        adapters = cast(list[Adapter], list(self.adapters.values()))  # ModuleDict is not generic
        inputs = adapters[0].bottleneck_input(output, residual, norm)
        outputs = torch.stack([adapter.bottleneck(inputs) for adapter in adapters], dim=2)
        weights = self.attention(inputs, outputs)
        return output + torch.einsum("bsa,bsae->bse", weights, self.value(outputs))

    def attention(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """How much of each adapter is taken, [batch, seq, adapters], from what all of them read, [batch, seq,
        embed], and their outputs, [batch, seq, adapters, embed].
        """
        # b: batch, s: sequence, a: adapters, e: embedding
        return torch.einsum("bse,bsae->bsa", self.query(inputs), self.key(outputs)).softmax(-1)


# ------------------------------------------------------------------------------------------------------- LoRA


class LoRALinear(nn.Linear):
    """The linear layer for queries, keys and values, with low-rank updates of queries and values.

    The updates start at zero (Hu et al. 2022, sections 4.1 and 4.2).
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


# ---------------------------------------------------------------------------------------------------- methods


def add_houlsby(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Two adapters, after attention and after feed-forward."""
    layer.after_attention = Adapter(embed_dim, tuning.width, tuning.activation)
    layer.after_feed_forward = Adapter(embed_dim, tuning.width, tuning.activation)


def add_pfeiffer(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """One adapter, after feed-forward."""
    layer.after_feed_forward = PfeifferAdapter(embed_dim, tuning.width, tuning.activation)


def add_lora(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Low-rank updates of queries and values."""
    layer.attention.query_key_value = LoRALinear(layer.attention.query_key_value, tuning.rank, tuning.alpha)


def add_fusion(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Several Pfeiffer adapters, and attention over them."""
    adapters = {
        name: PfeifferAdapter(embed_dim, adapter["width"], adapter["activation"])
        for name, adapter in tuning.fused.items()
    }
    layer.after_feed_forward = AdapterFusion(embed_dim, adapters, initializer_range)


def add_nothing(layer: TransformerLayer, tuning: Tuning, embed_dim: int, initializer_range: float) -> None:
    """Leave the layer as it is."""


def is_added(name: str) -> bool:
    """Whether a parameter of this name belongs to a module that a tuning adds."""
    return ".after_" in name or ".lora_" in name


def is_fused(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter that was trained before its fusion."""
    return ".adapters." in name


@dataclass(frozen=True)
class Method:
    """What a tuning adds to a layer, and which of the transformer's parameters it trains, by name."""

    add: Callable[[TransformerLayer, Tuning, int, float], None]
    trains: Callable[[str], bool]
    settings: tuple[str, ...] = ()  # the fields of Tuning that apply to it


METHODS = {
    "full": Method(add_nothing, lambda name: True),
    "head": Method(add_nothing, lambda name: False),
    "bitfit": Method(add_nothing, lambda name: name.endswith("bias")),  # Ben Zaken et al. 2022
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
    """Add the tuning's modules to a transformer, and freeze what it does not train."""
    method = METHODS[tuning.name]
    layers = [module for module in transformer.layers if isinstance(module, TransformerLayer)]
    for layer in layers[:-1] if tuning.drop_last else layers:
        method.add(layer, tuning, transformer.config.embed_dim, initializer_range)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad = parameter.requires_grad and method.trains(name)


def saved_names(model: nn.Module, tuning: Tuning) -> set[str]:
    """The names of the weights that a run has to store: all, or those that its base does not have."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name for name in model.state_dict() if tuning.is_full or name in trained or is_added(name)}


def check_settings(name: str, **settings: int | bool) -> None:
    """Raises UserError if one of the settings is on and does not apply to the tuning of this name."""
    applicable = METHODS[name].settings
    for setting, value in settings.items():
        if value and setting not in applicable:
            flags = ", ".join(f"--{FLAGS[setting]}" for setting in applicable) or "none"
            raise UserError(f"--{FLAGS[setting]} does not apply to --tuning {name}; flags that do: {flags}")
