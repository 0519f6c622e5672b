"""Real data as users have it, in whole runs: empty texts in every kind of task, columns beside those that
were trained on, splits of one example."""

import json
import math

import pytest
from helpers.runs import SHAPE, STEPS, call, metrics

from checkpoints.files import read_run_config, write_json

PAIRS = [
    {"text": "a good film", "text_pair": "so good", "label": "yes"},
    {"text": "a bad film", "text_pair": "so bad", "label": "no"},
]
ROWS = {
    "classification": [{key: value for key, value in row.items() if key != "text_pair"} for row in PAIRS],
    "pairs": PAIRS,
    "regression": [{"text": "a good film", "label": 0.9}, {"text": "a bad film", "label": 0.1}],
    "multiple_choice": [
        {"text": "the film was", "choices": ["good", "bad film"], "label": 0},
        {"text": "so", "choices": ["it was", "on"], "label": 1},
    ],
    "tagging": [
        {"tokens": ["anna", "sings"], "tags": ["B-PER", "O"]},
        {"tokens": ["so", "on"], "tags": ["O", "O"]},
    ],
    "parsing": [
        {"tokens": ["anna", "sings"], "head": [2, 0], "deprel": ["nsubj", "root"]},
        {"tokens": ["so"], "head": [0], "deprel": ["root"]},
    ],
    "question_answering": [
        {"question": "who ?", "context": "anna sings", "answers": {"text": ["anna"], "answer_start": [0]}},
        {"question": "what ?", "context": "anna sings", "answers": {"text": ["sings"], "answer_start": [5]}},
    ],
}
EMPTY = {
    "classification": [{"text": "", "label": "yes"}, {"text": None, "label": "no"}],
    "pairs": [
        {"text": "", "text_pair": "so good", "label": "yes"},
        {"text": "a film", "text_pair": "", "label": "no"},
        {"text": "", "text_pair": "", "label": "no"},
    ],
    "regression": [{"text": " ", "label": 0.4}, {"text": None, "label": 0.6}],
    "multiple_choice": [
        {"text": "", "choices": ["good", ""], "label": 1},
        {"text": "", "choices": [None, ""], "label": 0},
    ],
    "tagging": [{"tokens": [], "tags": []}, {"tokens": "", "tags": ""}, {"tokens": None, "tags": None}],
    "parsing": [{"tokens": [], "head": [], "deprel": []}, {"tokens": "", "head": "", "deprel": ""}],
    "question_answering": [
        {"question": "", "context": "anna sings", "answers": ["anna"]},
        {"question": "who ?", "context": None, "answers": []},
        {"question": "", "context": "", "answers": None},
    ],
}


@pytest.fixture
def train(cache, tmp_path):
    """Train on rows of a kind for two steps; return the folder and the metrics."""

    def make(kind, *flags, **splits):
        for split, rows in splits.items():
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = [
            "--dataset_path",
            tmp_path,
            "--dataset_cache",
            cache,
            "--model_checkpoint",
            "none",
            "--tokenizer",
            "train:100",
            *SHAPE,
            *STEPS,
        ]
        name = "classification" if kind == "pairs" else kind
        unanswerable = ["--unanswerable"] if kind == "question_answering" else []
        call(
            "finetuning_train.py",
            *common,
            "--kind",
            name,
            *unanswerable,
            "--n_steps",
            2,
            *flags,
            "--output_dir",
            tmp_path / "run",
        )
        return tmp_path / "run", metrics(tmp_path / "run")

    return make


def numbers(found):
    return [value for name, value in found.items() if name.startswith(("valid_", "test_"))]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", sorted(ROWS))
def test_empty_texts_are_trained_on_evaluated_and_predicted(kind, causal, train, tmp_path, caplog):
    rows = [*ROWS[kind], *EMPTY[kind], *ROWS[kind]]
    flags = [] if causal else ["--mlm"]
    flags += [] if kind in ("tagging", "parsing", "question_answering") else ["--pooling", "cls_mean_max"]
    folder, found = train(
        kind,
        *flags,
        "--lm_loss_coef",
        0.5,
        "--train_batch_size",
        len(rows),
        train=rows,
        valid=rows,
        test=EMPTY[kind],
    )
    assert all(map(math.isfinite, numbers(found))) and len(numbers(found)) >= 4
    told = [line for line in caplog.messages if "empty text" in line]
    assert [
        f"{len(EMPTY[kind])} of {n} examples" in line
        for line, n in zip(told, (len(rows), len(rows), len(EMPTY[kind])), strict=True)
    ] == [True] * 3

    caplog.clear()
    predicted = call("finetuning_predict.py", folder, "--input_file", tmp_path / "valid.jsonl").splitlines()
    assert len(predicted) == len(rows)
    assert [f"{len(EMPTY[kind])} texts of the input are empty, the first of them text 3"] == caplog.messages
    assert [
        json.loads(one)
        for one in call("finetuning_predict.py", folder, "--input_file", tmp_path / "test.jsonl").splitlines()
    ] == [json.loads(one) for one in predicted[2 : 2 + len(EMPTY[kind])]]


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [
        ("tagging", {"tokens": [], "tags": [], "entities": []}),
        ("parsing", {"tokens": [], "head": [], "deprel": []}),
        ("question_answering", ""),
    ],
)
def test_of_nothing_nothing_is_predicted(kind, nothing, train, tmp_path):
    folder, _ = train(kind, train=ROWS[kind], valid=ROWS[kind])
    (line,) = call(
        "finetuning_predict.py", folder, "who ?\t" if kind == "question_answering" else " "
    ).splitlines()
    found = json.loads(line)
    assert (found["answer"] if kind == "question_answering" else found) == nothing


