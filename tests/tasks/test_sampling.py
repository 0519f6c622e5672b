"""Samplers: what they draw, how often, and that resuming repeats it; MT-Uncertainty against plain loops."""

import io
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from config.errors import UserError
from config.multitask import MultitaskConfig
from tasks.examples import Collator, Examples
from tasks.sampling import (
    TaskSampler,
    TaskStream,
    UncertaintySampler,
    build_sampler,
    read_proxies,
    task_probabilities,
    uncertainty_scores,
)

SIZES = {"small": 5, "middle": 40, "large": 160}
DRAWN = ["proportional", "square_root", "uniform", "temperature", "annealed"]


def streams_of(sizes=SIZES, seed=0, regressions=()) -> list[TaskStream]:
    """Tasks of which example i is the text of the one token i; they train on every example but the first."""
    streams = []
    for number, (name, size) in enumerate(sizes.items()):
        tokens = [np.array([index]) for index in range(size + 1)]
        examples = Examples.of_tokens(tokens, np.ones(size + 1, dtype=int), np.arange(size + 1))
        collate = Collator(None, 8, causal=True)
        chosen = np.arange(1, size + 1)
        streams.append(TaskStream(name, examples, chosen, collate, (seed, number), name not in regressions))
    return streams


def sampler_of(sampling: str, rows_per_draw=4, draws_per_step=2, seed=0, **options) -> TaskSampler:
    return TaskSampler(streams_of(seed=seed), sampling, rows_per_draw, draws_per_step, seed, **options)


def no_model(tasks, indices):
    raise AssertionError("this sampler asks no model")


