"""Every kind of task as a user runs it: training, one process or two, killed and resumed, prediction."""

import json
import random
import shutil

import pytest
from helpers.crashes import assert_kills_change_nothing
from helpers.runs import NO_DROPOUT, SHAPE, STEPS, call, evaluations, metrics, run_two

NAMES, PLACES, VERBS = (
    ["anna", "bob", "carl", "dora", "eva"],
    ["paris", "rome", "oslo", "bern", "lima"],
    ["lives", "works", "sings"],
)
METRIC = {"multiple_choice": "accuracy", "tagging": "f1", "question_answering": "f1", "parsing": "las"}


def make_row(kind, number, random):
    """An example that a small model can learn."""
    name, place, verb = (random.choice(words) for words in (NAMES, PLACES, VERBS))
    rest = [str(number), *(random.choice(VERBS) for _ in range(random.randint(0, 6)))]
    words = [name, verb, "in", place, *rest]
    if kind == "multiple_choice":  # places are right, names are not
        choices = [random.choice(PLACES), *random.sample(NAMES, random.randint(1, 2))]
        random.shuffle(choices)
        return {
            "text": " ".join(words),
            "choices": choices,
            "label": next(index for index, one in enumerate(choices) if one in PLACES),
        }
    if kind == "tagging":
        return {"tokens": words, "tags": ["B-PER", "O", "O", "B-LOC", *["O"] * len(rest)]}
    if kind == "parsing":
        return {
            "tokens": words,
            "head": [2, 0, 4, 2, *[2] * len(rest)],
            "deprel": ["nsubj", "root", "case", "obl:loc", *["dep"] * len(rest)],
        }
    context = " ".join([*rest, *words] * random.randint(1, 3))
    return {
        "question": "which place ?",
        "context": context,
        "answers": {"text": [place], "answer_start": [context.index(place)]},
    }


@pytest.fixture(scope="module", params=METRIC)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def options(kind, cache, tmp_path_factory):
    """The flags of a run on a task of the kind, and the folder of the task."""
    folder, generator = tmp_path_factory.mktemp(kind), random.Random(0)
    for split, n_rows in (("train", 160), ("valid", 41), ("test", 23)):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(make_row(kind, n, generator)) + "\n" for n in range(n_rows))
        )
    common = [
        "--dataset_path",
        folder,
        "--dataset_cache",
        cache,
        "--kind",
        kind,
        "--model_checkpoint",
        "none",
        "--tokenizer",
        "train:200",
    ]
    return [*common, *SHAPE, "--doc_stride", 8, *STEPS, "--lr", "5e-3"], folder


@pytest.fixture(scope="module")
def trained(kind, options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / kind
    bidirectional = ["--mlm"] if kind in ("parsing", "question_answering") else []
    call(
        "finetuning_train.py",
        *options[0],
        *bidirectional,
        *NO_DROPOUT,
        "--n_epochs",
        10,
        "--train_batch_size",
        8,
        "--output_dir",
        folder,
    )
    return folder


def test_it_learns(kind, trained):
    final = metrics(trained)
    assert final[f"valid_{METRIC[kind]}"] > 0.85 and final[f"test_{METRIC[kind]}"] > 0.8


def test_it_predicts_what_it_learned_in_the_order_of_the_input(kind, options, trained, tmp_path):
    rows = [json.loads(line) for line in (options[1] / "test.jsonl").read_text().splitlines()]
    predicted = [
        json.loads(line)
        for line in call(
            "finetuning_predict.py", trained, "--input_file", options[1] / "test.jsonl"
        ).splitlines()
    ]
    assert len(predicted) == len(rows)
    right = {
        "multiple_choice": lambda found, row: (
            found["label"] == row["label"] and found["choice"] == row["choices"][row["label"]]
        ),
        "tagging": lambda found, row: found["tokens"] == row["tokens"] and found["tags"] == row["tags"],
        "parsing": lambda found, row: (
            found["head"] == row["head"] and found["deprel"] == [name.split(":")[0] for name in row["deprel"]]
        ),
        "question_answering": lambda found, row: (
            row["context"][found["start"] : found["end"]] == found["answer"] == row["answers"]["text"][0]
        ),
    }[kind]
    n_right = sum(map(right, predicted, rows))
    assert n_right >= 0.5 * len(rows)
    if kind != "multiple_choice":  # whole sentences and questions; of some the model knows a part
        return
    assert n_right / len(rows) == pytest.approx(metrics(trained)["test_accuracy"])


def test_a_line_of_text_has_tabs_between_its_fields(kind, trained):
    line, field = {
        "multiple_choice": ("anna lives in paris\tbob\toslo\teva", "choice"),
        "tagging": ("anna lives in paris", "entities"),
        "parsing": ("anna lives in paris", "deprel"),
        "question_answering": ("which place ?\tanna lives in paris 1", "answer"),
    }[kind]  # fmt: skip
    found = json.loads(call("finetuning_predict.py", trained, line))
    assert field in found
    if kind == "multiple_choice":
        assert found["choice"] == "oslo"


@pytest.mark.parametrize("kind", ["tagging", "question_answering"], indirect=True)
def test_a_run_from_before_the_two_had_heads_of_their_own_predicts_the_same(kind, trained, tmp_path):
    old = shutil.copytree(trained, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"model_class": "TransformerWithTokenHead"}))
    line = "which place ?\tanna lives in paris 1"
    assert call("finetuning_predict.py", old, line) == call("finetuning_predict.py", trained, line)


