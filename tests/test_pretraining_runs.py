"""Pretraining and generation as a user runs them: one process or two, killed and resumed, on small data."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import ALONE, NO_DROPOUT, call, evaluations, launch, metrics, run

from config.model import TransformerConfig
from pretraining_model import TransformerWithLMHead
from pretraining_train import PretrainingConfig, initialize_from_counts


def test_pretraining_learns_and_leaves_a_self_contained_folder(pretrained):
    rows, final = evaluations(pretrained), metrics(pretrained)
    assert [row["step"] for row in rows] == [0, 20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert final["loss"] == min(row["loss"] for row in rows) and final["n_steps"] == 60
    assert {
        "ppl",
        "word_ppl",
        "tokens_per_second",
        "seconds",
        "peak_memory_mb",
        "n_parameters",
    } <= final.keys()
    config = json.loads((pretrained / "config.json").read_text())
    assert config["arguments"]["lr"] == 3e-3 and config["versions"]["torch"] == torch.__version__
    assert (pretrained / "vocab.txt").is_file() and list(pretrained.glob("events.*"))
    assert [file.name for file in pretrained.glob(".*")] == [".lock"]  # nothing half-written is left


def test_muon_accumulation_sinusoids_and_mlm_run_together(pretraining, tmp_path):
    options = "--optimizer muon --gradient_accumulation_steps 2 --schedule linear --weight_decay 0.1"
    options += " --sinusoidal_embeddings --mlm"
    call(
        "pretraining_train.py",
        *pretraining,
        *options.split(),
        "--n_steps",
        40,
        "--eval_every",
        20,
        "--output_dir",
        tmp_path / "run",
    )
    rows = evaluations(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] and "word_ppl" not in rows[0]


def test_text_without_spaces_has_a_perplexity_per_word(pretraining, tmp_path):
    (tmp_path / "train.txt").write_text(
        "我喜欢这部电影因为它很好看" * 20 + "\n" + "他不喜欢那本书" * 60 + "\n"
    )
    common = [*pretraining, "--dataset_path", tmp_path / "train.txt", "--output_dir", tmp_path / "run"]
    call("pretraining_train.py", *common, "--n_steps", 1)
    found = metrics(tmp_path / "run")
    assert 1 < found["word_ppl"] < 10 * found["ppl"]


def test_a_perplexity_that_no_float_holds_is_null(pretraining, tmp_path):
    """A line is one word of 2,000 tokens."""
    (tmp_path / "train.txt").write_text(("a-b-" * 500 + "\n") * 40)
    common = [*pretraining, "--dataset_path", tmp_path / "train.txt", "--output_dir", tmp_path / "run"]
    call("pretraining_train.py", *common, "--n_steps", 2, "--eval_every", 1, "--save_every", 1, "--lr", 0)
    assert metrics(tmp_path / "run")["word_ppl"] is None and metrics(tmp_path / "run")["ppl"] > 1
    before = evaluations(tmp_path / "run")
    assert [row["word_ppl"] for row in before] == [None, None]
    (tmp_path / "run" / "metrics.json").unlink()
    call("pretraining_train.py", "--resume", tmp_path / "run")
    assert evaluations(tmp_path / "run") == before and metrics(tmp_path / "run")["word_ppl"] is None


def test_gradient_accumulation_changes_no_loss(pretraining, tmp_path):
    """4 rows at once, or 2 rows twice."""
    common = [*pretraining, *NO_DROPOUT, "--n_steps", 5, "--eval_every", 1]
    call("pretraining_train.py", *common, "--output_dir", tmp_path / "one")
    call(
        "pretraining_train.py",
        *common,
        "--train_batch_size",
        2,
        "--gradient_accumulation_steps",
        2,
        "--output_dir",
        tmp_path / "two",
    )
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


def test_an_output_bias_starts_pretraining_at_the_frequencies_of_the_tokens(pretraining, tmp_path):
    ids = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 4, 5, 6, 7])).numpy()
    model = TransformerWithLMHead(TransformerConfig(7, 4, 4, 8, 1, 1, output_bias=True))
    initialize_from_counts(
        model, SimpleNamespace(train=SimpleNamespace(ids=ids)), PretrainingConfig(output_bias=True)
    )
    torch.testing.assert_close(
        model.output_bias.exp(), torch.arange(2, 9) / 35
    )  # each counted once more than it occurs
    common = [*pretraining, "--n_steps", 0, "--eval_at_start"]
    call("pretraining_train.py", *common, "--output_dir", tmp_path / "without")
    call("pretraining_train.py", *common, "--output_bias", "--output_dir", tmp_path / "with")
    assert metrics(tmp_path / "with")["loss"] < metrics(tmp_path / "without")["loss"] - 0.5


@pytest.mark.processes("it is about two of them")
@pytest.mark.parametrize(
    "launcher, objective", [("torch.distributed.run", []), ("torch.distributed.launch", ["--mlm"])]
)
def test_two_processes_equal_one(launcher, objective, pretraining, tmp_path):
    common = [
        *pretraining,
        *objective,
        *NO_DROPOUT,
        "--n_steps",
        6,
        "--eval_every",
        2,
        "--valid_batch_size",
        3,
    ]
    run("pretraining_train.py", *common, "--output_dir", tmp_path / "one")
    run(
        "pretraining_train.py",
        *common,
        "--train_batch_size",
        2,
        "--output_dir",
        tmp_path / "two",
        launcher=launch(launcher),
    )
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"] and one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.processes("the command as a user gives it")
def test_generation_continues_a_prompt(pretrained):
    options = ["--n_tokens", 12, "--n_samples", 2, "--seed", 3]
    first, second = (
        run("pretraining_generate.py", pretrained, "the film", *options, launcher=launcher).stdout
        for launcher in ([], ALONE)
    )
    assert first == second
    assert len(first.splitlines()) == 2 and all(line.startswith("the film ") for line in first.splitlines())
