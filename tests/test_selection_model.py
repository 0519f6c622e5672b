"""Embedding Space Maps against least squares, refits and optimization."""

import pytest
import torch

from selection_model import RIDGES, LinearMap, build_map, fit_low_rank, fit_ridge, mean_error, ridge_update

N, WIDTH = 60, 6


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Of a base model, not centred, and of one that changes them along two directions and by some noise."""
    torch.manual_seed(0)
    base = torch.randn(N, WIDTH) + 3
    change = base @ torch.randn(WIDTH, 2) @ torch.randn(2, WIDTH) / 4 + 0.5
    return base, base + change + 0.1 * torch.randn(N, WIDTH)


def objective(base, tuned, update, offset, ridge) -> torch.Tensor:
    residuals = base.double() @ update.T + offset - (tuned.double() - base.double())
    return residuals.square().sum() + ridge * update.square().sum()


def test_the_ridge_map_minimizes_what_it_says(embeddings):
    base, tuned = embeddings
    update, ridge = ridge_update(base, tuned)
    offset = mean_error(base, tuned, update)
    update.requires_grad_()
    offset.requires_grad_()
    objective(base, tuned, update, offset, ridge).backward()
    assert update.grad.abs().max() < 1e-8 and offset.grad.abs().max() < 1e-8
    expected = base.double() @ update.T + offset + base
    torch.testing.assert_close(fit_ridge(base, tuned)(base).double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_its_ridge_has_the_smallest_error_on_rows_left_out(embeddings):
    base, tuned = (rows[:20].double() for rows in embeddings)
    scale = torch.linalg.eigvalsh((base - base.mean(0)).T @ (base - base.mean(0))).mean()
    errors = []
    for ridge in RIDGES * scale:
        error = 0.0
        for row in range(20):
            rest = torch.arange(20) != row
            x, change = base[rest], (tuned - base)[rest]
            centred = x - x.mean(0)
            gram = centred.T @ centred + ridge * torch.eye(WIDTH).double()
            update = torch.linalg.solve(gram, centred.T @ change)
            predicted = (base[row] - x.mean(0)) @ update + change.mean(0)
            error += float((predicted - (tuned - base)[row]).square().sum())
        errors.append(error)
    best = RIDGES[errors.index(min(errors))] * scale
    assert ridge_update(base, tuned)[1] == pytest.approx(float(best), rel=1e-9)
    assert len(set(errors)) == len(RIDGES), "there is something to choose from"


def test_texts_that_do_not_change_give_the_identity(embeddings):
    base, _ = embeddings
    for fitted in (fit_ridge(base, base), fit_low_rank(base, base, 2), build_map("low_rank", WIDTH, 2)):
        torch.testing.assert_close(fitted(base), base, rtol=1e-5, atol=1e-5)


def test_few_texts_and_equal_ones_have_maps(embeddings):
    for base, tuned in ((rows[:2] for rows in embeddings), (torch.ones(9, WIDTH), torch.zeros(9, WIDTH))):
        for fitted in (fit_ridge(base, tuned), fit_low_rank(base, tuned, 2)):
            assert fitted(base).isfinite().all()
            torch.testing.assert_close(fitted(base).mean(0), tuned.mean(0), rtol=1e-4, atol=1e-4)


def test_a_low_rank_map_is_the_best_of_its_rank(embeddings):
    """No rotation of its factors by gradient descent, from many starts, finds a better one."""
    base, tuned = embeddings
    ridge = ridge_update(base, tuned)[1]
    fitted = fit_low_rank(base, tuned, 1)
    assert fitted.up.weight.shape == (WIDTH, 1) and fitted.down.weight.shape == (1, WIDTH)

    def loss(up, down, offset):
        return objective(base, tuned, up @ down, offset, ridge)

    ours = loss(fitted.up.weight.double(), fitted.down.weight.double(), fitted.up.bias.double()).item()
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        factors = [
            torch.randn(*shape).double().requires_grad_() for shape in ((WIDTH, 1), (1, WIDTH), (WIDTH,))
        ]
        optimizer = torch.optim.LBFGS(factors, max_iter=500, line_search_fn="strong_wolfe")

        def closure(optimizer=optimizer, factors=factors):
            optimizer.zero_grad()
            value = loss(*factors)
            value.backward()
            return value

        optimizer.step(closure)
        found.append(loss(*factors).item())
    assert ours <= min(found) * (1 + 1e-5)
    assert ours == pytest.approx(min(found), rel=1e-3), "and the descent gets there"


def test_a_map_of_full_rank_is_the_ridge_map(embeddings):
    base, tuned = embeddings
    torch.testing.assert_close(
        fit_low_rank(base, tuned, WIDTH)(base), fit_ridge(base, tuned)(base), rtol=1e-4, atol=1e-4
    )


def test_linear_maps_have_the_names_of_published_ones():
    assert {name: list(tensor.shape) for name, tensor in LinearMap(5).state_dict().items()} == {
        "model.weight": [5, 5],
        "model.bias": [5],
    }


@pytest.mark.parametrize("architecture", ["linear", "low_rank", "nonlinear"])
def test_the_loss_is_the_mean_squared_error_of_each_row(architecture, embeddings):
    base, tuned = embeddings
    built = build_map(architecture, WIDTH, 2)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    expected = sum(((built(x[None])[0] - y) ** 2).mean() for x, y in zip(base, tuned, strict=True))
    torch.testing.assert_close(built(base, tuned), expected)
    first, second = built(base[:1]), built(2 * base[:1])
    offset = built(torch.zeros(1, WIDTH))
    is_affine = torch.allclose(second - offset, 2 * (first - offset), rtol=1e-4, atol=1e-4)
    assert is_affine == (architecture != "nonlinear")
    assert built.parameter_depths().keys() == dict(built.named_parameters()).keys()
