"""The scripts as a user runs them: one process or two, killed and resumed, on small data."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

WORDS = ["good", "bad", "the", "film", "was", "a", "story", "of", "its", "own", "kind", "and", "so", "on", "with", "some", "more", "words", "that", "follow", "each", "other", "here"]
ROOT = Path(__file__).parent.parent
SHAPE = ["--embed_dim", "32", "--hidden_dim", "64", "--num_layers", "2", "--num_heads", "2", "--num_max_positions", "32"]
STEPS = ["--train_batch_size", "4", "--valid_batch_size", "8", "--n_warmup", "2", "--log_every", "2"]
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"],
    "launch": ["-m", "torch.distributed.launch", "--nproc_per_node", "2", "--master_port", "29612"],
}


def run(script: str, *arguments, launcher: list[str] = (), check=True) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert not check or result.returncode == 0, result.stderr
    return result


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def evaluations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A language with some structure: what follows a word depends on it."""
    folder, generator = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for split, n_lines in (("train", 400), ("valid", 60)):
        lines = []
        for _ in range(n_lines):
            line = [generator.randrange(len(WORDS))]
            while len(line) < 12:
                line.append((line[-1] * 7 + generator.randrange(3)) % len(WORDS))
            lines.append(" ".join(WORDS[word] for word in line) + " .")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """Two classes told apart by a word, with all splits."""
    folder, generator = tmp_path_factory.mktemp("task"), random.Random(1)
    for split, n_rows in (("train", 120), ("valid", 41), ("test", 23)):
        rows = []
        for index in range(n_rows):
            filler = " ".join(generator.choice(WORDS[2:]) for _ in range(generator.randint(2, 25)))
            word = ("good", "bad")[index % 2]
            rows.append(json.dumps({"text": f"{filler} {word} {filler}", "label": ("pos", "neg")[index % 2]}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def pretraining(corpus, cache) -> list:
    return ["--dataset_path", corpus, "--dataset_cache", cache, "--tokenizer", "train:200", *SHAPE, *STEPS, "--lr", "3e-3"]


@pytest.fixture(scope="module")
def pretrained(pretraining, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    run("pretraining_train.py", *pretraining, "--n_steps", 60, "--eval_every", 20, "--output_dir", folder)
    return folder


@pytest.fixture(scope="module")
def finetuning(task, cache, pretrained) -> list:
    return ["--dataset_path", task, "--dataset_cache", cache, "--model_checkpoint", pretrained, *STEPS, "--lr", "3e-3"]


def test_pretraining_learns_and_leaves_a_self_contained_folder(pretrained):
    rows, final = evaluations(pretrained), metrics(pretrained)
    assert [row["step"] for row in rows] == [0, 20, 40, 60]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert final["loss"] == min(row["loss"] for row in rows) and final["n_steps"] == 60
    assert {"ppl", "word_ppl", "tokens_per_second", "seconds", "peak_memory_mb", "n_parameters"} <= final.keys()
    config = json.loads((pretrained / "config.json").read_text())
    assert config["arguments"]["lr"] == 3e-3 and config["versions"]["torch"] == torch.__version__
    assert (pretrained / "vocab.txt").is_file() and list(pretrained.glob("events.*"))
    assert not list(pretrained.glob(".*"))  # nothing half-written is left


def test_muon_accumulation_sinusoids_mlm_and_compile_flags_run(pretraining, tmp_path):
    options = "--optimizer muon --gradient_accumulation_steps 2 --sinusoidal_embeddings --mlm --schedule linear --weight_decay 0.1"
    run("pretraining_train.py", *pretraining, *options.split(), "--n_steps", 40, "--eval_every", 20, "--output_dir", tmp_path / "run")
    rows = evaluations(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] and "word_ppl" not in rows[0]


def test_gradient_accumulation_changes_no_loss(pretraining, tmp_path):
    """4 rows at once, or 2 rows twice."""
    common = [*pretraining, "--dropout", 0, "--attention_dropout", 0, "--n_steps", 5, "--eval_every", 1]
    run("pretraining_train.py", *common, "--output_dir", tmp_path / "one")
    run("pretraining_train.py", *common, "--train_batch_size", 2, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "two")
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("objective", [[], ["--mlm"]], ids=["causal", "mlm"])
def test_two_pretraining_processes_equal_one(launcher, objective, pretraining, tmp_path):
    common = [*pretraining, *objective, "--dropout", 0, "--attention_dropout", 0, "--n_steps", 6, "--eval_every", 2, "--valid_batch_size", 3]
    run("pretraining_train.py", *common, "--output_dir", tmp_path / "one")
    run("pretraining_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two", launcher=LAUNCHERS[launcher])
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["step"] == two["step"] and one["loss"] == pytest.approx(two["loss"], abs=1e-4)


def test_two_finetuning_processes_equal_one(finetuning, tmp_path):
    common = [*finetuning, "--dropout", 0, "--attention_dropout", 0, "--n_steps", 6, "--eval_every", 2, "--lm_loss_coef", 0.5]
    run("finetuning_train.py", *common, "--output_dir", tmp_path / "one")
    run("finetuning_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two", launcher=LAUNCHERS["torchrun"])
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-4) and one["accuracy"] == two["accuracy"]
    assert metrics(tmp_path / "one")["test_loss"] == pytest.approx(metrics(tmp_path / "two")["test_loss"], abs=1e-4)


EVAL_EVERY = {"pretraining": 40, "finetuning": -1}  # -1: every 30 steps, where there is a checkpoint too


def kill_after_first_checkpoint(script: str, *arguments) -> None:
    """SIGKILL a run between two checkpoints, in the middle of its work."""
    folder = Path(arguments[arguments.index("--output_dir") + 1])
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/checkpoint_*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_a_killed_run_resumes_to_the_same_weights(stage, request, tmp_path):
    """With dropout on, and bit for bit."""
    script = f"{stage}_train.py"
    common = [*request.getfixturevalue(stage), "--n_steps", 180, "--eval_every", EVAL_EVERY[stage], "--save_every", 15, "--optimizer", "muon"]
    run(script, *common, "--output_dir", tmp_path / "whole")
    kill_after_first_checkpoint(script, *common, "--output_dir", tmp_path / "killed")
    resumed = run(script, "--resume", tmp_path / "killed")
    assert "resuming after step" in resumed.stderr and "resuming after step 0" not in resumed.stderr
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "killed")
    run(script, "--resume", tmp_path / "killed")  # a finished run is left as it is
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "killed")
    assert len(list((tmp_path / "killed" / "checkpoints").iterdir())) <= 2


