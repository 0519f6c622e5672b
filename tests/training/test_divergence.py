"""A training whose numbers are not finite any more ends, and leaves what it had."""

import math

import pytest
import torch
from helpers.runs import scalars
from helpers.tower import train

from checkpoints.files import CHECKPOINTS, WEIGHTS, file_digest, load_weights, read_evaluations
from config.errors import TrainingFailed
from config.groups import OptimizationArguments

FLAGS = OptimizationArguments(lr=0.02, log_every=2)
OPTIONS = {"n_steps": 20, "save_every": 4, "eval_every": 5}


def state_of(folder) -> dict:
    files = [folder / WEIGHTS, *(folder / CHECKPOINTS).iterdir()]
    return {file.name: file_digest(file) for file in files}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_bad_number_ends_the_training_with_what_it_had(value, tmp_path):
    before = {}

    def spoil(step, points):
        if step == 11:
            before.update(state_of(tmp_path / "run"))
            points[3, 2] = value

    with pytest.raises(TrainingFailed) as error:
        train(tmp_path / "run", FLAGS, change=spoil, **OPTIONS)
    sentence = str(error.value)
    last = tmp_path / "run" / CHECKPOINTS / "checkpoint_8.pt"
    assert "is nan at step 11" in sentence or "is inf at step 11" in sentence
    assert f"the last good checkpoint is {last}" in sentence and "--resume" in sentence
    assert before == state_of(tmp_path / "run") and len(before) == 3
    assert [row["step"] for row in read_evaluations(tmp_path / "run")] == [5, 10]
    assert {step for _, step, _ in scalars(tmp_path / "run")} == {2, 4, 5, 6, 8, 10}

    model, *_ = train(tmp_path / "run", FLAGS, is_resumed=True, **OPTIONS)
    whole, *_ = train(tmp_path / "whole", FLAGS, **OPTIONS)
    assert all(map(torch.equal, model.parameters(), whole.parameters()))


def test_weights_that_overflow_are_not_saved(tmp_path):
    """The step itself is finite: the next loss would not be."""
    with pytest.raises(TrainingFailed, match="there is no checkpoint yet; start again"):
        flags = OptimizationArguments(lr=1e39, n_warmup=0)
        train(tmp_path / "run", flags, n_steps=5, save_every=1, eval_every=9)
    assert not list((tmp_path / "run" / CHECKPOINTS).iterdir())


def test_an_evaluation_that_is_not_finite_overwrites_nothing(tmp_path):
    """Weights that are large but finite make a loss that is not."""
    with pytest.raises(TrainingFailed, match=r"of the evaluation is (nan|inf) at step 1: training diverged"):
        train(tmp_path / "run", OptimizationArguments(lr=1e30), n_steps=5, save_every=9, eval_every=1)
    assert not (tmp_path / "run" / WEIGHTS).exists() and not read_evaluations(tmp_path / "run")


def test_fp16_skips_steps_and_says_how_many(tmp_path, caplog):
    flags = OptimizationArguments(lr=0.02, log_every=1)

    def overflow(step, points):
        if step in (3, 4):
            points *= 60_000

    with caplog.at_level("INFO", logger="transfer"):
        model, _, _, progress = train(
            tmp_path / "run", flags, change=overflow, dtype=torch.float16, **OPTIONS
        )
    assert progress.n_skipped >= 2 and f"{progress.n_skipped} of 20 steps were skipped" in caplog.text
    skipped = [value for tag, _, value in scalars(tmp_path / "run") if tag == "training/skipped_steps"]
    assert skipped[-1] == progress.n_skipped
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert load_weights(tmp_path / "run" / WEIGHTS)


def test_fp16_that_always_overflows_ends(tmp_path):
    def overflow(step, points):
        points[0, 0] = math.nan

    with pytest.raises(TrainingFailed, match="overflows at step 31, however the loss is scaled"):
        train(tmp_path / "run", FLAGS, change=overflow, dtype=torch.float16, n_steps=100, eval_every=100)
