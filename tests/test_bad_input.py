"""What a script says to input it cannot use: one sentence, and nothing lost or half-written."""

import json
from pathlib import Path

import pytest
import torch

from checkpoints.atomic import atomic_write
from checkpoints.files import load_into, load_weights, save_weights, write_json
from config.command_line import parse_argv
from config.errors import UserError
from finetuning_predict import PredictionConfig, predict
from finetuning_train import FinetuningConfig, finetune
from pretraining_generate import GenerationConfig, continue_prompt
from pretraining_train import PretrainingConfig, pretrain

TINY = [
    *("--embed_dim", "16", "--hidden_dim", "16", "--num_layers", "1", "--num_heads", "2"),
    *("--num_max_positions", "16", "--train_batch_size", "2", "--n_steps", "1"),
]


CONFIGS = {
    pretrain: PretrainingConfig,
    finetune: FinetuningConfig,
    predict: PredictionConfig,
    continue_prompt: GenerationConfig,
}


def mistake(script, *arguments) -> str:
    """Call a script's main function, which must fail; return its one sentence."""
    with pytest.raises(UserError) as error:
        script(parse_argv(CONFIGS[script], "", list(map(str, arguments))))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A corpus, a task and a pretrained model that all work together."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.txt").write_text("the film was good and the film was bad\n" * 60)
    (tmp_path / "corpus" / "valid.txt").write_text("the film was bad\n" * 20)
    (tmp_path / "task").mkdir()
    for split in ("train", "valid"):
        rows = [{"text": f"the film was {word}", "label": word} for word in ("good", "bad") * 8]
        (tmp_path / "task" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


PRETRAIN = ["--dataset_path", "corpus", "--tokenizer", "train:100", "--output_dir", "run", *TINY]


@pytest.fixture
def checkpoint(folder) -> Path:
    pretrain(parse_argv(PretrainingConfig, "", [*PRETRAIN, "--output_dir", "checkpoint"]))
    return folder / "checkpoint"


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--dataset_path", "copus"], ["--dataset_path copus", "no such file"]),
        (["--num_heads", 3], ["embed_dim 16", "num_heads 3"]),
        (["--num_max_positions", 5000], ["too few", "--num_max_positions"]),
        (["--tokenizer", "missing.txt"], ["--tokenizer missing.txt"]),
        (["--device", "cuda:7"], ["--device cuda:7"]),
        (["--text_column", "body"], ["train.txt", "'body'", "--text_column"]),
    ],
)
def test_pretraining_refuses(changes, words, folder):
    sentence = mistake(pretrain, *PRETRAIN, *changes)
    assert all(word in sentence for word in words), sentence
    assert not (folder / "run").exists()


def test_a_run_folder_is_never_overwritten_by_accident(folder, checkpoint):
    before = (checkpoint / "model.safetensors").read_bytes()
    assert "--overwrite" in mistake(pretrain, *PRETRAIN, "--output_dir", checkpoint)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.tex").write_text("years of work")
    assert "not a run folder" in mistake(pretrain, *PRETRAIN, "--output_dir", "precious", "--overwrite")
    assert (folder / "precious" / "thesis.tex").exists() and (
        checkpoint / "model.safetensors"
    ).read_bytes() == before


FINETUNE = ["--dataset_path", "task", "--model_checkpoint", "checkpoint", "--output_dir", "run"]
FROM_SCRATCH = ["--model_checkpoint", "none", "--tokenizer", "train:100", *TINY]


@pytest.mark.parametrize(
    "changes, words",
    [
        (["--model_checkpoint", "corpus"], ["--model_checkpoint corpus is not a run folder"]),
        (["--max_length", 17], ["more than the model's 16 positions"]),
        (["--num_classes", 3], ["--num_classes 3"]),
        (["--label_column", "sentiment"], ["'sentiment'", "--label_column"]),
        ([*FROM_SCRATCH, "--adapters_dim", 4], ["needs a pretrained model"]),
        (["--adapters", "checkpoint"], ["--adapters are for --tuning fusion, not full"]),
        (["--tuning", "lora", "--adapters_dim", 4], ["flags that do: --lora_rank"]),
        (
            ["--tuning", "bitfit", "--drop_last"],
            ["--drop_last does not apply to --tuning bitfit", "do: none"],
        ),
        (["--finetuning_model_class", "HeadConfig"], ["is not a class of finetuning_model.py"]),
        (["--patience_metric", "pearson"], ["does not apply to classification"]),
        (["--tokenizer", "train:120"], ["leave --tokenizer out"]),
    ],
)
def test_finetuning_refuses_flags(changes, words, folder, checkpoint):
    sentence = mistake(finetune, *FINETUNE, *changes)
    assert all(word in sentence for word in words), sentence
    assert not (folder / "run").exists()


def test_finetuning_refuses_labels(folder, checkpoint):
    train, valid = (folder / "task" / f"{split}.jsonl" for split in ("train", "valid"))
    valid.write_text('{"text": "so so", "label": "mixed"}\n')
    sentence = mistake(finetune, *FINETUNE)
    assert all(word in sentence for word in ("valid", "'mixed'", "example 1", "does not occur in training"))
    valid.write_text('{"text": "good", "label": NaN}\n')
    assert "example 1 has no label" in mistake(finetune, *FINETUNE)
    train.write_text("")
    assert "train.jsonl is empty" in mistake(finetune, *FINETUNE)


def test_finetuning_refuses_weights(folder, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", config | {"model": config["model"] | {"embed_dim": 32}})
    assert "does not fit the model" in mistake(finetune, *FINETUNE)
    (checkpoint / "model.safetensors").write_bytes(b"not weights")
    assert "cannot be read as safetensors" in mistake(finetune, *FINETUNE)


def test_use_scripts_refuse(folder, checkpoint):
    assert "without a classification head" in mistake(predict, checkpoint, "a text")
    assert "not a run folder" in mistake(continue_prompt, "corpus", "the film")
    finetune(parse_argv(FinetuningConfig, "", [*FINETUNE, "--n_steps", "1"]))
    (folder / "rows.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    assert "text 2 of the input: the text is not a string but 3" in mistake(
        predict, "run", "--input_file", "rows.jsonl"
    )
    (folder / "rows.jsonl").write_text('{"text": "good", "text_pair": "bad"}\n')
    assert "text 1 of the input is a pair" in mistake(predict, "run", "--input_file", "rows.jsonl")


def test_files_are_written_atomically(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(file) as tmp_file:
        tmp_file.write_text("half of the new")
        raise RuntimeError("killed")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_weights_are_refused_by_name_and_shape(tmp_path):
    model = torch.nn.Linear(2, 3)
    save_weights(tmp_path / "weights", {"weight": torch.zeros(3, 2), "bias": torch.zeros(4)})
    with pytest.raises(UserError, match=r"bias is \[4\], the model's \[3\]"):
        load_into(model, load_weights(tmp_path / "weights"), "weights")
    with pytest.raises(UserError, match="lacks bias"):
        load_into(model, {"weight": torch.zeros(3, 2)}, "weights")
    with pytest.raises(UserError, match="has scale"):
        load_into(model, {"scale": torch.zeros(1)}, "weights")
