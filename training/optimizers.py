"""Optimizers and their learning rates."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from config.groups import OptimizationArguments


@runtime_checkable
class TrainableModel(Protocol):
    """A module that tells its optimizers about its parameters, by their names."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameter_depths(self) -> dict[str, int]:
        """How many layers lie between each parameter and the output."""

    def hidden_matrices(self) -> dict[str, int]:
        """The matrices of hidden layers, and how many are stacked in each."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by a Newton-Schulz iteration (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    Only for the matrices of hidden layers. Faster than torch.optim.Muon: it iterates in the dtype that the
    device is fast at, on all matrices of one shape at once. A group's `n_blocks` is the number of matrices
    stacked in each of its parameters: queries, keys and values are orthogonalized separately.
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        n_iterations: int = 5,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults | {"n_iterations": n_iterations, "n_blocks": 1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._momentum(parameter, parameter.grad, group["momentum"])
                    blocks = parameter.chunk(group["n_blocks"])
                    for block, block_update in zip(blocks, update.chunk(group["n_blocks"]), strict=True):
                        by_shape[block.shape].append((block, block_update))
            for (n_rows, n_columns), pairs in by_shape.items():
                updates = torch.stack([update for _, update in pairs])
                scale = -group["lr"] * math.sqrt(max(1, n_rows / n_columns))
                directions = self.orthogonalize(updates, group["n_iterations"])
                for (block, _), direction in zip(pairs, directions, strict=True):
                    block.add_(direction, alpha=scale)

    def _momentum(self, parameter: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's look-ahead gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum_buffer"], momentum)

    @classmethod
    def orthogonalize(cls, matrices: Tensor, n_iterations: int) -> Tensor:
        """[n, rows, columns] → nearly semi-orthogonal matrices with the same singular vectors."""
        a, b, c = cls.COEFFICIENTS
        is_tall = matrices.size(1) > matrices.size(2)
        x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
        x = x.mT if is_tall else x
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(n_iterations):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if is_tall else x).to(matrices.dtype)


def build_optimizers(
    model: TrainableModel, config: OptimizationArguments, scales: Mapping[str, float] | None = None
) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices only; with `--optimizer muon`, Muon for the hidden matrices.
    `scales` are factors of the learning rates of some parameters, which AdamW then trains.

    With `layer_lr_decay` below 1, layers farther from the output get smaller learning rates: discriminative
    fine-tuning (ULMFiT: Howard & Ruder 2018, section 3.2).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths, n_blocks = model.parameter_depths(), model.hidden_matrices()
    # Lists, not sets: a checkpoint knows parameters by their order.
    scales = scales or {}
    are_hidden = n_blocks.keys() - scales.keys() if config.optimizer == "muon" else set()
    for_muon = [name for name in trained if name in are_hidden]
    for_adamw = [name for name in trained if name not in for_muon]

    def groups(names: list[str], lr: float, options: Callable[[str], dict]) -> list[dict]:
        by_options: dict[tuple, list[Tensor]] = defaultdict(list)
        for name in sorted(names, key=lambda name: depths[name]):
            scale = scales.get(name, 1.0) * config.layer_lr_decay ** depths[name]
            group_options = {"lr": lr * scale} | options(name)
            by_options[tuple(group_options.items())].append(trained[name])
        return [{"params": parameters} | dict(values) for values, parameters in by_options.items()]

    def adamw_options(name: str) -> dict:
        return {"weight_decay": config.weight_decay if trained[name].dim() >= 2 else 0.0}

    def muon_options(name: str) -> dict:
        return {"weight_decay": config.weight_decay, "n_blocks": n_blocks[name]}

    adamw_groups = groups(for_adamw, config.lr, adamw_options)
    is_fused = next(iter(trained.values())).device.type in ("cuda", "cpu")
    adamw = torch.optim.AdamW(adamw_groups, betas=(0.9, 0.95), fused=is_fused)
    if not for_muon:
        return [adamw]
    muon_groups = groups(for_muon, config.muon_lr, muon_options)
    return [adamw, Muon(muon_groups, config.muon_lr, config.muon_momentum)]


class JointOptimizer(torch.optim.Optimizer):
    """Several optimizers as one for the gradient scaler of fp16: if any gradient overflows, none steps.

    The scaler reads only the parameters of its groups.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


def learning_rate_factor(step: int, n_warmup: int, n_steps: int, schedule: str) -> float:
    """Linear from 0 to 1 over the warm-up, then down to 0 along a cosine (GPT) or a line (BERT, ULMFiT)."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
