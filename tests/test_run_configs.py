"""Every task of run_configs/ fits the flags, and trains a step on rows laid out as its dataset publishes
them.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from config.command_line import parse_arguments
from config.finetuning import with_task
from config.presets import RUN_CONFIGS
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

# What a column holds where its type alone does not say it, by its name; lists of columns of words have five
# items.
VALUES = {
    "question": "Where does the _ live? {n}", "sentence": "The _ number {n} was too big .", "query": "The fox lives in @placeholder . {n}",
    "context": CONTEXT, "passage": CONTEXT, "plot": CONTEXT, "supports": ["A town.", CONTEXT], "answerKey": "B", "mirrored": False,
    "choices": {"label": ["A", "B", "C", "D", "E"], "text": [*CITIES, "Lima"]}, "options": CITIES, "endings": CITIES, "entities": CITIES,
    "answers_spans": {"spans": ["Paris"], "types": ["span"]}, "head": ["2", "0", "2", "5", "3"], "correct_answer_id": 1,
    "deprel": ["det", "root", "nmod:poss", "case", "obj"], "score": 0.5,
}  # fmt: skip
VALUES_OF = {
    "wikihop": {"query": "place_of_birth the fox {n}", "answer": "paris"},
    "race": {"answer": "C"},
    "winogrande": {"answer": "2"},
    "quartz": {"question": "Where does the _____ live? {n}", "choices": {"label": ["A", "B"], "text": CITIES[:2]}},
    "copa": {"question": "cause"},
    "social_i_qa": {"label": "3\n"},
    "hellaswag": {"label": "1"},
    "scitail": {"label": ("entails", "neutral")},  # in turn
    "cosmos_qa": {"label": 3},
    "emo": {"label": 2},
    "stsb": {"label": 3.5},
    "record": {"answers": ["Oslo", "Rome"]},
    "quail": {"answers": CITIES},
    "ud_parsing": {"head": [2, 0, 2, 5, 3]},
    "qnli": {"sentence": "It lives in a town. {n}"},
    "subj": {"label_text": ("objective", "subjective")},
}  # fmt: skip


def value(task, column, kind, n):
    """What row n has in a column, as its type and name want it."""
    found = VALUES_OF.get(task, {}).get(column, VALUES.get(column))
    found = found[n % len(found)] if isinstance(found, tuple) else found
    found = None if isinstance(found, str) and kind != "string" else found
    if column == "answers" and found is None:
        found = (
            {"text": ["Paris"], "answer_start": [CONTEXT.format(n=n).index("Paris")]}
            if isinstance(kind, dict)
            else ["Paris"]
        )
    if isinstance(kind, dict) and found is None:
        return {name: value(task, name, inner, n) for name, inner in kind.items()}
    if found is not None:
        return (
            [one.format(n=n) for one in found]
            if column == "supports"
            else found.format(n=n)
            if isinstance(found, str)
            else found
        )
    if kind.startswith("list<ClassLabel"):
        return [(n + index) % 2 for index in range(5)]
    if kind.startswith("ClassLabel"):
        return (
            1 + n % 2 if task == "art" else n % len(class_names(kind))
        )  # art has a class 0 that no row is of
    return {
        "string": f"some words number {n} of {column}", "int": n % 2, "float": 0.5 + n % 3, "bool": n % 2 == 0, "list<int>": [n % 2] * 5,
        "list<string>": [f"w{n}", "a", "b", "c", "."],
    }.get(kind, [])  # fmt: skip


def class_names(kind):
    names = re.search(r"\[(.*)\]", kind)[1].replace("comma(,)", "comma").split(",")
    if names == ["50 fine classes", " ABBR:abb..NUM:weight"]:
        return [f"class {number}" for number in range(50)]
    return ["," if name == "comma" else name for name in names]


def feature(datasets, kind):
    """A type of published_columns.json as a type of `datasets`."""
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
    """The folder of a Hub that has a few rows of every dataset."""
    import datasets

    root = tmp_path_factory.mktemp("hub")
    for name, one in PUBLISHED.items():
        at = "" if one["revision"] == "main" else f"@{one['revision']}"
        folder = root / "datasets" / f"{one['repository']}{at}"
        (root / "datasets" / one["repository"]).mkdir(parents=True, exist_ok=True)
        config = one["config"] or "default"
        features = datasets.Features(
            {column: feature(datasets, kind) for column, kind in one["columns"].items()}
        )
        for number, split in enumerate(one["splits"]):
            rows = [
                {c: value(name, c, kind, number * N_ROWS + n) for c, kind in one["columns"].items()}
                for n in range(N_ROWS)
            ]
            file = folder / config / split / "0000.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows, features=features).to_parquet(file)
        if not at:  # what a repository with several configurations has in its card
            card = folder / "README.md"
            head = card.read_text().removesuffix("---\n") if card.is_file() else "---\nconfigs:\n"
            files = "".join(f"  - split: {split}\n    path: {config}/{split}/*\n" for split in one["splits"])
            if f"- config_name: {config}\n" not in head:
                card.write_text(f"{head}- config_name: {config}\n  data_files:\n{files}---\n")
    return root


TRAIN = """
import json, sys
from pathlib import Path
from config.command_line import parse_arguments
from config.errors import UserError
from finetuning_train import FinetuningConfig, finetune, open_task
folder, vocab, *names = sys.argv[1:]
for name in names:
    config = parse_arguments(FinetuningConfig, "", [
        f"tasks/{name}", "--model_checkpoint", "none", "--tokenizer", vocab, "--dataset_cache", folder + "/cache", "--n_steps", "1",
        "--num_layers", "1", "--embed_dim", "16", "--hidden_dim", "16", "--num_heads", "2", "--num_max_positions", "512",
        "--train_batch_size", "4", "--output_dir", folder + "/" + name, "--no-eval_test"])
    try:
        metrics = finetune(config)
        task = open_task(config, vocab)
        print(json.dumps({"name": name, "metrics": metrics, "labels": task.kind.label_names, "row": next(iter(task.rows("train"))),
            "texts": task.reader.texts(next(iter(task.rows("train"))))[:4], "metric": config.patience_metric}), flush=True)
    except Exception as error:
        print(json.dumps({"name": name, "error": repr(error)}), flush=True)