@pytest.mark.processes("it is about two of them")
def test_two_processes_equal_one(kind, options, tmp_path):
    common = [*options[0], *NO_DROPOUT, "--n_steps", 4, "--eval_every", 2]
    call("finetuning_train.py", *common, "--output_dir", tmp_path / "one")
    run_two("finetuning_train.py", *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two")
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        assert one == pytest.approx(two, abs=2e-3) and one["loss"] == pytest.approx(two["loss"], abs=1e-4)


@pytest.mark.processes("it kills one")
@pytest.mark.parametrize("kind", ["question_answering"], indirect=True)
def test_a_killed_run_resumes_to_the_same_result(kind, options, tmp_path):
    steps = ["--n_steps", 120, "--save_every", 10, "--optimizer", "muon", "--muon_lr", 0.01]
    assert_kills_change_nothing("finetuning_train.py", tmp_path, *options[0], *steps, seed=1)


@pytest.mark.parametrize("kind", ["tagging", "multiple_choice"], indirect=True)
def test_an_auxiliary_loss_adapters_and_other_checkpoints_go_with_every_kind(
    kind, options, pretrained, tmp_path
):
    without = [str(one) for one in options[0]]
    for flag in ("--model_checkpoint", "--tokenizer"):
        at = without.index(flag)
        del without[at : at + 2]
    shape = [str(one) for one in SHAPE]
    at = without.index(shape[0])
    del without[at : at + len(shape)]
    common = [*without, "--model_checkpoint", pretrained, "--n_steps", 3]
    call("finetuning_train.py", *common, "--lm_loss_coef", 0.5, "--output_dir", tmp_path / "full")
    call("finetuning_train.py", *common, "--tuning", "pfeiffer", "--output_dir", tmp_path / "adapters")
    assert metrics(tmp_path / "adapters")["n_trained"] < metrics(tmp_path / "full")["n_trained"]
    call("finetuning_predict.py", tmp_path / "adapters", "--input_file", options[1] / "test.jsonl")


WORD_FLAGS = [
    "--model_checkpoint",
    "none",
    "--tokenizer",
    "train:150",
    *SHAPE,
    *STEPS,
    "--n_steps",
    40,
    "--lr",
    "5e-3",
]
SENTENCE = (
    "# sent_id = {n}\n"
    "1-2\tx\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tanna\t_\tPROPN\t_\t_\t2\tnsubj\t_\t_\n"
    "2\tsings\t_\tVERB\t_\t_\t0\troot\t_\t_\n"
    "3\t{n}\t_\tNUM\t_\t_\t2\tdep\t_\t_\n\n"
)


def train_on_words(kind, file, cache, run_folder):
    data = ["--kind", kind, "--dataset_path", file, "--dataset_cache", cache]
    call("finetuning_train.py", *data, *WORD_FLAGS, "--output_dir", run_folder)
    return metrics(run_folder)


def test_a_conll_file_trains_a_tagger(cache, tmp_path):
    lines = [f"{random.Random(n).choice(NAMES)} N B-PER\nsings V O\n{n} X O\n" for n in range(60)]
    (tmp_path / "tags.conll").write_text("-DOCSTART- -X- O\n\n" + "\n".join(lines))
    assert train_on_words("tagging", tmp_path / "tags.conll", cache, tmp_path / "tagger")["valid_f1"] > 0.9


def test_a_conllu_file_trains_a_parser_and_is_parsed(cache, tmp_path):
    file, run_folder = tmp_path / "trees.conllu", tmp_path / "parser"
    file.write_text("".join(SENTENCE.format(n=n) for n in range(60)))
    assert train_on_words("parsing", file, cache, run_folder)["valid_las"] > 0.9
    parsed = call("finetuning_predict.py", run_folder, "--input_file", file).splitlines()
    assert len(parsed) == 60 and json.loads(parsed[7])["tokens"] == ["anna", "sings", "7"]
