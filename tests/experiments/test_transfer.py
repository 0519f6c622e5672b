"""Sequential transfer: what a target starts from, and a grid of cells that may be killed, shared and added
to.
"""

import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.runs import STEPS, WORDS, evaluations, kill_when_there_is, metrics, same_weights, spawn
from matplotlib.figure import Figure

from checkpoints.finetuned import load_finetuned
from config.command_line import parse_argv, run_script
from config.errors import UserError
from config.transfer import TransferConfig
from experiments.graph import locked
from experiments.grid_table import draw_heat_map
from finetuning_train import FinetuningConfig, finetune
from finetuning_transfer import transfer

SCRIPT = "finetuning_transfer.py"
FLAGS = [
    *STEPS,
    "--lr",
    "3e-3",
    "--n_steps",
    "6",
    "--eval_every",
    "3",
    "--save_every",
    "2",
    "--tuning",
    "pfeiffer",
    "--adapters_dim",
    "4",
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Three tasks with classes told apart by words."""
    folder, generator = tmp_path_factory.mktemp("tasks"), random.Random(3)
    for name, words in {
        "one": ("good", "bad"),
        "two": ("film", "story", "kind"),
        "three": ("bad", "good"),
    }.items():
        (folder / name).mkdir()
        for split, n_rows in (("train", 40), ("valid", 21)):
            rows = [
                {
                    "text": " ".join([*generator.choices(WORDS[8:], k=8), words[index % len(words)]]),
                    "label": index % len(words),
                }
                for index in range(n_rows)
            ]
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def grid_map(tasks) -> dict:
    one, two = (
        str(tasks / "one"),
        {"name": "second", "dataset_path": str(tasks / "two"), "train_subset_size": 30},
    )
    targets = {
        "second": {"dataset_path": str(tasks / "two"), "sizes": [9, 18]},
        str(tasks / "three"): {"metric": "eval_loss"},
    }
    return {
        "description": "for a test",
        "from": [one, two],
        "fusion": {"both": ["one", "second"]},
        "to": targets,
    }


@pytest.fixture(scope="module")
def common(pretrained, cache) -> list:
    return [*FLAGS, "--model_checkpoint", str(pretrained), "--dataset_cache", str(cache), "--restarts", "2"]


def command(content, folder: Path, *flags) -> list[str]:
    """The arguments of a grid in `folder`, whose task map is written beside it."""
    file = folder.with_suffix(".json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return [str(file), *map(str, flags), "--output_dir", str(folder)]


def start(content, folder: Path, *flags) -> dict:
    return transfer(parse_argv(TransferConfig, "", command(content, folder, *flags)))


def read_table(folder: Path) -> dict:
    with open(folder / "results.csv", newline="") as file:
        return {(row["source"], row["target"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def grid(grid_map, common, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grids") / "grid"
    start(grid_map, folder, *common)
    return folder


# ----------------------------------------------------------------------------------------------- one transfer


def stored(folder: Path) -> dict:
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.parametrize("tuning", ["full", "pfeiffer", "houlsby", "lora", "bitfit"])
def test_a_target_starts_from_the_weights_of_the_source_with_a_new_head(
    tuning, tasks, pretrained, cache, tmp_path
):
    def tune(*flags):
        common = [
            "--dataset_cache",
            cache,
            *FLAGS,
            "--adapters_dim",
            0,
            "--tuning",
            tuning,
            "--n_steps",
            2,
            *flags,
        ]
        finetune(parse_argv(FinetuningConfig, "", list(map(str, common))))

    tune(
        "--model_checkpoint", pretrained, "--dataset_path", tasks / "two", "--output_dir", tmp_path / "source"
    )
    tune(
        "--model_checkpoint",
        tmp_path / "source",
        "--dataset_path",
        tasks / "three",
        "--n_steps",
        0,
        "--output_dir",
        tmp_path / "target",
    )
    source, target, base = stored(tmp_path / "source"), stored(tmp_path / "target"), stored(pretrained)
    assert source.keys() == target.keys() and target["classification_head.weight"].size(0) == 2
    kept = [name for name in source if not name.startswith("classification_head.")]
    assert kept and all(torch.equal(source[name], target[name]) for name in kept)
    assert any(name not in base or not torch.equal(source[name], base[name]) for name in kept), (
        "the source has learned something"
    )

    about = [
        json.loads((tmp_path / name / "config.json").read_text())["base"] for name in ("source", "target")
    ]
    assert about[0] == (about[1] and about[1] | {"relative_path": about[0]["relative_path"]}), (
        "the base is the original one"
    )


def test_adapters_may_be_put_on_a_source_that_was_trained_in_full(tasks, pretrained, cache, tmp_path):
    def tune(*flags):
        return finetune(
            parse_argv(
                FinetuningConfig,
                "",
                list(map(str, ["--dataset_cache", cache, *STEPS, "--n_steps", 2, *flags])),
            )
        )

    tune(
        "--model_checkpoint", pretrained, "--dataset_path", tasks / "two", "--output_dir", tmp_path / "source"
    )
    tune(
        "--model_checkpoint",
        tmp_path / "source",
        "--dataset_path",
        tasks / "three",
        "--tuning",
        "houlsby",
        "--output_dir",
        tmp_path / "target",
    )
    model, source = (
        load_finetuned(tmp_path / "target", "RUN_FOLDER").state_dict(),
        stored(tmp_path / "source"),
    )
    assert torch.equal(
        model["transformer.token_embeddings.weight"], source["transformer.token_embeddings.weight"]
    )
    assert model["classification_head.weight"].size(0) == 2


def test_adapters_go_on_only_as_they_were_trained(grid, tasks, cache, tmp_path):
    def refuse(*flags) -> str:
        common = [
            "--dataset_path",
            tasks / "three",
            "--dataset_cache",
            cache,
            "--model_checkpoint",
            grid / "sources/42/one",
            "--output_dir",
            tmp_path / "run",
        ]
        with pytest.raises(UserError) as error:
            finetune(parse_argv(FinetuningConfig, "", list(map(str, [*common, *flags]))))
        assert not (tmp_path / "run").exists()
        return str(error.value)

    for flags in (
        [],
        ["--tuning", "lora"],
        ["--tuning", "pfeiffer"],
        ["--tuning", "pfeiffer", "--adapters_dim", 4, "--drop_last"],
    ):
        assert "add --tuning pfeiffer --adapters_dim 4 --adapter_activation relu" in refuse(*flags)


# ----------------------------------------------------------------------------------------------------- a grid


def test_the_table_has_means_deviations_and_gains(grid):
    table = read_table(grid)
    assert set(table) == {(source, target) for source in ("none", "one", "second", "both") for target in ("three", "second@9", "second@18")} - {
        ("second", "second@9"), ("second", "second@18")}  # fmt: skip
    for (source, target), row in table.items():
        assert (
            row["metric"] == ("valid_loss" if target == "three" else "valid_accuracy")
            and row["n"] == "2"
            and row["seeds"] == "42 43"
        )
        values, plain = (
            [metrics(grid / "cells" / one / target / seed)[row["metric"]] for seed in ("42", "43")]
            for one in (source, "none")
        )
        sign = -1 if target == "three" else 1
        assert float(row["mean"]) == pytest.approx(sum(values) / 2, abs=1e-5)
        assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-5)
        assert float(row["gain"]) == pytest.approx(sign * (sum(values) - sum(plain)) / 2, abs=1e-5)
    assert (grid / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert (
        metrics(grid / "cells/none/second@18/42")["n_labels"] == 18
        and metrics(grid / "sources/42/second")["n_labels"] == 30
    )
    assert [path.name for path in (grid / "sources").iterdir()] == ["42"], "each source is trained once"
    fused = stored(grid / "cells/both/three/42")
    assert torch.equal(
        fused["transformer.layers.0.after_feed_forward.adapters.one.up.weight"],
        stored(grid / "sources/42/one")["transformer.layers.0.after_feed_forward.up.weight"],
    )
    assert not list(grid.glob("**/checkpoints"))


def test_the_heat_map_lists_sources_as_the_map_does(grid, grid_map, common, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *arguments, **options: drawn.append(figure) or save(figure, *arguments, **options),
    )
    start(grid_map, grid, *common)
    rows, columns = (
        [label.get_text() for label in labels]
        for labels in (drawn[0].axes[0].get_yticklabels(), drawn[0].axes[0].get_xticklabels())
    )
    assert rows == ["no transfer", "one", "second", "both"]
    assert columns == ["second@9 (accuracy)", "second@18 (accuracy)", "three (loss)"]


def test_the_heat_map_shows_every_cell_that_there_is(tmp_path, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *arguments, **options: drawn.append(figure) or save(figure, *arguments, **options),
    )
    name = "a_name_that_is_far_too_long_to_stand_beside_a_row_of_cells"
    cells = [("none", "one", 0.5, 0.0), (name, "one", 0.25, None), ("none", name, 0.75, 0.0)]
    rows = [
        {"source": source, "target": target, "metric": "valid_accuracy", "mean": mean, "gain": gain}
        for source, target, mean, gain in cells
    ]
    for shown in (rows, rows[1:2]):
        draw_heat_map(shown, tmp_path / "drawn.png")
        axes = drawn.pop().axes[0]
        assert sorted(text.get_text() for text in axes.texts) == sorted(f"{row['mean']:.3f}" for row in shown)
        assert all(len(label.get_text()) < 45 for label in axes.get_xticklabels() + axes.get_yticklabels())
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_grid_goes_on_to_the_same_table(grid, grid_map, common, tmp_path):
    folder = tmp_path / "killed"
    kill_when_there_is(
        "cells/*/*/42/checkpoints/*.pt", folder, spawn(SCRIPT, *command(grid_map, folder, *common))
    )
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("**/metrics.json")}
    assert finished
    start(grid_map, folder, *common)
    assert (folder / "results.csv").read_text() == (grid / "results.csv").read_text()
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())


@pytest.fixture(scope="module")
def long_grid(tasks, common, tmp_path_factory) -> tuple[dict, list, Path]:
    """A map, its flags, and the folder of its grid: trainings that are long enough to be killed."""
    content = {"from": [str(tasks / "one")], "to": [str(tasks / "three"), str(tasks / "two")]}
    flags = [*common, "--n_steps", "400", "--eval_every", "100", "--save_every", "10", "--restarts", "1"]
    folder = tmp_path_factory.mktemp("long") / "grid"
    start(content, folder, *flags)
    return content, flags, folder


def workers_of_ray(folder: Path) -> list[int]:
    """The processes that train in a grid: Ray calls them ray::<name of the job>, and each has its log."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_worker = (process / "cmdline").read_bytes().startswith(b"ray::")
            if is_worker and str(folder) in os.readlink(process / "fd" / "1"):
                found.append(int(process.name))
    return found


def wait_for_checkpoint(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("cells/*/*/42/checkpoints/*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)


def assert_same_grid(one: Path, other: Path) -> None:
    assert (one / "results.csv").read_text() == (other / "results.csv").read_text()
    runs = [file.parent.relative_to(one) for file in one.glob("**/metrics.json")]
    assert runs and all(same_weights(one / run, other / run) for run in runs)
    assert all(evaluations(one / run) == evaluations(other / run) for run in runs)


@pytest.mark.slow
def test_killed_workers_cost_a_grid_on_ray_nothing(long_grid, tmp_path):
    content, flags, alone = long_grid
    folder = tmp_path / "grid"
    process = spawn(SCRIPT, *command(content, folder, *flags, "--workers", 2))
    wait_for_checkpoint(folder, process)
    killed = workers_of_ray(folder)
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and killed, errors
    assert "5 of 5 trainings finished" in errors
    logs = [file.read_text() for file in folder.glob("logs/**/*.log")]
    assert any("resuming after step" in log for log in logs)
    assert_same_grid(alone, folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_of_ray_takes_its_workers_along_and_goes_on(how, long_grid, tmp_path):
    content, flags, alone = long_grid
    folder = tmp_path / "grid"
    arguments = command(content, folder, *flags, "--workers", 2)
    process = spawn(SCRIPT, *arguments)
    wait_for_checkpoint(folder, process)
    workers = workers_of_ray(folder)
    process.send_signal(how)
    process.wait(timeout=60)
    process.stderr.close()
    finished = {file: file.stat().st_mtime_ns for file in folder.glob("**/metrics.json")}
    again = spawn(SCRIPT, *arguments)  # while the last workers may still be there
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "resuming after step" in "".join(file.read_text() for file in folder.glob("logs/**/*.log"))
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    assert workers and not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert_same_grid(alone, folder)


def test_a_grid_is_for_one_process_and_one_driver(tasks, common, tmp_path, monkeypatch):
    content = {"from": [str(tasks / "one")], "to": [str(tasks / "two")]}
    with locked(tmp_path / "grid"), pytest.raises(UserError, match="another process works in"):
        start(content, tmp_path / "grid", *common)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher started 2 processes, but one is enough for a grid"):
        start(content, tmp_path / "grid", *common)
    assert not (tmp_path / "grid" / "config.json").exists()


def test_a_grid_may_be_added_to_but_not_changed(grid, grid_map, common, tasks):
    finished = {file: file.stat().st_mtime_ns for file in grid.glob("**/metrics.json")}
    before = read_table(grid)
    with pytest.raises(UserError, match="was trained with lr 0.003, not 0.1; take another --output_dir"):
        start(grid_map, grid, *common, "--lr", 0.1)
    more = grid_map | {"from": [*grid_map["from"], {"name": "third", "dataset_path": str(tasks / "three")}]}
    start(more, grid, *common, "--no-keep_models")
    assert all(file.stat().st_mtime_ns == written for file, written in finished.items())
    table = read_table(grid)
    assert ("third", "three") in table and before.items() <= table.items()
    assert (
        not (grid / "cells/third/three/42/model.safetensors").exists()
        and (grid / "sources/42/third/model.safetensors").exists()
    )


def test_a_failing_cell_does_not_stop_the_others(grid_map, common, tasks, tmp_path, capsys):
    common = [one for one in common if one not in ("--lr", "3e-3")]

    def transfer_with(lr):
        diverging = {"name": "bad", "dataset_path": str(tasks / "three"), "metric": "loss", "lr": lr}
        arguments = command({"to": [diverging, str(tasks / "one")]}, tmp_path / "grid", *common)
        run_script(transfer, parse_argv(TransferConfig, "", arguments))

    with pytest.raises(SystemExit) as error:
        transfer_with(1e38)
    assert (
        str(error.value).startswith("error: 2 of 4 trainings failed")
        and "cells/none/bad/42" in str(error.value)
        and "diverged" in str(error.value)
    )
    assert list(read_table(tmp_path / "grid")) == [("none", "one")]
    shutil.rmtree(tmp_path / "grid" / "cells" / "none" / "bad")
    transfer_with(1e-3)  # what failed is tried again
    assert list(read_table(tmp_path / "grid")) == [("none", "bad"), ("none", "one")]


def test_messages_are_about_the_grid_alone(tasks, common, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "experiments.notify.tell", lambda services, what, kind, facts: told.append((what, facts))
    )
    start(
        {"from": [str(tasks / "one")], "to": [str(tasks / "two")]},
        tmp_path / "grid",
        *common,
        "--restarts",
        1,
        "--notify",
        "json://host/s3cret-token",
    )
    assert [what for what, _ in told] == ["started", "finished"] and "one → two" in told[1][1]
    assert not any(
        b"s3cret-token" in file.read_bytes() for file in (tmp_path / "grid").rglob("*") if file.is_file()
    )


# -------------------------------------------------------------------------------------------- what is refused


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
