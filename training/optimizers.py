"""Optimizers and their learning rates."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from config.groups import OptimizationArguments


class TrainableModel(Protocol):
    """A module that tells what its optimizers have to know."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def parameter_depths(self) -> dict[str, int]: ...  # layers between a parameter and the output

    def hidden_matrices(
        self,
    ) -> dict[str, int]: ...  # matrices of hidden layers, and how many are stacked in each


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by a Newton-Schulz iteration (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    For the matrices of hidden layers alone. Differs from torch.optim.Muon in speed: it iterates in the dtype
    that the device is fast at and stacks matrices of one shape. A group's `n_blocks` is the number of
    matrices that lie below one another in its parameters: queries, keys and values are orthogonalized apart.
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
        super().__init__(
            groups,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "n_iterations": n_iterations,
                "n_blocks": 1,
            },
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update = self._momentum(parameter, group["momentum"])
                    blocks = zip(
                        parameter.chunk(group["n_blocks"]), update.chunk(group["n_blocks"]), strict=True
                    )
                    for block, block_update in blocks:
                        by_shape[block.shape].append((block, block_update))
            for (n_rows, n_columns), pairs in by_shape.items():
                directions = self.orthogonalize(
                    torch.stack([update for _, update in pairs]), group["n_iterations"]
                )
                scale = -group["lr"] * math.sqrt(max(1, n_rows / n_columns))
                for (block, _), direction in zip(pairs, directions, strict=True):
                    block.add_(direction, alpha=scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's look-ahead gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)

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


def build_optimizers(model: TrainableModel, config: OptimizationArguments) -> list[torch.optim.Optimizer]:
    """AdamW, with weight decay on matrices alone; with `--optimizer muon`, Muon for the matrices of the
    layers.

    With `layer_lr_decay` below 1, layers farther from the output get smaller learning rates: discriminative
    fine-tuning (ULMFiT: Howard & Ruder 2018, section 3.2).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    depths, stacked = model.parameter_depths(), model.hidden_matrices() if config.optimizer == "muon" else {}
    hidden = [name for name in trained if name in stacked]

    def groups(names: Iterable[str], lr: float, options: Callable[[str], dict]) -> list[dict]:
        alike: dict[tuple, list[Tensor]] = defaultdict(list)
        for name in sorted(names, key=depths.get):
            values = {"lr": lr * config.layer_lr_decay ** depths[name]} | options(name)
            alike[tuple(values.items())].append(trained[name])
        return [{"params": parameters} | dict(values) for values, parameters in alike.items()]

    def decay(name: str) -> dict:
        return {"weight_decay": config.weight_decay if trained[name].dim() >= 2 else 0.0}

    def blocks(name: str) -> dict:
        return {"weight_decay": config.weight_decay, "n_blocks": stacked[name]}

    rest = [
        name for name in trained if name not in hidden
    ]  # lists: a checkpoint knows parameters by their order
    is_fused = next(iter(trained.values())).device.type in ("cuda", "cpu")
    optimizers = [torch.optim.AdamW(groups(rest, config.lr, decay), betas=(0.9, 0.95), fused=is_fused)]
    if hidden:
        optimizers.append(
            Muon(groups(hidden, config.muon_lr, blocks), lr=config.muon_lr, momentum=config.muon_momentum)
        )
    return optimizers


@dataclass
class JointOptimizer:
    """Several optimizers that the gradient scaler of fp16 takes for one: if any gradient overflows, none of
    them steps.
    """

    optimizers: list[torch.optim.Optimizer]

    @property
    def param_groups(self) -> list[dict]:
        """Those of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """A step of each."""
        for optimizer in self.optimizers:
            optimizer.step()


def learning_rate_factor(step: int, n_warmup: int, n_steps: int, schedule: str) -> float:
    """Linear from 0 to 1 over the warm-up, then down to 0 along a cosine (GPT) or a line (BERT, ULMFiT)."""
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = min(1.0, (step - n_warmup) / max(1, n_steps - n_warmup))
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