def test_an_empty_text_is_read_alone_as_in_company(train, tmp_path):
    folder, _ = train(
        "classification",
        "--pooling",
        "cls_mean_max",
        train=ROWS["classification"],
        valid=ROWS["classification"],
    )
    together = [
        json.loads(line)
        for line in call("finetuning_predict.py", folder, "", "a good film and so on").splitlines()
    ]
    alone = json.loads(call("finetuning_predict.py", folder, ""))
    assert together[0]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)


# --------------------------------------------------------------------------------------------------- columns

LABELLED = [{"label": "yes"}, {"label": "no"}]
# Flags, the columns that training reads, others beside them that look like fields, a line that says the same.
BESIDE = {
    "one column": (
        "classification",
        ["--text_column", "review"],
        {"review": "a good film"},
        {"text": "id 7"},
        "a good film",
    ),
    "a text made of columns": (
        "classification",
        ["--text_column", "{a}: {b}"],
        {"a": "good", "b": "film"},
        {"text": "id 7"},
        "good: film",
    ),
    "a part of a column": (
        "classification",
        ["--text_column", "review.body"],
        {"review": {"body": "so good"}},
        {"text": "id 7"},
        "so good",
    ),
    "both texts of a pair": (
        "classification",
        ["--text_column", "a", "--text_pair_column", "b"],
        {"a": "good", "b": "film"},
        {"text": "id 7", "text_pair": "id 8"},
        "good\tfilm",
    ),
    "a list of columns": (
        "multiple_choice",
        ["--text_column", "q", "--choices_column", "a,b"],
        {"q": "it was", "a": "good", "b": "bad"},
        {"text": "id 7", "choices": ["c", "d"]},
        "it was\tgood\tbad",
    ),
    "the kind's own columns": ("tagging", [], {"tokens": ["anna", "sings"]}, {"text": "id 7"}, "anna sings"),
}


@pytest.mark.parametrize("case", BESIDE)
def test_prediction_reads_the_columns_that_training_read(case, train, tmp_path):
    kind, flags, read, beside, line = BESIDE[case]
    labels = {
        "classification": LABELLED,
        "multiple_choice": [{"label": 0}, {"label": 1}],
        "tagging": [{"tags": ["N", "V"]}] * 2,
    }[kind]
    rows = [beside | read | label for label in labels]
    folder, _ = train(kind, *flags, "--pooling", "mean", train=rows, valid=rows)
    from_file = call("finetuning_predict.py", folder, "--input_file", tmp_path / "train.jsonl").splitlines()
    assert from_file == call("finetuning_predict.py", folder, line).splitlines() * 2


def test_fields_under_our_own_names_will_do(train, tmp_path):
    rows = [{"review": "a good film"} | label for label in LABELLED]
    folder, _ = train("classification", "--text_column", "review", train=rows, valid=rows)
    (tmp_path / "own.csv").write_text("id,text\n7,a good film\n")
    assert call("finetuning_predict.py", folder, "--input_file", tmp_path / "own.csv") == call(
        "finetuning_predict.py", folder, "a good film"
    )


def test_the_columns_of_a_registered_dataset_are_known(train, tmp_path):
    """As if it had been trained on the Hub's SST-2, whose texts are in `sentence`."""
    folder, _ = train("classification", train=ROWS["classification"], valid=ROWS["classification"])
    config = read_run_config(folder, "run")
    write_json(folder / "config.json", config | {"arguments": config["arguments"] | {"dataset_path": "sst2"}})
    (tmp_path / "sst2.csv").write_text("text,sentence,label\nid 7,a good film,1\n")
    assert call("finetuning_predict.py", folder, "--input_file", tmp_path / "sst2.csv") == call(
        "finetuning_predict.py", folder, "a good film"
    )


# ------------------------------------------------------------------------------------------ a single example


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_one_example_can_be_validated_on(kind, train):
    """In batches that are larger than any split; a correlation, which one example has none of, is 0."""
    _, found = train(
        kind,
        "--train_batch_size",
        16,
        "--valid_batch_size",
        16,
        train=ROWS[kind],
        valid=ROWS[kind][:1],
        test=ROWS[kind][1:],
    )
    assert all(map(math.isfinite, numbers(found))) and len(numbers(found)) >= 4
    if kind == "regression":
        assert found["valid_pearson"] == found["valid_spearman"] == 0