"""


@pytest.fixture(scope="module")
def trained(hub, published, tiny_vocab, tmp_path_factory):
    """What came of a step on each task."""
    names = sorted(PUBLISHED.keys() - {"imdb", "rotten_tomatoes"})
    mirror = hub(published)
    folder = tmp_path_factory.mktemp("trained")
    result = mirror.run("-c", TRAIN, folder, tiny_vocab, *names, env=mirror.env, timeout=300)
    assert result.returncode == 0, result.stderr
    return {one["name"]: one for one in map(json.loads, result.stdout.splitlines())}


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
    found = trained[name]
    assert "error" not in found, found["error"]
    assert found["metrics"]["n_steps"] == 1 and f"valid_{found['metric']}" in found["metrics"]
    label = PUBLISHED[name]["columns"].get(
        json.loads((RUN_CONFIGS / "tasks" / f"{name}.json").read_text()).get("label_column", "label")
    )
    if isinstance(label, str) and label.startswith("ClassLabel") and found["labels"]:
        assert set(found["labels"]) == set(class_names(label)), "labels have their published names"


def test_texts_are_made_as_the_tasks_want_them(trained):
    texts = {name: one["texts"] for name, one in trained.items()}
    assert texts["winogrande"][0].startswith("The some words number") and "_" not in texts["winogrande"][0]
    assert texts["race"][1].startswith("Where does the Rome live?") and texts["race"][3].startswith(
        "Where does the Paris live?"
    )
    assert texts["copa"][1].startswith("What was the cause? some words")
    assert texts["art"][0].endswith("of hypothesis_1") and texts["art"][1].endswith("of observation_2")
    assert texts["record"][1].startswith("The fox lives in Rome") and trained["record"]["row"]["label"] == [
        2,
        0,
    ]
    assert texts["commonsense_qa"][1] == "Rome" and trained["commonsense_qa"]["row"]["label"] == [1]
    assert trained["social_i_qa"]["row"]["label"] == [2] and trained["winogrande"]["row"]["label"] == [1]
    assert trained["emo"]["row"]["label"] == "sad" and trained["hellaswag"]["row"]["label"] == [1]
    for name in ("squad", "drop", "wikihop", "hotpotqa"):
        first, last = trained[name]["row"]["span"]
        assert texts[name][1][first:last] == "Paris"
    assert trained["ud_parsing"]["row"] == {
        "text": ["w0", "a", "b", "c", "."],
        "heads": [2, 0, 2, 5, 3],
        "label": ["det", "root", "nmod", "case", "obj"],
    }
