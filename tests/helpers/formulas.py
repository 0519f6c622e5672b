"""The conditional parts' formulas, worked out number by number and position by position."""

import torch

from layers.conditional import Condition, FiLM

WIDTH, SEQ = 12, 7
TASKS = torch.tensor([1, 0, 2, 1])  # of the sequences of a batch


def condition_of(n_tasks: int = 3, width: int = WIDTH, task_ids=TASKS) -> Condition:
    condition = Condition()
    condition.embeddings, condition.task_ids = torch.randn(n_tasks, width), task_ids
    return condition


def randomize(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter matters."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def modulation(film: FiLM, z: torch.Tensor) -> tuple[list[float], list[float]]:
    """γ and β of one task, number by number."""
    width = film.out_features // 2
    weight, bias, values = film.weight.tolist(), film.bias.tolist(), z.tolist()
    numbers = [
        sum(w * value for w, value in zip(weight[row], values, strict=True)) + bias[row]
        for row in range(2 * width)
    ]
    return numbers[:width], numbers[width:]


def filmed(film: FiLM, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(1 + γ(z)) x + β(z) of a vector."""
    gamma, beta = modulation(film, z)
    return torch.stack([(1 + gamma[i]) * x[i] + beta[i] for i in range(len(x))])


def normed(x: torch.Tensor, eps: float) -> torch.Tensor:
    """A vector with mean 0 and variance 1."""
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return torch.stack([(value - mean) / (variance + eps) ** 0.5 for value in x])


def each_position(function, condition: Condition, x: torch.Tensor) -> torch.Tensor:
    """function(z of its task, vector) for each position of each example."""
    pairs = zip(condition.embeddings[condition.task_ids], x, strict=True)
    return torch.stack([torch.stack([function(z, vector) for vector in states]) for z, states in pairs])


def equal(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
