"""What the models of sources say of a target is written, and never believed of another model or target."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.runs import parse

from config.finetuning import FinetuningConfig
from selection.methods import build_methods
from selection.pool import PooledSource, open_pool
from selection.predictions import read_predictions
from selection.target import Target
from selection.views import Views
from selection_scores import leep


@pytest.fixture
def copy(pool, tmp_path):
    shutil.copytree(pool, tmp_path / "pool", ignore=shutil.ignore_patterns("predictions"))
    return tmp_path / "pool"


@pytest.fixture
def no_model(monkeypatch):
    """Lets tests forbid that a fine-tuned model is opened."""

    def opened(self):
        raise AssertionError("the model is not needed")

    return lambda: monkeypatch.setattr(PooledSource, "model", opened)


def open_target(sources, pool, cache, **flags) -> Target:
    training = FinetuningConfig(dataset_path=str(sources / "film"), dataset_cache=str(cache), **flags)
    return Target.open(training, open_pool(str(pool)).base, n_samples=2)


def source_of(pool, name="film") -> PooledSource:
    return next(source for source in open_pool(str(pool)).sources if source.name == name)


def logits(target, pool) -> np.ndarray:
    return Views(target).logits(source_of(pool), mapped=False)


def test_a_second_ranking_reads_what_the_first_one_computed(copy, sources, cache, no_model):
    def scores() -> tuple[list[float], float]:
        target = open_target(sources, copy, cache)
        [method] = build_methods(target, ["leep"], parse("selection_rank.py"), finetune=None)
        return method.scores(source_of(copy)), method.take_saved_seconds()

    first, saved = scores()
    assert saved == 0
    no_model()
    second, saved = scores()
    assert second == first and saved > 0, "a method costs what it would if nothing had been written"
    [file] = (copy / "predictions" / "film").iterdir()
    written = safetensors.torch.load_file(file)
    target = open_target(sources, copy, cache)
    assert leep(written["logits"].softmax(1).numpy(), target.labels) == pytest.approx(first[0])
    assert float(written["seconds"]) == pytest.approx(saved) and file.name.startswith("film-")


def test_another_model_another_target_or_another_reading_is_computed_anew(copy, sources, cache):
    first = logits(open_target(sources, copy, cache), copy)
    fewer = logits(open_target(sources, copy, cache, train_subset_size=10), copy)
    assert len(first) == 96 and len(fewer) == 10
    shorter = logits(open_target(sources, copy, cache, max_length=4), copy)
    assert not np.allclose(shorter, first)
    run_folder = copy / "runs" / "film"
    weights = safetensors.torch.load_file(run_folder / "model.safetensors")
    weights = {name: tensor * 1.1 for name, tensor in weights.items()}
    safetensors.torch.save_file(weights, run_folder / "model.safetensors")
    assert not np.allclose(logits(open_target(sources, copy, cache), copy), first)
    assert len(list((copy / "predictions" / "film").iterdir())) == 4


@pytest.mark.parametrize(
    "damage", [b"broken", safetensors.torch.save({"other": torch.zeros(2)})], ids=["broken", "other"]
)
def test_a_damaged_file_is_written_again(damage, copy, sources, cache):
    target = open_target(sources, copy, cache)
    first = logits(target, copy)
    [file] = (copy / "predictions" / "film").iterdir()
    file.write_bytes(damage)
    assert read_predictions(file) is None
    np.testing.assert_array_equal(logits(target, copy), first)
    np.testing.assert_array_equal(read_predictions(file).logits, first)


def test_a_pool_that_cannot_be_written_to_can_be_ranked(copy, sources, cache):
    (copy / "predictions").write_text("a file where the folder would be")
    target = open_target(sources, copy, cache)
    assert logits(target, copy).shape == (96, 2)
    assert Views(target).logits(source_of(copy, "score"), mapped=False) is None, "it has no classes"
