"""Sequential transfer: what a target starts from, and a grid of cells that may be killed, shared and added
to.
"""

import itertools
import json
import shutil
from pathlib import Path

import filelock
import pytest
import safetensors.torch
import torch
from helpers.grids import FLAGS, command, read_table, start
from helpers.runs import STEPS, metrics
from matplotlib.figure import Figure

from checkpoints.atomic import LOCK
from checkpoints.finetuned import load_finetuned
from config.command_line import parse_argv, run_script
from config.errors import UserError
from config.transfer import TransferConfig
from experiments.grid_table import draw_heat_map
from finetuning_train import FinetuningConfig, finetune
from finetuning_transfer import transfer


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
    sources, targets = ("none", "one", "second", "both"), ("three", "second@9", "second@18")
    to_itself = {("second", "second@9"), ("second", "second@18")}
    assert set(table) == set(itertools.product(sources, targets)) - to_itself
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


def test_a_grid_is_for_one_process_and_one_driver(tasks, common, tmp_path, monkeypatch):
    content = {"from": [str(tasks / "one")], "to": [str(tasks / "two")]}
    (tmp_path / "grid").mkdir()
    other = filelock.FileLock(tmp_path / "grid" / LOCK)  # for the system, each that opens the file is another
    with other, pytest.raises(UserError, match="another process works in"):
        start(content, tmp_path / "grid", *common)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher started 2 processes, but one is enough"):
        start(content, tmp_path / "grid", *common)
    assert not (tmp_path / "grid" / "config.json").exists()


def test_a_grid_may_be_added_to_but_not_changed(grid, grid_map, common, tasks, tmp_path):
    grid = shutil.copytree(grid, tmp_path / "grid")  # other tests want the one that they share as it is
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