def test_generation_continues_a_prompt(pretrained):
    options = ["--n_tokens", 12, "--n_samples", 2, "--seed", 3]
    first, second = (run("pretraining_generate.py", pretrained, "the film", *options).stdout for _ in range(2))
    assert first == second
    assert len(first.splitlines()) == 2 and all(line.startswith("the film ") for line in first.splitlines())


@pytest.fixture(scope="module")
def finetuned(finetuning, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    run("finetuning_train.py", *finetuning, "--n_epochs", 8, "--pooling", "cls_mean", "--output_dir", folder)
    return folder


def test_finetuning_learns_and_uses_the_test_split_once(finetuned):
    final = metrics(finetuned)
    assert final["valid_accuracy"] > 0.9 and final["test_accuracy"] > 0.9
    assert final["n_labels"] == 120 and final["n_steps"] == 8 * 30
    assert {"valid_macro_f1", "valid_matthews", "examples_per_second", "n_trained"} <= final.keys()


def test_adapters_store_what_they_trained_and_find_their_base(finetuning, pretrained, task, tmp_path):
    folder = tmp_path / "adapters"
    result = run("finetuning_train.py", *finetuning, "--adapters_dim", 8, "--pooling", "mean", "--n_epochs", 12, "--lr", 0.01, "--max_norm", 1, "--output_dir", folder)
    final = metrics(folder)
    assert f"{final['n_trained']:,} of {final['n_parameters']:,} parameters train" in result.stderr
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == final["n_trained"] < final["n_parameters"] / 2
    assert final["valid_accuracy"] > 0.8
    predicted = run("finetuning_predict.py", folder, "a good film", "a bad film").stdout.splitlines()
    assert [json.loads(line)["label"] for line in predicted] == ["pos", "neg"]

    base = pretrained / "model.safetensors"
    content = base.read_bytes()
    try:
        changed = safetensors.torch.load(content)
        changed["transformer.final_norm.bias"] += 1
        safetensors.torch.save_file(changed, base)
        result = run("finetuning_predict.py", folder, "a good film", check=False)
        assert result.returncode == 2 and "other weights" in result.stderr
    finally:
        base.write_bytes(content)


def test_early_stopping_restores_the_best_weights(finetuning, tmp_path):
    common = ["--n_epochs", 30, "--patience", 2, "--lr", 0.01, "--output_dir", tmp_path / "run"]
    result = run("finetuning_train.py", *finetuning, *common)
    rows, final = evaluations(tmp_path / "run"), metrics(tmp_path / "run")
    best = max(row["accuracy"] for row in rows)
    assert "stopping early" in result.stderr and final["n_steps"] < 30 * 30
    assert final["valid_accuracy"] == best and final["best_step"] == next(row["step"] for row in rows if row["accuracy"] == best)
    assert [row["accuracy"] < best or row["step"] > final["best_step"] for row in rows[-2:]] == [True, True]


def test_regression_and_pairs_from_csv(cache, tmp_path):
    generator = random.Random(2)
    for split, n_rows in (("train", 200), ("valid", 50)):
        rows = ["text,text_pair,label"]
        for _ in range(n_rows):
            n_good = generator.randint(0, 5)
            rows.append(f"{'good ' * n_good}{'bad ' * (5 - n_good)},a film,{n_good / 5 + 0.01}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows))
    options = ["--dataset_path", tmp_path, "--dataset_cache", cache, "--model_checkpoint", "none", "--tokenizer", "train:100", *SHAPE, *STEPS]
    run("finetuning_train.py", *options, "--lr", 3e-3, "--n_epochs", 6, "--pooling", "mean", "--output_dir", tmp_path / "run")
    final = metrics(tmp_path / "run")
    assert final["valid_pearson"] > 0.8 and final["valid_spearman"] > 0.8 and "valid_accuracy" not in final
    predicted = run("finetuning_predict.py", tmp_path / "run", "good good good good good\ta film", "bad bad bad bad bad\ta film").stdout
    high, low = (json.loads(line)["label"] for line in predicted.splitlines())
    assert high > low


def test_prediction_reads_arguments_files_and_standard_input_in_order(finetuned, tmp_path):
    texts = [f"the film was {'good' if index % 3 else 'bad'} {'and so on ' * (index % 7)}".strip() for index in range(200)]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "texts.csv").write_text("id,text\n" + "".join(f"{index},{text}\n" for index, text in enumerate(texts)))
    outputs = [run("finetuning_predict.py", finetuned, "--input_file", tmp_path / f"texts.{kind}", "--batch_size", 7).stdout for kind in ("txt", "jsonl", "csv")]
    outputs.append(run("finetuning_predict.py", finetuned, *texts).stdout)
    piped = subprocess.run([sys.executable, str(ROOT / "finetuning_predict.py"), str(finetuned)], input="\n".join(texts), capture_output=True, text=True)
    outputs.append(piped.stdout)
    predictions = [[json.loads(line) for line in output.splitlines()] for output in outputs]
    assert all([one["label"] for one in rows] == [one["label"] for one in predictions[0]] for rows in predictions)
    expected = ["pos" if index % 3 else "neg" for index in range(200)]
    assert sum(one["label"] == label for one, label in zip(predictions[0], expected, strict=True)) > 180
    for row in predictions[0]:
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert max(row["probabilities"], key=row["probabilities"].get) == row["label"]
