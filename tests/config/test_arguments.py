"""Flags, presets, and the sentence that a mistake gets."""
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.arguments import RUN_CONFIGS, OptimizationArguments, RunArguments, UserError, flag, load_preset, parse_argv

ROOT = Path(__file__).parents[2]
SCRIPTS = ["pretraining_train.py", "pretraining_generate.py", "finetuning_train.py", "finetuning_predict.py"]


@dataclass
class Config(OptimizationArguments, RunArguments):
    """data"""

    dataset_path: str = flag("imdb", "what to read")
    n_epochs: int = flag(3, "passes", least=0)


def parse(*argv):
    return parse_argv(Config, "a script", list(argv))


def test_the_command_line_overrides_the_preset_and_the_preset_the_defaults(tmp_path):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"description": "for a test", "lr": 1, "train_batch_size": 5, "compile": True, "n_steps": None}))
    config = parse(str(preset), "--lr", "0.5", "--no-compile")
    assert (config.lr, config.train_batch_size, config.compile, config.n_steps, config.n_epochs) == (0.5, 5, False, None, 3)
    assert isinstance(load_preset(Config, str(preset)).lr, float)
    assert load_preset(Config, str(preset), train_batch_size=7).train_batch_size == 7


def test_both_spellings_of_the_launchers_flag_are_accepted():
    assert parse("--local_rank", "1").local_rank == parse("--local-rank=1").local_rank == 1


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--train_bach_size", "2"], "unknown argument --train_bach_size; did you mean --train_batch_size?"),
        (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--train_batch_size", "0"], "train_batch_size must be at least 1, not 0"),
        (["--lr", "nan"], "lr must be a finite number, not nan"),
        (["--max_norm", "inf"], "max_norm must be a finite number, not inf"),
        (["no_such_preset"], "no run config no_such_preset"),
        (["--resume", "nowhere"], "--resume nowhere: no run folder there"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_flag(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"learning_rate": 1}', "unknown key 'learning_rate'"),
        ('{"n_epoch": 1}', "did you mean n_epochs?"),
        ('{"lr": "high"}', 'lr must be float, not "high"'),
        ('{"n_steps": 1.5}', "n_steps must be int or null, not 1.5"),
        ('{"compile": 1}', "compile must be bool, not 1"),
        ('{"schedule": "step"}', "schedule must be one of cosine, linear"),
        ("[1]", "must hold one JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_mistake_in_a_preset_names_the_key(tmp_path, content, message):
    (tmp_path / "preset.json").write_text(content)
    with pytest.raises(UserError) as error:
        parse(str(tmp_path / "preset.json"))
    assert message in str(error.value)


@pytest.mark.parametrize("preset", sorted(RUN_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
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


@pytest.mark.parametrize("script", [*SCRIPTS, "finetuning_transfer.py", "export.py"])
def test_help_imports_nothing_heavy_and_groups_the_flags(script):
    code = f"import sys, runpy; sys.argv = ['{script}', '--help']\ntry: runpy.run_path('{script}', run_name='__main__')\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip().endswith("False") and result.stdout.startswith("usage")
    if script in SCRIPTS:
        assert "--device" in result.stdout and "(default:" in result.stdout and "RUN" in result.stdout.splitlines()[0]


def test_a_mistake_exits_with_code_2_at_once_and_debug_shows_where(monkeypatch):
    command = [sys.executable, str(ROOT / "pretraining_train.py"), "--n_step", "3"]
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr == "error: unknown argument --n_step; did you mean --n_steps?\n"
    assert time.monotonic() - started < 10
    monkeypatch.setenv("DEBUG", "1")
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr
