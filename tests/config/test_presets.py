"""Presets are found by path and by name, and each of run_configs/ is valid."""

import dataclasses
import json

import pytest

from config import presets
from config.command_line import parse_argv
from config.errors import UserError
from config.finetuning import with_task
from config.flags import Arguments, flag
from config.groups import OptimizationArguments
from config.presets import RUN_CONFIGS, dataset_names, find_preset, load_preset, read_dataset


@pytest.fixture
def run_configs(tmp_path, monkeypatch):
    """A folder of presets in place of the project's, in an empty working directory."""
    folder = tmp_path / "run_configs"
    for name in ("imdb", "tasks/squad", "tasks/trec", "recipes/full", "recipes/trec", "tasks/imdb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps({"seed": len(name), "device": name}))
    monkeypatch.setattr(presets, "RUN_CONFIGS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    "name, file",
    [
        ("imdb", "imdb"),
        ("imdb.json", "imdb"),
        ("tasks/imdb", "tasks/imdb"),
        ("squad", "tasks/squad"),
        ("squad.json", "tasks/squad"),
        ("tasks/squad", "tasks/squad"),
        ("run_configs/tasks/squad.json", "tasks/squad"),
        ("recipes/trec", "recipes/trec"),
    ],
)
def test_a_preset_is_found_by_path_by_name_and_by_name_in_a_subfolder(name, file, run_configs):
    assert find_preset(name).resolve() == run_configs / f"{file}.json"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("trec", "several presets are called trec; name recipes/trec or tasks/trec"),
        ("squda", "did you mean squad?"),
        ("tasks/sqad", "did you mean tasks/squad?"),
        ("tasks", "no preset tasks: it is neither a file nor the name of one in run_configs/"),
        ("a long text " * 100, "no preset a long text"),
        ("", "no preset"),
    ],
)
def test_a_name_that_finds_no_single_preset_is_one_sentence(name, sentence, run_configs):
    with pytest.raises(UserError) as error:
        find_preset(name)
    assert sentence in str(error.value)


def test_later_presets_override_earlier_ones_from_python_too(run_configs):
    config = load_preset(OptimizationArguments, "squad", "full", device="cpu")
    assert (config.seed, config.device) == (len("recipes/full"), "cpu")
    (run_configs / "tasks" / "squad.json").write_text('{"sed": 1}')
    with pytest.raises(UserError, match=r"tasks/squad\.json: unknown key 'sed'; did you mean seed\?"):
        load_preset(OptimizationArguments, "full", "squad")


@pytest.mark.parametrize("preset", sorted(RUN_CONFIGS.rglob("*.json")), ids=lambda path: path.stem)
def test_every_preset_of_the_project_is_valid(preset):
    from finetuning_train import FinetuningConfig
    from multitask_train import MultitaskConfig
    from pretraining_train import PretrainingConfig

    fits = []
    for config_class in (PretrainingConfig, FinetuningConfig, MultitaskConfig):
        try:
            fits.append(load_preset(config_class, str(preset)))
        except UserError as error:
            print(error)
    assert fits or "unavailable" in json.loads(preset.read_text())


# ------------------------------------------------------------------------------------------ tasks and corpora


@dataclasses.dataclass
class TaskFlags(Arguments):
    dataset_path: str = flag("films", "")
    text_column: str | None = flag(None, "")
    doc_stride: int = flag(128, "")
    lr: float = flag(1.0, "")


@pytest.fixture
def films(run_configs):
    """A task and a corpus in place of those of the project."""
    films = {"dataset_path": "hub:owner/films", "text_column": "review", "doc_stride": 64}
    for name, values in {"tasks/films": films, "corpora/books": {"dataset_path": "hub:owner/books"}}.items():
        (run_configs / name).parent.mkdir(exist_ok=True)
        (run_configs / f"{name}.json").write_text(json.dumps(values))
    return films


@pytest.mark.parametrize("name", ["films", "tasks/films"])
def test_a_task_that_dataset_path_names_fills_the_flags_that_are_not_set(name, films):
    filled = with_task(TaskFlags(dataset_path=name))
    assert (filled.dataset_path, filled.text_column, filled.doc_stride) == (name, "review", 64)
    assert with_task(TaskFlags(dataset_path=name, text_column="body")).text_column == "body"
    typed = parse_argv(TaskFlags, "", ["--dataset_path", name, "--doc_stride", "128"])
    assert with_task(typed).doc_stride == 128, "given, though it is the default"
    assert with_task(typed).explicit_flags == typed.explicit_flags


def test_other_data_fills_nothing(films):
    for name in ("hub:owner/films", "my_folder", "recipes/full", "./films"):
        assert with_task(TaskFlags(dataset_path=name)) == TaskFlags(dataset_path=name)
    assert read_dataset("books") == {"dataset_path": "hub:owner/books"}
    assert dataset_names() == ["books", "films", "imdb", "squad", "trec"]


def test_a_json_file_with_the_keys_of_a_task_is_one_and_must_be_right(films, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"dataset_path": "a.csv", "doc_stride": 5}))
    assert with_task(TaskFlags(dataset_path="mine.json")).doc_stride == 5
    (tmp_path / "mine.json").write_text(json.dumps({"dataset_path": "a.csv", "doc_strid": 5}))
    with pytest.raises(UserError, match=r"--dataset_path mine\.json: unknown key 'doc_strid'; did you mean"):
        with_task(TaskFlags(dataset_path="mine.json"))
    with pytest.raises(UserError, match=r"no\.json cannot be read: No such file"):
        with_task(TaskFlags(dataset_path="no.json"))


def test_a_folder_with_the_name_of_a_task_is_ambiguous_until_one_says_which(films, tmp_path):
    (tmp_path / "films").mkdir()
    with pytest.raises(
        UserError, match=r"--dataset_path films may mean tasks/films of run_configs/ or \./films; say"
    ):
        with_task(TaskFlags(dataset_path="films"))
    assert with_task(TaskFlags(dataset_path="tasks/films")).doc_stride == 64
    assert with_task(TaskFlags(dataset_path="./films")).doc_stride == 128


def test_the_names_of_tasks_and_corpora_are_different():
    stems = [file.stem for folder in ("tasks", "corpora") for file in (RUN_CONFIGS / folder).glob("*.json")]
    assert sorted(set(stems)) == sorted(stems) == dataset_names()


@pytest.mark.parametrize("file", sorted((RUN_CONFIGS / "tasks").glob("*.json")), ids=lambda path: path.stem)
def test_a_task_says_what_it_is_and_not_how_to_train(file):
    from config.finetuning import TaskArguments

    keys = {field.name for field in dataclasses.fields(TaskArguments)} | {"description", "unavailable"}
    assert json.loads(file.read_text()).keys() <= keys
