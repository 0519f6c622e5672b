"""Slower proofs: `make test-slow`."""

import pytest
from helpers.runs import NO_DROPOUT, call, evaluations, run
from torch._dynamo.utils import counters

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


def test_ids_are_the_references_on_every_review(reviews, tmp_path):
    from pytorch_pretrained_bert import BertTokenizer

    from data.wordpiece import train_tokenizer

    texts = [row["text"] for row in reviews]
    tokenizer = train_tokenizer(lambda: iter(texts), 8192, lowercase=False)
    tokenizer.save(tmp_path / "vocab.txt")
    reference = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == [reference.vocab[token] for token in reference.tokenize(text)]
