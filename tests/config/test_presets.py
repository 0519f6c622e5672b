"""Presets are found by path and by name, and each of run_configs/ is valid."""

import json

import pytest

from config import presets
from config.errors import UserError
from config.groups import OptimizationArguments
from config.presets import RUN_CONFIGS, find_preset, load_preset


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
    from pretraining_train import PretrainingConfig

    fits = []
    for config_class in (PretrainingConfig, FinetuningConfig):
        try:
            fits.append(load_preset(config_class, str(preset)))
        except UserError as error:
            print(error)
    assert fits or "unavailable" in json.loads(preset.read_text())
