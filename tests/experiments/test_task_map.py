"""What a task map means, and what is refused before anything is trained."""

import json

import pytest
from helpers.grids import command, start

from config.command_line import parse_argv
from config.errors import UserError
from config.transfer import TransferConfig
from experiments.task_map import read_task_map
from finetuning_transfer import transfer


def read(content, tmp_path, *flags):
    return read_task_map(parse_argv(TransferConfig, "", command(content, tmp_path / "grid", *flags)))


def test_run_configs_recipe_defaults_tasks_and_flags_override_one_another(tmp_path):
    content = {
        "recipe": "full",
        "defaults": {"lr": 1e-3, "model_checkpoint": "none", "train_subset_size": 50, "max_norm": 2.0},
        "from": ["rte"],
        "to": {"cola": {"n_epochs": 7, "max_norm": 3.0}, "trec": {"metric": "macro_f1", "sizes": [5, 9]}},
    }
    task_map = read(content, tmp_path, "--max_norm", "4", "--source_train_subset_size", "60")
    source, cola, trec = task_map.sources["rte"], task_map.targets["cola"], task_map.targets["trec"]
    assert (source.dataset_path, source.text_pair_column) == ("hub:nyu-mll/glue:rte", "sentence2")
    assert (source.n_epochs, source.lr, source.max_norm, source.train_subset_size) == (3, 1e-3, 4.0, 60)
    assert (cola.config.n_epochs, cola.config.lr, cola.config.max_norm) == (7, 1e-3, 4.0)
    assert cola.columns() == {"cola": 50} and trec.columns() == {"trec@5": 5, "trec@9": 9}
    assert (cola.options.metric, trec.options.metric) == ("matthews", "macro_f1")
    assert read(content, tmp_path, "--train_subset_size", "8").targets["trec"].columns() == {"trec": 8}


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ["is not valid JSON"]),
        ({"form": [], "to": ["TASKS/one"]}, ["unknown key 'form'", "did you mean from?"]),
        ({"from": ["TASKS/one"]}, ["no tasks to transfer to"]),
        ({"to": "TASKS/one"}, ["to must be a list or an object"]),
        ({"to": ["TASKS/one", 3]}, ["to, task 2 must be a name"]),
        (
            {"to": {"TASKS/one": {"n_epoch": 3}}},
            ["to TASKS/one: unknown key 'n_epoch'; did you mean n_epochs?"],
        ),
        ({"to": {"TASKS/one": {"metrics": "f1"}}}, ["unknown key 'metrics'; did you mean metric?"]),
        ({"to": {"TASKS/one": {"lr": -1}}}, ["to TASKS/one: lr must be at least 0"]),
        ({"to": {"TASKS/one": {"seeds": [1, 1]}}}, ["seeds must be different numbers"]),
        ({"to": {"TASKS/one": {"sizes": "all"}}}, ["sizes must be list[int] or null"]),
        (
            {"to": {"TASKS/one": {"metric": "pearson"}}},
            ["to one: the metric pearson does not apply to classification", "accuracy"],
        ),
        ({"to": {"TASKS/one": {"tuning": "lora"}}}, ["tuning has to be the same for all tasks"]),
        ({"to": {"TASKS/one": {"seed": 3}}}, ["seed is set by the grid"]),
        ({"to": ["TASKS/one", "TASKS/one/"]}, ["the name one occurs twice"]),
        ({"from": [".."], "to": ["TASKS/one"]}, ["from: '..' names no folder of its own"]),
        ({"to": ["/"]}, ["to: '/' names no folder of its own"]),
        (
            {"from": ["TASKS/one"], "fusion": {"..": ["one"]}, "to": ["TASKS/two"]},
            ["'..' names no folder of its own"],
        ),
        ({"from": ["none"], "to": ["TASKS/one"]}, ["from: the name none is how the grid calls no transfer"]),
        ({"from": ["TASKS/four"], "to": ["TASKS/one"]}, ["from four", "no such file or folder"]),
        ({"to": {"TASKS/one": {"label_column": "sentiment"}}}, ["to one", "'sentiment'"]),
        (
            {"from": ["TASKS/one"], "fusion": {"both": ["on"]}, "to": ["TASKS/two"]},
            ["fusion both: 'on' is not under \"from\"; did you mean one?"],
        ),
        (
            {"defaults": {"dataset_path": "x"}, "to": ["TASKS/two"]},
            ["defaults: dataset_path cannot be the same"],
        ),
        (
            {"defaults": {"dataset_name": "x"}, "to": ["TASKS/two"]},
            ["defaults: dataset_path cannot be the same"],
        ),
    ],
)
def test_a_mistake_in_the_map_stops_it_before_anything_is_trained(content, words, tasks, common, tmp_path):
    content = (content if isinstance(content, str) else json.dumps(content)).replace("TASKS", str(tasks))
    with pytest.raises(UserError) as error:
        start(content, tmp_path / "grid", *common)
    sentence = str(error.value).replace(str(tasks), "TASKS")
    assert "grid.json" in sentence and all(word in sentence for word in words) and "\n" not in sentence, (
        sentence
    )
    assert not (tmp_path / "grid").exists()


def test_flags_that_make_no_grid_are_refused(tasks, common, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    content = {"from": [str(tasks / "one")], "to": [str(tasks / "two")]}
    for flags, words in [
        (["--dataset_path", "imdb"], "unknown argument --dataset_path"),
        (["--tuning", "fusion"], "name what to fuse"),
        (["--overwrite"], "unknown argument --overwrite"),
        (["--output_dir", tmp_path / "precious"], "holds something else than a grid"),
        (["--restarts", "0"], "restarts must be at least 1"),
    ]:
        with pytest.raises(UserError, match=words):
            transfer(
                parse_argv(
                    TransferConfig, "", [*command(content, tmp_path / "grid", *common), *map(str, flags)]
                )
            )
    assert not (tmp_path / "grid").exists()
