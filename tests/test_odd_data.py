"""Real data as users have it, in whole runs of every kind of task: empty texts."""
import json
import math

import pytest
from runs import SHAPE, STEPS, call, metrics

PAIRS = [{"text": "a good film", "text_pair": "so good", "label": "yes"}, {"text": "a bad film", "text_pair": "so bad", "label": "no"}]
ROWS = {
    "classification": [{key: value for key, value in row.items() if key != "text_pair"} for row in PAIRS],
    "pairs": PAIRS,
    "regression": [{"text": "a good film", "label": 0.9}, {"text": "a bad film", "label": 0.1}],
    "multiple_choice": [{"text": "the film was", "choices": ["good", "bad film"], "label": 0}, {"text": "so", "choices": ["it was", "on"], "label": 1}],
    "tagging": [{"tokens": ["anna", "sings"], "tags": ["B-PER", "O"]}, {"tokens": ["so", "on"], "tags": ["O", "O"]}],
    "parsing": [{"tokens": ["anna", "sings"], "head": [2, 0], "deprel": ["nsubj", "root"]}, {"tokens": ["so"], "head": [0], "deprel": ["root"]}],
    "question_answering": [
        {"question": "who ?", "context": "anna sings", "answers": {"text": ["anna"], "answer_start": [0]}},
        {"question": "what ?", "context": "anna sings", "answers": {"text": ["sings"], "answer_start": [5]}},
    ],
}
EMPTY = {
    "classification": [{"text": "", "label": "yes"}, {"text": None, "label": "no"}],
    "pairs": [{"text": "", "text_pair": "so good", "label": "yes"}, {"text": "a film", "text_pair": "", "label": "no"}, {"text": "", "text_pair": "", "label": "no"}],
    "regression": [{"text": " ", "label": 0.4}, {"text": None, "label": 0.6}],
    "multiple_choice": [{"text": "", "choices": ["good", ""], "label": 1}, {"text": "", "choices": [None, ""], "label": 0}],
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
        common = ["--dataset_path", tmp_path, "--dataset_cache", cache, "--model_checkpoint", "none", "--tokenizer", "train:100", *SHAPE, *STEPS]
        name = "classification" if kind == "pairs" else kind
        unanswerable = ["--unanswerable"] if kind == "question_answering" else []
        call("finetuning_train.py", *common, "--kind", name, *unanswerable, "--n_steps", 2, *flags, "--output_dir", tmp_path / "run")
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
    folder, found = train(kind, *flags, "--lm_loss_coef", 0.5, "--train_batch_size", len(rows), train=rows, valid=rows, test=EMPTY[kind])
    assert all(map(math.isfinite, numbers(found))) and len(numbers(found)) >= 4
    told = [line for line in caplog.messages if "empty text" in line]
    assert [f"{len(EMPTY[kind])} of {n} examples" in line for line, n in zip(told, (len(rows), len(rows), len(EMPTY[kind])), strict=True)] == [True] * 3

    caplog.clear()
    predicted = call("finetuning_predict.py", folder, "--input_file", tmp_path / "valid.jsonl").splitlines()
    assert len(predicted) == len(rows)
    assert [f"{len(EMPTY[kind])} texts of the input are empty, the first of them text 3"] == caplog.messages
    assert [json.loads(one) for one in call("finetuning_predict.py", folder, "--input_file", tmp_path / "test.jsonl").splitlines()] == [
        json.loads(one) for one in predicted[2 : 2 + len(EMPTY[kind])]
    ]


@pytest.mark.parametrize(
    ("kind", "nothing"),
    [("tagging", {"tokens": [], "tags": [], "entities": []}), ("parsing", {"tokens": [], "head": [], "deprel": []}), ("question_answering", "")],
)
def test_of_nothing_nothing_is_predicted(kind, nothing, train, tmp_path):
    folder, _ = train(kind, train=ROWS[kind], valid=ROWS[kind])
    (line,) = call("finetuning_predict.py", folder, "who ?\t" if kind == "question_answering" else " ").splitlines()
    found = json.loads(line)
    assert (found["answer"] if kind == "question_answering" else found) == nothing


def test_an_empty_text_is_read_alone_as_in_company(train, tmp_path):
    folder, _ = train("classification", "--pooling", "cls_mean_max", train=ROWS["classification"], valid=ROWS["classification"])
    together = [json.loads(line) for line in call("finetuning_predict.py", folder, "", "a good film and so on").splitlines()]
    alone = json.loads(call("finetuning_predict.py", folder, ""))
    assert together[0]["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
