"""What each script says to input that it cannot use: one sentence that names the culprit and the cure, exit
code 2, no traceback, and nothing left behind.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.runs import MAIN, config_class_of

from config.command_line import parse_arguments, run_script

ROW = '{"text": "a good film", "label": "pos"}\n{"text": "a bad film", "label": "neg"}\n'
DEEP = "[" * 100_000
PAIRS = '{"text": "a", "text_pair": "b", "label": "x"}\n'
MAP = {"from": ["{task}"], "to": ["{task}"]}
DEFAULTS = {"model_checkpoint": "{pretrained}"}


def files(train: str | bytes, name: str = "train.jsonl", **others: str | bytes) -> dict:
    """A task of one file, and a validation part."""
    return {name: train, "valid.jsonl": ROW} | others


def finetune(content: str | bytes, *words: str, name: str = "train.jsonl", flags: tuple = ()) -> tuple:
    """A task that fine-tuning refuses."""
    command = ["--dataset_path", ".", "--model_checkpoint", "{pretrained}", *flags]
    others = {"train.jsonl": ROW} if name == "valid.jsonl" else {"valid.jsonl": ROW}
    return ("finetuning_train.py", others | {name: content}, command, words)


def pretrain(content: str | bytes, *words: str, name: str = "train.txt", flags: tuple = ()) -> tuple:
    command = ["--dataset_path", name, "--tokenizer", "train:100", *flags]
    return ("pretraining_train.py", {name: content}, command, words)


def flags(script: str, *arguments: str, words: tuple = ()) -> tuple:
    return (script, {}, list(arguments), words)


def transfer(task_map: object, *words: str) -> tuple:
    content = task_map if isinstance(task_map, str | bytes) else json.dumps(task_map)
    return ("finetuning_transfer.py", {"map.json": content}, ["map.json", "--output_dir", "grid"], words)


TASK = ("--dataset_path", "{task}")
CORPUS = ("--dataset_path", "{corpus}", "--tokenizer", "train:100")
START = ("--model_checkpoint", "{pretrained}")
CASES = [
    # Flags, of each script.
    flags("pretraining_train.py", "--n_step", "3", words=("--n_step", "did you mean --n_steps")),
    flags("pretraining_train.py", "--lr", "fast", words=("--lr", "fast")),
    flags("pretraining_train.py", "--lr", "nan", words=("lr", "finite")),
    flags("pretraining_train.py", "--seed", "-1", words=("seed", "at least 0")),
    flags("pretraining_train.py", "--seed", str(10**30), words=("seed", "at most")),
    flags("pretraining_train.py", "--log_every", "0", words=("log_every", "at least 1")),
    flags("pretraining_train.py", "--timeout", "0", words=("timeout", "at least 1")),
    flags("pretraining_train.py", "--precision", "fp8", words=("precision", "fp16")),
    flags("pretraining_train.py", "--device", "cuda:99", words=("--device cuda:99", "cpu")),
    flags("pretraining_train.py", "no_such_preset", words=("no_such_preset", "run_configs")),
    flags("pretraining_train.py", "--dataset_path", "nowhere", words=("--dataset_path nowhere", "hub:")),
    flags("pretraining_train.py", "--dataset_path", "", words=("--dataset_path is empty",)),
    flags("pretraining_train.py", "--dataset_path", "x" * 300, words=("too long for the name of a file",)),
    flags("pretraining_train.py", "--dataset_path", "hub:a b", words=("write hub:owner/name",)),
    flags("pretraining_train.py", "--dataset_path", "https://me:pw@h/a.zip:b", words=("~/.netrc", "***@h")),
    flags(
        "pretraining_train.py",
        "--dataset_path",
        "{corpus}",
        "--tokenizer",
        "x.txt",
        words=("x.txt", "no such"),
    ),
    flags("pretraining_train.py", "--dataset_path", "{corpus}", "--tokenizer", "train:7", words=("train:7",)),
    flags("pretraining_train.py", "--resume", "nowhere", words=("--resume nowhere", "config.json")),
    flags("pretraining_train.py", *CORPUS, "--embed_dim", "30", "--num_heads", "7", words=("divisible",)),
    flags("finetuning_train.py", *TASK, "--model_checkpoint", "nowhere", words=("nowhere", "config.json")),
    flags("finetuning_train.py", *TASK, "--model_checkpoint", "x" * 300, words=("too long",)),
    flags("finetuning_train.py", *TASK, *START, "--tuning", "adapter", words=("tuning", "pfeiffer")),
    flags("finetuning_train.py", *TASK, *START, "--max_length", "10000", words=("max_length",)),
    flags(
        "finetuning_train.py",
        *TASK,
        *START,
        "--kind",
        "parsing",
        words=("no column 'tokens'", "--text_column"),
    ),
    flags("finetuning_train.py", *TASK, *START, "--patience_metric", "bleu", words=("bleu", "accuracy")),
    flags("finetuning_train.py", *TASK, *START, "--label_column", "stars", words=("stars", "--label_column")),
    flags("finetuning_train.py", *TASK, *START, "--output_dir", "{task}/train.jsonl", words=("a file",)),
    flags("finetuning_train.py", *TASK, *START, "--output_dir", "{task}", words=("not empty", "--overwrite")),
    flags("finetuning_train.py", *TASK, *START, "--output_dir", "{task}", "--overwrite", words=("refusing",)),
    flags(
        "finetuning_train.py", *TASK, *START, "--notify", "nobody", words=("--notify number 1", "service://")
    ),
    flags(
        "finetuning_train.py",
        *TASK,
        *START,
        "--adapters",
        "nowhere",
        "--tuning",
        "fusion",
        words=("nowhere",),
    ),
    flags("finetuning_train.py", "--lr", "1", "--learning_rate", "2", words=("--learning_rate", "keep one")),
    flags("multitask_train.py", words=("--tasks",)),
    flags("multitask_train.py", "--tasks", "{task},{task}", *START, words=("two tasks",)),
    flags("multitask_train.py", "--tasks", "trek", *START, words=("trek", "did you mean trec")),
    flags(
        "multitask_train.py", "--tasks", "{task}", *START, "--conditioning", "magic", words=("magic", "norm")
    ),
    flags(
        "multitask_train.py",
        "--tasks",
        "{task}",
        *START,
        "--freeze_layers",
        "3-9",
        words=("--freeze_layers",),
    ),
    flags(
        "multitask_train.py",
        "--tasks",
        "{task}",
        *START,
        "--sampling",
        "random",
        words=("sampling", "uniform"),
    ),
    flags("multitask_train.py", "--add_task", "a,b", *START, words=("--add_task a,b",)),
    flags("selection_train.py", "--sources", "mnli,.", *START, words=("'.'", "folder of its own")),
    flags("selection_train.py", "--sources", "nowhere", *START, words=("nowhere",)),
    flags("selection_rank.py", "--target", "{task}", "--pool", "nowhere", words=("nowhere",)),
    flags("selection_rank.py", "--pool", "{task}", words=("--target",)),
    flags("selection_evaluate.py", "nowhere", "--pool", "{task}", words=("is not a pool",)),
    flags("pretraining_generate.py", "nowhere", "The film", words=("nowhere", "config.json")),
    flags("pretraining_generate.py", "{pretrained}", "film", "--top_p", "7", words=("top_p",)),
    flags("finetuning_predict.py", words=("RUN_FOLDER",)),
    flags("finetuning_predict.py", "{pretrained}", "a film", words=("without a classification head",)),
    flags("finetuning_predict.py", "{task}", "a film", words=("config.json",)),
    flags("export.py", "nowhere", "out", words=("nowhere",)),
    flags("export.py", "{pretrained}", "{task}", words=("not an empty folder",)),
    flags("quickstart.py", "--labels", "many", words=("--labels many", "100,500,2000")),
    flags("quickstart.py", "--multitask", "--selection", words=("do not go together",)),
    # Tables of a corpus or a task.
    pretrain("", "train.txt is empty"),
    pretrain(b"caf\xe9\n" * 99, "train.txt is not UTF-8 text (byte 3)"),
    pretrain("a word\n" * 9, "too few", "--num_max_positions"),
    pretrain("a word\n", "no tokens"),
    pretrain("a", "cannot read .pdf", ".jsonl", name="train.pdf"),
    pretrain('{"body": "a"}\n', "no column 'text'", "--text_column", name="train.jsonl"),
    pretrain('{"text": 7}\n', "not a string but 7", name="train.jsonl"),
    finetune('{"text": "a"', "train.jsonl line 1 is not valid JSON"),
    finetune(ROW + DEEP, "line 3 is not valid JSON"),
    finetune(ROW + "[]\n", "line 3 must be a JSON object"),
    finetune('{"text": null, "label": "a"}\n', "text"),
    finetune('{"text": "a", "label": {"b": 1}}\n', "neither a string nor a number"),
    finetune('{"text": "a", "label": null}\n' * 3, "label"),
    finetune(ROW + '{"text": "a", "label": "other"}\n', "other", name="valid.jsonl"),
    finetune('{"text": "a", "label": "pos"}\n' * 5, "pos"),
    finetune("text,label,text\na,b,c\n", "more than one column called 'text'", name="train.csv"),
    finetune("text,label\na,b,c\n", "does not have the header's 2 columns", name="train.csv"),
    finetune('text,label\n"a,b\n', "train.csv line", name="train.csv"),
    finetune("text\tlabel\na\n", "does not have the header's 2 columns", name="train.tsv"),
    finetune(b"PAR1 no table", "not a readable parquet file", name="train.parquet"),
    finetune("a B\n\nc", "no tokens", name="train.conllu", flags=("--kind", "parsing")),
    finetune(PAIRS + '{"text": "a", "label": "y"}\n', "text_pair"),
    finetune('{"tokens": ["a", "b"], "tags": ["X"]}\n', "2 words, but 1 tags", flags=("--kind", "tagging")),
    finetune('{"question": "a", "answers": "b"}\n', "context", flags=("--kind", "question_answering")),
    finetune(
        '{"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": 5}}\n',
        "answer_start",
        flags=("--kind", "question_answering"),
    ),
    finetune('{"text": "a", "choices": ["b"], "label": 3}\n', "choices", flags=("--kind", "multiple_choice")),
    finetune('{"text": "a", "label": "b"}\n', "not a number", flags=("--kind", "regression")),
    finetune('{"text": "a", "label": 1e39}\n', "too large", flags=("--kind", "regression")),
    finetune('{"text": "a", "label": 1' + "0" * 400 + "}\n", "label", flags=("--kind", "regression")),
    # JSON of presets, task maps and runs.
    ("pretraining_train.py", {"my.json": "{"}, ["my.json"], ("my.json is not valid JSON",)),
    ("pretraining_train.py", {"my.json": DEEP}, ["my.json"], ("my.json is not valid JSON",)),
    ("pretraining_train.py", {"my.json": "[]"}, ["my.json"], ("one JSON object",)),
    ("pretraining_train.py", {"my.json": b"\xff\xfe{"}, ["my.json"], ("my.json is not valid JSON",)),
    ("pretraining_train.py", {"my.json": '{"lr": 1, "lr": 2}'}, ["my.json"], ("'lr' is there twice",)),
    ("pretraining_train.py", {"my.json": '{"lr": 1' + "0" * 400 + "}"}, ["my.json"], ("lr is too large",)),
    ("pretraining_train.py", {"my.json": '{"lr": "1"}'}, ["my.json"], ("my.json: lr must be float",)),
    ("pretraining_train.py", {"my.json": '{"learning": 1}'}, ["my.json"], ("unknown key 'learning'",)),
    (
        "pretraining_train.py",
        {"my.json": '{"output_dir": "a\\u0000b"}'},
        ["my.json", *CORPUS],
        ("output_dir has a character",),
    ),
    ("pretraining_train.py", {"run/config.json": "{}"}, ["--resume", "run"], ("no arguments",)),
    (
        "pretraining_train.py",
        {"run/config.json": '{"arguments": []}'},
        ["--resume", "run"],
        ("no arguments",),
    ),
    (
        "pretraining_train.py",
        {"run/config.json": '{"script": "other.py", "arguments": {"tasks": ""}}'},
        ["--resume", "run"],
        ("resume it with other.py",),
    ),
    transfer("{", "map.json is not valid JSON"),
    transfer({"defaults": DEFAULTS}, "no tasks to transfer to"),
    transfer({"defaults": DEFAULTS, "to": ["nowhere"]}, "nowhere"),
    transfer({"defaults": DEFAULTS, "to": ["{task}", "{task}"]}, "twice"),
    transfer({"defaults": DEFAULTS | {"lr": "high"}, "to": ["{task}"]}, "lr must be float"),
    transfer({"defaults": DEFAULTS, "from": [".."], "to": ["{task}"]}, "names no folder of its own"),
    transfer({"defaults": DEFAULTS, "to": ["{task}"], "fusion": {"all": ["mnli"]}}, "'mnli' is not under"),
    transfer({"defaults": DEFAULTS, "to": ["{task}"], "form": []}, "form"),
]


@pytest.fixture(scope="module")
def parquet() -> bytes:
    """Rows with two columns of one name."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table([np.arange(2), np.arange(2)], names=["text", "text"]), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def places(task, corpus, pretrained) -> dict[str, Path]:
    return {"{task}": task, "{corpus}": corpus, "{pretrained}": pretrained}


