"""Every task in run_configs/ is valid, and trains a step on rows in the format of its published dataset."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from config.command_line import parse_arguments
from config.finetuning import with_task
from config.multitask import MultitaskConfig
from config.presets import RUN_CONFIGS, load_preset
from finetuning_train import FinetuningConfig

PUBLISHED = json.loads((Path(__file__).parent / "helpers" / "published_columns.json").read_text())
ITRAIN = [
    "anli_r3",
    "art",
    "boolq",
    "cb",
    "cola",
    "commonsense_qa",
    "comqa",
    "conll2000",
    "conll2003",
    "conll2003_pos",
    "copa",
    "cosmos_qa",
    "cq",
    "drop",
    "duorc_p",
    "duorc_s",
    "emo",
    "emotion",
    "fce_error_detection",
    "hellaswag",
    "hotpotqa",
    "imdb",
    "mit_movie_trivia",
    "mnli",
    "mrpc",
    "multirc",
    "newsqa",
    "pmb_sem_tagging",
    "qnli",
    "qqp",
    "quail",
    "quartz",
    "quoref",
    "race",
    "record",
    "rotten_tomatoes",
    "rte",
    "scicite",
    "scitail",
    "sick",
    "snli",
    "social_i_qa",
    "squad",
    "squad_v2",
    "sst2",
    "stsb",
    "swag",
    "trec",
    "ud_deprel",
    "ud_parsing",
    "ud_pos",
    "wic",
    "wikihop",
    "winogrande",
    "wnli",
    "wnut_17",
    "yelp_polarity",
]
OTHERS = ["subj", "tweet_emotion", "tweet_irony", "tweet_offensive", "query_wellformedness"]
GONE = ["comqa", "cq", "fce_error_detection", "pmb_sem_tagging"]
N_ROWS = 24
CONTEXT = "The fox number {n} lives in Paris, far from the dog."
CITIES = ["Rome", "Paris", "Oslo", "Bern"]

# Values of the columns whose type does not determine them, by name. Lists with an item per word have five.
VALUES = {
    "question": "Where does the _ live? {n}",
    "sentence": "The _ number {n} was too big .",
    "query": "The fox lives in @placeholder . {n}",
    "context": CONTEXT,
    "passage": CONTEXT,
    "plot": CONTEXT,
    "supports": ["A town.", CONTEXT],
    "answerKey": "B",
    "mirrored": False,
    "choices": {"label": ["A", "B", "C", "D", "E"], "text": [*CITIES, "Lima"]},
    "options": CITIES,
    "endings": CITIES,
    "entities": CITIES,
    "answers_spans": {"spans": ["Paris"], "types": ["span"]},
    "head": ["2", "0", "2", "5", "3"],
    "correct_answer_id": 1,
    "deprel": ["det", "root", "nmod:poss", "case", "obj"],
    "score": 0.5,
}
# Exceptions for single tasks.
VALUES_OF = {
    "wikihop": {"query": "place_of_birth the fox {n}", "answer": "paris"},
    "race": {"answer": "C"},
    "winogrande": {"answer": "2"},
    "quartz": {
        "question": "Where does the _____ live? {n}",
        "choices": {"label": ["A", "B"], "text": CITIES[:2]},
    },
    "copa": {"question": "cause"},
    "social_i_qa": {"label": "3\n"},
    "hellaswag": {"label": "1"},
    "scitail": {"label": ("entails", "neutral")},  # alternating
    "cosmos_qa": {"label": 3},
    "emo": {"label": 2},
    "stsb": {"label": 3.5},
    "record": {"answers": ["Oslo", "Rome"]},
    "quail": {"answers": CITIES},
    "ud_parsing": {"head": [2, 0, 2, 5, 3]},
    "qnli": {"sentence": "It lives in a town. {n}"},
    "subj": {"label_text": ("objective", "subjective")},
}


def value(task, column, kind, n):
    """The value of a column in row n: a fixed one, or one that follows from the column's type."""
    fixed = VALUES_OF.get(task, {}).get(column, VALUES.get(column))
    if isinstance(fixed, tuple):
        fixed = fixed[n % len(fixed)]
    if isinstance(fixed, str):
        fixed = fixed.format(n=n) if kind == "string" else None
    if fixed is not None:
        return [text.format(n=n) for text in fixed] if column == "supports" else fixed
    if column == "answers":
        start = CONTEXT.format(n=n).index("Paris")
        return {"text": ["Paris"], "answer_start": [start]} if isinstance(kind, dict) else ["Paris"]
    if isinstance(kind, dict):
        return {name: value(task, name, inner, n) for name, inner in kind.items()}
    if kind.startswith("list<ClassLabel"):
        return [(n + index) % 2 for index in range(5)]
    if kind.startswith("ClassLabel"):
        return 1 + n % 2 if task == "art" else n % len(class_names(kind))  # no row of art has class 0
    by_type = {
        "string": f"some words number {n} of {column}",
        "int": n % 2,
        "float": 0.5 + n % 3,
        "bool": n % 2 == 0,
        "list<int>": [n % 2] * 5,
        "list<string>": [f"w{n}", "a", "b", "c", "."],
    }
    return by_type.get(kind, [])