def rows(sampler: TaskSampler, step: int, entropies=no_model) -> list[tuple[int, int]]:
    """(task, example) of a step."""
    tasks, indices = sampler.choose(step, entropies)
    return list(zip(tasks.tolist(), indices.tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------- streams


def test_each_pass_sees_every_example_once_in_an_order_of_its_own():
    stream = streams_of()[1]
    passes = [stream.take(number * len(stream), len(stream)).tolist() for number in range(3)]
    assert all(sorted(one) == list(range(1, 41)) for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    other_seed = streams_of(seed=1)[1]
    assert other_seed.take(0, len(stream)).tolist() != passes[0]
    assert streams_of({"a": 40, "b": 40})[0].take(0, 40).tolist() != passes[0], "tasks have their own orders"


@pytest.mark.parametrize("n", [1, 7, 40, 41, 130])
def test_a_stream_is_one_pass_after_another_however_it_is_cut(n):
    stream, endless = streams_of()[1], streams_of()[1]
    whole = np.concatenate([endless.pass_number(number) for number in range(12)])
    for start in (0, 3, 39, 40, 79, 161, 320):
        assert stream.take(start, n).tolist() == whole[start : start + n].tolist()


# ------------------------------------------------------------------------------------------- all but the last


@pytest.mark.parametrize("sampling", ["sequential", *DRAWN])
def test_a_step_is_a_function_of_the_seed_and_its_number(sampling):
    forwards = sampler_of(sampling, n_epochs=3, temperature=3.0)
    steps = range(3 * len(forwards))
    expected = [rows(forwards, step) for step in steps]
    shuffled = sampler_of(sampling, n_epochs=3, temperature=3.0)
    for step in np.random.default_rng(0).permutation(steps).tolist():
        assert rows(shuffled, step) == expected[step]
    other = sampler_of(sampling, seed=1, n_epochs=3, temperature=3.0)
    assert [rows(other, step) for step in steps] != expected


@pytest.mark.parametrize("sampling", ["sequential", *DRAWN])
def test_within_a_task_each_pass_sees_every_example_once(sampling):
    sampler, seen = sampler_of(sampling, n_epochs=4), {0: [], 1: [], 2: []}
    for step in range(4 * len(sampler)):
        for task, example in rows(sampler, step):
            seen[task].append(example)
    for task, size in enumerate(SIZES.values()):
        assert len(seen[task]) > size
        for start in range(0, len(seen[task]) - size + 1, size):
            assert sorted(seen[task][start : start + size]) == list(range(1, size + 1))


@pytest.mark.parametrize("sampling", ["sequential", *DRAWN])
def test_an_epoch_has_as_many_rows_as_there_are_examples_in_whole_draws(sampling):
    sampler = sampler_of(sampling, rows_per_draw=4, draws_per_step=3)
    assert sampler.n_batches.tolist() == [2, 10, 40]
    assert sampler.rows_per_step == 12 and len(sampler) == math.ceil(52 / 3)
    for step in range(2 * len(sampler)):
        drawn = rows(sampler, step)
        assert len(drawn) == 12
        for draw in range(3):
            assert len({task for task, _ in drawn[4 * draw : 4 * draw + 4]}) == 1, "a draw is of one task"


def test_sequential_takes_turns_until_the_data_runs_out():
    sampler = sampler_of("sequential", rows_per_draw=4, draws_per_step=1)
    for epoch in range(2):
        expected, left = [], [math.ceil(size / 4) for size in SIZES.values()]
        while any(left):
            for task in range(3):
                if left[task]:
                    expected.append(task)
                    left[task] -= 1
        drawn = [rows(sampler, epoch * len(sampler) + step)[0][0] for step in range(len(sampler))]
        assert drawn == expected


@pytest.mark.parametrize("draws_per_step", [1, 2, 3])
def test_sequential_begins_again_to_fill_the_last_step(draws_per_step):
    sampler = sampler_of("sequential", 4, draws_per_step)
    draws = sampler.draw_epoch(0)
    assert len(draws) == draws_per_step * len(sampler)
    assert Counter(draws[:52].tolist()) == {0: 2, 1: 10, 2: 40}
    assert draws[52:].tolist() == draws[: len(draws) - 52].tolist()


# n^α / Σ n^α, with these exponents in the first, second, … of four epochs.
ALPHAS = {
    "proportional": [1, 1, 1, 1],
    "square_root": [0.5] * 4,
    "uniform": [0] * 4,
    "temperature": [1 / 4] * 4,
    "annealed": [1, 1 - 0.8 / 3, 1 - 1.6 / 3, 0.2],
}


@pytest.mark.parametrize("sampling", DRAWN)
def test_shares_follow_the_sizes_to_the_power_of_alpha(sampling):
    streams = streams_of({"small": 500, "middle": 4000, "large": 20000})
    sampler = TaskSampler(streams, sampling, 1, 1, seed=3, n_epochs=4, temperature=4.0)
    for epoch, alpha in enumerate(ALPHAS[sampling]):
        weights = [len(stream) ** alpha for stream in streams]
        expected = [weight / sum(weights) for weight in weights]
        given = task_probabilities(sampling, [len(stream) for stream in streams], epoch, 4, 4.0)
        assert given == pytest.approx(expected, abs=1e-12)
        counts = np.bincount(sampler.draw_epoch(epoch), minlength=3)
        assert counts.sum() == 24500
        for count, share in zip(counts, expected, strict=True):
            deviation = (share * (1 - share) / 24500) ** 0.5
            assert abs(count / 24500 - share) < 4 * deviation


def test_annealing_ends_at_its_last_exponent_even_if_training_goes_on():
    at_last, later = (task_probabilities("annealed", [1, 100], epoch, 3, 1.0) for epoch in (2, 9))
    assert np.array_equal(at_last, later)
    assert np.isfinite(task_probabilities("annealed", [1, 100], 0, 1, 1.0)).all()


def test_the_share_counts_rows_since_the_last_evaluation():
    sampler = sampler_of("sequential", 4, 1)
    for step in range(4):
        rows(sampler, step)
    assert sampler.statistics()["share"].tolist() == [0.5, 0.25, 0.25]  # small, middle, large, small
    resumed = sampler_of("sequential", 4, 1)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    rows(resumed, 4)
    assert resumed.statistics()["share"].tolist() == [2 / 5, 2 / 5, 1 / 5]
    resumed.reset_statistics()
    assert np.isnan(resumed.statistics()["share"]).all(), "nothing was drawn"


# ------------------------------------------------------------------------------------------------ uncertainty


def loop_scores(entropies: list[list[float | None]], proxies: dict[int, int]) -> list[list[float]]:
    """Equations 7 to 9, one number after another; tasks without an entropy have None."""
    means = {task: sum(row) / len(row) for task, row in enumerate(entropies) if row[0] is not None}
    largest = max(means.values())
    scores = {task: [value * means[task] / largest for value in entropies[task]] for task in means}
    result = []
    for task in range(len(entropies)):
        if task in means:
            result.append(scores[task])
        elif task in proxies:
            result.append(scores[proxies[task]])
        else:
            ranked = [sorted(scores[other], reverse=True) for other in means]
            result.append([sum(values) / len(values) for values in zip(*ranked, strict=True)])
    return result


@pytest.mark.parametrize("proxies", [{}, {1: 2}, {1: 3, 4: 0}])
def test_scores_are_entropies_times_the_relative_mean_of_their_task(proxies):
    entropies = np.random.default_rng(0).random((5, 6))
    entropies[0] *= 0.3
    entropies[[1, 4]] = np.nan
    listed = [[None if math.isnan(value) else value for value in row] for row in entropies.tolist()]
    expected = np.array(loop_scores(listed, proxies))
    np.testing.assert_allclose(uncertainty_scores(entropies, proxies), expected, atol=1e-12)


def test_a_model_that_is_sure_of_everything_still_has_scores():
    assert uncertainty_scores(np.zeros((2, 3)), {}).tolist() == [[0] * 3] * 2


class Unsure:
    """Entropies that depend on the example and on how often the model was asked, which counts as training."""

    def __init__(self, n_calls=0):
        self.calls, self.n_calls = [], n_calls

    def __call__(self, tasks, indices):
        self.calls.append((tasks, indices))
        self.n_calls += 1
        entropies = np.random.default_rng((7, self.n_calls)).random((3, 200))[tasks, indices]
        return np.where(tasks == 0, np.nan, entropies)


def unsure_sampler(every=3, n_candidates=20, proxies=None, regressions=("small",)) -> UncertaintySampler:
    return UncertaintySampler(
        streams_of(regressions=regressions),
        "uncertainty",
        rows_per_draw=4,
        draws_per_step=2,
        seed=0,
        n_candidates=n_candidates,
        every=every,
        proxies=proxies or {},
    )


@pytest.mark.parametrize("proxies", [{}, {0: 1}])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_highest_scores_of_all_candidates_make_the_next_steps_each_once(every, proxies):
    sampler, model = unsure_sampler(every, proxies=proxies), Unsure()
    for cycle in range(3):
        chosen = [rows(sampler, cycle * every + number, model) for number in range(every)]
        assert len(model.calls) == cycle + 1, "one pass for all steps of a cycle"
        tasks, indices = model.calls[-1]
        for task, stream in enumerate(sampler.streams):  # its candidates are the next 20 of its stream
            assert indices[tasks == task].tolist() == stream.take(20 * cycle, 20).tolist()
        entropies = Unsure(n_calls=cycle)(tasks, indices).reshape(3, 20).tolist()
        listed = [[None if math.isnan(value) else value for value in row] for row in entropies]
        scores = list(itertools.chain.from_iterable(loop_scores(listed, proxies)))
        by_score = sorted(range(60), key=lambda candidate: -scores[candidate])
        best = [(int(tasks[candidate]), int(indices[candidate])) for candidate in by_score[: 8 * every]]
        assert [len(step) for step in chosen] == [8] * every
        assert Counter(itertools.chain.from_iterable(chosen)) == Counter(best)
        for number, step in enumerate(chosen):  # dealt in turns: no step gets all of the best
            assert Counter(step) == Counter(best[number::every])


@pytest.mark.parametrize("every", [1, 3])
def test_with_equal_shares_each_task_gives_its_least_sure_examples(every):
    sampler, model = unsure_sampler(every, regressions=()), Unsure()
    sampler.equal_shares = True
    chosen = [rows(sampler, number, model) for number in range(every)]
    tasks, indices = model.calls[0]
    entropies = np.nan_to_num(Unsure()(tasks, indices)).reshape(3, 20)
    counts = Counter(task for step in chosen for task, _ in step)
    assert max(counts.values()) - min(counts.values()) <= 1 and sum(counts.values()) == 8 * every
    for task, n in counts.items():
        least_sure = indices.reshape(3, 20)[task][np.argsort(-entropies[task], kind="stable")[:n]]
        own = [index for step in chosen for other, index in step if other == task]
        assert sorted(own) == sorted(least_sure)


def torch_round_trip(state: dict) -> dict:
    file = io.BytesIO()
    torch.save({"batches": state}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)["batches"]


@pytest.mark.parametrize("saved_after", [1, 4, 5, 6])
def test_a_cycle_that_was_interrupted_goes_on(saved_after):
    sampler, model = unsure_sampler(), Unsure()
    for step in range(saved_after):
        rows(sampler, step, model)
    state = torch_round_trip(sampler.state_dict())
    resumed, same_model = unsure_sampler(), Unsure(model.n_calls)
    resumed.load_state_dict(state)
    for step in range(saved_after, saved_after + 8):
        assert rows(resumed, step, same_model) == rows(sampler, step, model)
    for name, values in sampler.statistics().items():
        np.testing.assert_array_equal(resumed.statistics()[name], values)


def test_statistics_have_the_mean_entropy_of_the_candidates():
    sampler, model = unsure_sampler(every=1), Unsure()
    for step in range(3):
        rows(sampler, step, model)
    means = [np.mean([Unsure(n)(*model.calls[n]).reshape(3, 20)[task] for n in range(3)]) for task in (1, 2)]
    entropy = sampler.statistics()["entropy"]
    assert math.isnan(entropy[0]) and entropy[1:] == pytest.approx(means)
    sampler.reset_statistics()
    assert np.isnan(sampler.statistics()["entropy"]).all(), "the model was not asked"


# -------------------------------------------------------------------------------------------------- the flags


def test_the_flags_make_the_sampler():
    flags = MultitaskConfig(sampling="temperature", sampling_temperature=5.0, n_epochs=7)
    plain = build_sampler(flags, streams_of(), 8, 2)
    assert type(plain) is TaskSampler
    assert (plain.temperature, plain.n_epochs, plain.rows_per_draw) == (5.0, 7, 4)
    flags = MultitaskConfig(sampling="uncertainty", uncertainty_every=2, uncertainty_proxy="small=large")
    sampler = build_sampler(flags, streams_of(regressions=("small",)), 8, 2)
    assert isinstance(sampler, UncertaintySampler)
    assert (sampler.n_candidates, sampler.every, sampler.proxies) == (8, 2, {0: 2})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uncertainty_candidates": 2}, ["--uncertainty_candidates 2", "8 rows", "--uncertainty_every"]),
        ({"uncertainty_every": 4}, ["--uncertainty_candidates 8", "32 rows of 4 optimizer steps"]),
        ({"uncertainty_proxy": "smal=large"}, ["'smal'", "did you mean small?"]),
        ({"uncertainty_proxy": "small=larg"}, ["'larg'", "large"]),
        ({"uncertainty_proxy": "small"}, ["task=proxy"]),
        ({"uncertainty_proxy": "middle=large"}, ["middle=large", "a regression takes"]),
        ({"uncertainty_proxy": "small=small"}, ["small=small", "a regression takes"]),
        ({"uncertainty_proxy": "small=large,small=middle"}, ["small", "twice"]),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(values, words):
    flags = MultitaskConfig(**{"sampling": "uncertainty"} | values)
    with pytest.raises(UserError) as error:
        build_sampler(flags, streams_of(regressions=("small",)), 8, 2)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_regressions_alone_have_nothing_to_be_unsure_of():
    with pytest.raises(UserError, match="small, middle, large predict numbers, which have no entropy"):
        read_proxies(None, streams_of(regressions=tuple(SIZES)))