def filled(text: str, places: Mapping[str, Path]) -> str:
    for name, path in places.items():
        text = text.replace(name, str(path))
    return text


@pytest.mark.parametrize(("script", "content", "command", "words"), CASES)
def test_one_sentence_and_nothing_left(
    script, content, command, words, places, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, text in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if isinstance(text, str):
            (tmp_path / name).write_text(filled(text, places), encoding="utf-8")
        else:
            (tmp_path / name).write_bytes(text)
    before = sorted(tmp_path.rglob("*"))
    there = {path: sorted(path.rglob("*")) for path in places.values()}
    command = [filled(word, places) for word in command]
    elsewhere = {"--dataset_cache": str(tmp_path.with_name("cache")), "--output_dir": "run"}
    for flag, value in elsewhere.items():
        is_given = {flag, "--resume"} & set(command) or flag[2:] in str(content)
        if hasattr(config_class_of(script), flag[2:]) and not is_given:
            command += [flag, value]
    monkeypatch.setattr("sys.argv", [script, *command])
    with pytest.raises(SystemExit) as end:
        config = parse_arguments(config_class_of(script), "")
        run_script(getattr(importlib.import_module(script.removesuffix(".py")), MAIN[script][1]), config)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert end.value.code == 2 and len(told) == 1, (end.value, told)
    assert all(word in told[0] for word in words), told[0]
    assert sorted(tmp_path.rglob("*")) == before
    assert there == {path: sorted(path.rglob("*")) for path in places.values()}