def class_names(kind):
    names = re.search(r"\[(.*)\]", kind)[1].replace("comma(,)", "comma").split(",")
    if names == ["50 fine classes", " ABBR:abb..NUM:weight"]:
        return [f"class {number}" for number in range(50)]
    return ["," if name == "comma" else name for name in names]


def feature(datasets, kind):
    """The `datasets` feature for a type in published_columns.json."""
    if isinstance(kind, dict):
        return {name: feature(datasets, inner) for name, inner in kind.items()}
    if kind.startswith("ClassLabel"):
        return datasets.ClassLabel(names=class_names(kind))
    if kind.startswith("list<struct"):
        return datasets.List({"start": datasets.List(datasets.Value("int32"))})
    if kind.startswith("list<"):
        return datasets.List(feature(datasets, kind[len("list<") : -1]))
    return datasets.Value({"int": "int32", "float": "float32"}.get(kind, kind))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder of a Hub with a few rows of every dataset."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    for name, dataset in PUBLISHED.items():
        repository, revision, columns = dataset["repository"], dataset["revision"], dataset["columns"]
        suffix = "" if revision == "main" else f"@{revision}"
        folder = root / "datasets" / f"{repository}{suffix}"
        (root / "datasets" / repository).mkdir(parents=True, exist_ok=True)
        config = dataset["config"] or "default"
        features = datasets.Features({column: feature(datasets, kind) for column, kind in columns.items()})
        for number, split in enumerate(dataset["splits"]):
            rows = [
                {column: value(name, column, kind, number * N_ROWS + n) for column, kind in columns.items()}
                for n in range(N_ROWS)
            ]
            file = folder / config / split / "0000.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(file)
        if not suffix:  # the dataset card names the configurations
            card = folder / "README.md"
            head = card.read_text().removesuffix("---\n") if card.is_file() else "---\nconfigs:\n"
            files = "".join(
                f"  - split: {split}\n    path: {config}/{split}/*\n" for split in dataset["splits"]
            )
            if f"- config_name: {config}\n" not in head:
                card.write_text(f"{head}- config_name: {config}\n  data_files:\n{files}---\n")
    return root


TRAIN = """
import json, sys
import finetuning_train
from config.command_line import parse_arguments
folder, vocab, *names = sys.argv[1:]
open_task = finetuning_train.open_task
def keep_task(*arguments):
    global task
    task = open_task(*arguments)
    return task
finetuning_train.open_task = keep_task
for name in names:
    config = parse_arguments(finetuning_train.FinetuningConfig, "", [
        f"tasks/{name}", "--model_checkpoint", "none", "--tokenizer", vocab,
        "--num_layers", "1", "--embed_dim", "16", "--hidden_dim", "16", "--num_heads", "2",
        "--num_max_positions", "512", "--train_batch_size", "4", "--n_steps", "1", "--no-eval_test",
        "--dataset_cache", folder + "/cache", "--output_dir", folder + "/" + name])
    try:
        metrics = finetuning_train.finetune(config)
        row = next(iter(task.rows("train")))
        result = {"metrics": metrics, "metric": config.patience_metric, "labels": task.kind.label_names,
                  "row": row, "texts": task.reader.texts(row)[:4]}
    except Exception as error:
        result = {"error": repr(error)}
    print(json.dumps({"name": name} | result), flush=True)
"""


@pytest.fixture(scope="module")
def trained(hub, published, tiny_vocab, tmp_path_factory):
    """The result of a training step on each task, by name."""
    names = sorted(PUBLISHED.keys() - {"imdb", "rotten_tomatoes"})
    mirror = hub(published)
    folder = tmp_path_factory.mktemp("trained")
    result = mirror.run("-c", TRAIN, folder, tiny_vocab, *names, env=mirror.env, timeout=300)
    assert result.returncode == 0, result.stderr
    results = [json.loads(line) for line in result.stdout.splitlines()]
    return {result["name"]: result for result in results}


def test_every_task_of_itrain_is_there():
    assert {path.stem for path in (RUN_CONFIGS / "tasks").glob("*.json")} == {*ITRAIN, *OTHERS}


