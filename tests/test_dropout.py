"""Dropout draws its own random numbers on a CPU."""

import pytest
import torch

from pretraining_dropout import Dropout

SHAPE = 3, 7, 5003  # not a multiple of the entries that share a random number


@pytest.fixture
def states() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.ones(SHAPE, requires_grad=True)


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.9])
def test_it_zeroes_at_that_rate_and_keeps_the_mean(rate, states):
    dropped = Dropout(rate)(states)
    is_zero = (dropped == 0).double()
    deviation = (rate * (1 - rate) / states.numel()) ** 0.5
    assert is_zero.mean().item() == pytest.approx(rate, abs=4 * deviation)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-4)


def test_its_entries_are_independent(states):
    """Neighbours share a random number, the same place in other rows does not."""
    is_zero = (Dropout(0.5)(states) == 0).double().flatten()
    for distance in (1, 2, 3, 4, 5003):
        pairs = torch.stack((is_zero[:-distance], is_zero[distance:]))
        assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / is_zero.numel() ** 0.5


def test_the_gradient_passes_what_the_output_did(states):
    dropped = Dropout(0.3)(states)
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped)


def test_the_seed_decides(states):
    def dropped(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Dropout(0.3)(states)

    assert torch.equal(dropped(1), dropped(1)) and not torch.equal(dropped(1), dropped(2))


def test_it_is_torch_s_where_nothing_is_drawn(states):
    assert torch.equal(Dropout(0.5).eval()(states), states)
    assert torch.equal(Dropout(0.0)(states), states)
    assert not Dropout(1.0)(states).any()


def test_it_keeps_the_type():
    assert Dropout(0.5)(torch.ones(100, dtype=torch.bfloat16)).dtype == torch.bfloat16
