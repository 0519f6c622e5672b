"""Slower proofs: `make test-slow`."""

import pytest
import torch
from helpers.runs import NO_DROPOUT, call, evaluations, run, same_weights
from torch._dynamo.utils import counters

from tasks.review_tasks import TASKS, write_review_tasks

pytestmark = pytest.mark.slow


def test_a_compiled_model_learns_the_same(pretraining, tmp_path):
    common = [*pretraining, *NO_DROPOUT, "--n_steps", 10, "--eval_every", 5]
    run("pretraining_train.py", *common, "--output_dir", tmp_path / "eager")
    run("pretraining_train.py", *common, "--compile", "--output_dir", tmp_path / "compiled")
    for eager, compiled in zip(
        evaluations(tmp_path / "eager"), evaluations(tmp_path / "compiled"), strict=True
    ):
        assert eager["loss"] == pytest.approx(compiled["loss"], abs=1e-4)


def test_a_compiled_classifier_learns_the_same_from_changing_lengths(finetuning, tmp_path):
    common = [*finetuning, *NO_DROPOUT, "--n_steps", 20, "--eval_every", 10, "--lm_loss_coef", 0.5]
    call("finetuning_train.py", *common, "--output_dir", tmp_path / "eager")
    counters.clear()
    call(
        "finetuning_train.py",
        *common,
        "--compile",
        "--gradient_checkpointing",
        "--output_dir",
        tmp_path / "compiled",
    )
    assert 1 <= counters["stats"]["unique_graphs"] <= 6
    for eager, compiled in zip(
        evaluations(tmp_path / "eager"), evaluations(tmp_path / "compiled"), strict=True
    ):
        assert eager["loss"] == pytest.approx(compiled["loss"], abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(precision, pretraining, tmp_path):
    common = [*pretraining, *NO_DROPOUT, "--n_steps", 30, "--eval_every", 15]
    run("pretraining_train.py", *common, "--output_dir", tmp_path / "single")
    run("pretraining_train.py", *common, "--precision", precision, "--output_dir", tmp_path / "half")
    for single, half in zip(evaluations(tmp_path / "single"), evaluations(tmp_path / "half"), strict=True):
        assert single["loss"] == pytest.approx(half["loss"], abs=0.05)


@pytest.fixture
def two_threads():
    n_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(n_threads)


def test_two_threads_repeat_a_run_bit_for_bit(two_threads, pretrained, cache, tmp_path):
    """With batches that threads share, of tasks that are mixed by what the model is unsure of."""
    write_review_tasks(tmp_path / "tasks")
    flags = ["--tasks", ",".join(str(tmp_path / "tasks" / f"{name}.json") for name in TASKS)]
    flags += ["--model_checkpoint", "none", "--tokenizer", pretrained, "--embed_dim", 256, "--num_heads", 4]
    flags += ["--num_layers", 2, "--hidden_dim", 512, "--dataset_cache", cache, "--n_steps", 100]
    flags += ["--sampling", "uncertainty", "--uncertainty_candidates", 8]
    for name in ("first", "second"):
        call("multitask_train.py", "multitask_quickstart", *flags, "--output_dir", tmp_path / name)
    assert same_weights(tmp_path / "first", tmp_path / "second")


def test_ids_are_the_references_on_every_review(reviews, tmp_path):
    from pytorch_pretrained_bert import BertTokenizer

    from data.wordpiece import train_tokenizer

    texts = [row["text"] for row in reviews]
    tokenizer = train_tokenizer(lambda: iter(texts), 8192, lowercase=False)
    tokenizer.save(tmp_path / "vocab.txt")
    reference = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == [reference.vocab[token] for token in reference.tokenize(text)]