@pytest.mark.parametrize("name", [name for name in (*ITRAIN, *OTHERS) if name not in GONE])
def test_a_task_and_a_recipe_make_a_training(name):
    config = parse_arguments(FinetuningConfig, "", [name, "pfeiffer", "--lr", "5e-5"])
    assert (config.tuning, config.n_epochs, config.patience, config.lr) == ("pfeiffer", 15, 4, 5e-5)
    named = with_task(FinetuningConfig(dataset_path=name))
    task = parse_arguments(FinetuningConfig, "", [name])
    assert dataclasses.replace(named, dataset_path=task.dataset_path) == task, (
        "the preset and --dataset_path are one thing"
    )


@pytest.mark.parametrize("name", GONE)
def test_a_task_whose_data_is_gone_says_so(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(FinetuningConfig, "", [name])
    assert re.search(
        rf"{name}\.json: the data of this task can no longer be had. \w+", capsys.readouterr().err
    )


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - {"imdb", "rotten_tomatoes"}))
def test_every_task_trains_a_step_on_rows_as_published(name, trained):
    result = trained[name]
    assert "error" not in result, result["error"]
    assert result["metrics"]["n_steps"] == 1 and f"valid_{result['metric']}" in result["metrics"]
    task = json.loads((RUN_CONFIGS / "tasks" / f"{name}.json").read_text())
    label = PUBLISHED[name]["columns"].get(task.get("label_column", "label"))
    if isinstance(label, str) and label.startswith("ClassLabel") and result["labels"]:
        assert set(result["labels"]) == set(class_names(label)), "labels have their published names"


def test_texts_follow_the_tasks_definitions(trained):
    texts = {name: result["texts"] for name, result in trained.items()}
    labels = {name: result["row"]["label"] for name, result in trained.items()}
    assert texts["winogrande"][0].startswith("The some words number") and "_" not in texts["winogrande"][0]
    assert texts["race"][1].startswith("Where does the Rome live?")
    assert texts["race"][3].startswith("Where does the Paris live?")
    assert texts["copa"][1].startswith("What was the cause? some words")
    assert texts["art"][0].endswith("of hypothesis_1") and texts["art"][1].endswith("of observation_2")
    assert texts["record"][1].startswith("The fox lives in Rome") and labels["record"] == [2, 0]
    assert texts["commonsense_qa"][1] == "Rome" and labels["commonsense_qa"] == [1]
    assert labels["social_i_qa"] == [2] and labels["winogrande"] == [1]
    assert labels["emo"] == "sad" and labels["hellaswag"] == [1]
    for name in ("squad", "drop", "wikihop", "hotpotqa"):
        first, last = trained[name]["row"]["span"]
        assert texts[name][1][first:last] == "Paris"
    assert trained["ud_parsing"]["row"] == {
        "text": ["w0", "a", "b", "c", "."],
        "heads": [2, 0, 2, 5, 3],
        "label": ["det", "root", "nmod", "case", "obj"],
    }


# ------------------------------------------------------------------------------------------------- many tasks


@pytest.mark.processes("the libraries read the address of the Hub when they are imported")
def test_the_presets_of_many_tasks_train_a_step_on_them(hub, published, tiny_vocab, tmp_path, run_script):
    """On uncertain examples, with 128 tokens at most although some tasks allow more."""
    mirror, folder = hub(published), tmp_path / "run"
    shape = ["--num_layers", 2, "--embed_dim", 24, "--hidden_dim", 16, "--num_heads", 2, "--freeze_layers", 0]
    start = ["--model_checkpoint", "none", "--tokenizer", tiny_vocab, "--dataset_cache", tmp_path / "cache"]
    options = [*shape, *start, "--n_steps", 1, "--no-eval_test", "--output_dir", folder]
    result = run_script("multitask_train.py", "multitask_glue_large", *options, env=mirror.env)
    assert result.returncode == 0, result.stderr
    config, metrics = (json.loads((folder / file).read_text()) for file in ("config.json", "metrics.json"))
    assert len(metrics["tasks"]) == 11 and config["multitask"]["max_length"] == 128
    assert "valid_matthews" in metrics["tasks"]["cola"] and "valid_spearman" in metrics["tasks"]["stsb"]
    base, large = (load_preset(MultitaskConfig, f"multitask_glue{size}") for size in ("", "_large"))
    assert list(metrics["tasks"])[:8] == base.tasks.split(",")
    others = {name: getattr(large, name) for name in ("tasks", "model_checkpoint", "freeze_layers")}
    assert dataclasses.replace(base, **others) == large
