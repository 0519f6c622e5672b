"""Flags, their other names, and the sentence that a mistake gets."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from config.command_line import parse_argv
from config.errors import UserError
from config.flags import ALIASES, Arguments, flag, flags_of, positional
from config.groups import OptimizationArguments, RunArguments
from config.presets import load_preset

ROOT = Path(__file__).parents[2]
USAGE = {
    "pretraining_train.py": "[PRESET …]",
    "pretraining_generate.py": "RUN_FOLDER PROMPT",
    "finetuning_train.py": "[PRESET …]",
    "finetuning_predict.py": "RUN_FOLDER [TEXTS …]",
    "finetuning_transfer.py": "TASK_MAP",
    "multitask_train.py": "[PRESET …]",
    "quickstart.py": "[PRESET …]",
    "export.py": "RUN_FOLDER OUTPUT_FOLDER",
}


@dataclass
class Config(OptimizationArguments, RunArguments):
    title = "what to read"

    dataset_path: str = flag("imdb", "what to read")
    n_epochs: int = flag(3, "passes", least=0)


def parse(*argv):
    return parse_argv(Config, "a script", list(argv))


def test_the_command_line_overrides_the_presets_and_these_the_defaults(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    content = {"description": "", "lr": 1, "train_batch_size": 5, "compile": True, "n_steps": None, "seed": 1}
    first.write_text(json.dumps(content))
    second.write_text('{"seed": 2, "n_warmup": 2, "num_train_epochs": 7}')
    config = parse(str(first), "--lr", "0.5", str(second), "--no-compile", "--n_warmup", "3")
    assert (config.lr, config.train_batch_size, config.compile, config.n_steps) == (0.5, 5, False, None)
    assert (config.seed, config.n_warmup, config.n_epochs, config.valid_batch_size) == (2, 3, 7, 8)
    assert parse(str(second), str(first)).seed == 1
    assert config.explicit_flags == {"lr", "compile", "n_warmup"}


def test_a_flag_with_the_value_of_its_default_is_explicit_all_the_same():
    assert parse("--eval_every", "-1").explicit_flags == {"eval_every"} and not parse().explicit_flags


def test_resuming_takes_the_arguments_of_the_run(tmp_path):
    arguments = {"lr": 0.5, "seed": 3, "output_dir": "elsewhere", "overwrite": True}
    (tmp_path / "config.json").write_text(json.dumps({"arguments": arguments}))
    config = parse("--resume", str(tmp_path), "--seed", "4")
    assert (config.lr, config.seed, config.output_dir, config.overwrite) == (0.5, 4, str(tmp_path), False)
    with pytest.raises(
        UserError, match="--resume takes all arguments from the run folder; leave the preset x out"
    ):
        parse("x", "--resume", str(tmp_path))


@pytest.mark.parametrize("alias, name", ALIASES.items())
def test_todays_usual_names_are_understood_as_flags_and_as_keys(alias, name, tmp_path):
    from finetuning_train import FinetuningConfig

    value = "seven" if name in ("model_checkpoint", "dataset_path") else 7
    for argv in ([f"--{alias}", str(value)], [f"--{name}={value}"]):
        config = parse_argv(FinetuningConfig, "", argv)
        assert getattr(config, name) == value and config.explicit_flags == {name}
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({alias: value}))
    assert getattr(load_preset(FinetuningConfig, str(preset)), name) == value
    assert getattr(parse_argv(FinetuningConfig, "", [str(preset), f"--{name}", "9"]), name) in (9, "9")
    preset.write_text(json.dumps({alias: value, name: value}))
    with pytest.raises(UserError, match=f"preset.json: {alias} and {name} mean the same; keep one"):
        load_preset(FinetuningConfig, str(preset))
    with pytest.raises(UserError, match=f"^--{name} and --{alias} mean the same; keep one$"):
        parse_argv(FinetuningConfig, "", [f"--{name}", str(value), f"--{alias}={value}"])


def test_a_script_without_a_field_does_not_know_its_other_names():
    with pytest.raises(UserError, match="unknown argument --max_seq_length"):
        parse("--max_seq_length", "8")


def test_texts_may_stand_before_and_after_the_flags():
    from finetuning_predict import PredictionConfig

    config = parse_argv(PredictionConfig, "", ["run", "good", "--batch_size", "2", "bad", "--", "--bad"])
    assert (config.run_folder, config.texts, config.batch_size) == ("run", ["good", "bad", "--bad"], 2)
    with pytest.raises(UserError, match="the following arguments are required: RUN_FOLDER "):
        parse_argv(PredictionConfig, "", [])


def test_both_spellings_of_the_launchers_flag_are_accepted():
    assert parse("--local_rank", "1").local_rank == parse("--local-rank=1").local_rank == 1


def test_warm_up_is_so_many_steps_or_a_fraction_of_all_of_them(tmp_path):
    (tmp_path / "preset.json").write_text('{"warmup_ratio": 0.1}')
    preset = str(tmp_path / "preset.json")
    assert parse(preset).warmup_steps(101) == 11, "rounded up, as in transformers"
    assert parse("--warmup_ratio", "1").warmup_steps(7) == 7 and parse().warmup_steps(7) == 1000
    assert parse(preset, "--n_warmup", "5", "--warmup_ratio", "0").warmup_steps(101) == 5
    assert parse(preset, "--n_warmup", "1000").warmup_steps(101) == 11
    with pytest.raises(UserError, match=r"^n_warmup 5 and warmup_ratio 0\.1 contradict each other; .*"):
        parse(preset, "--n_warmup", "5")
    with pytest.raises(UserError, match="warmup_ratio must be at most 1, not 10"):
        parse("--warmup_ratio", "10")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--train_bach_size", "2"], "unknown argument --train_bach_size; did you mean --train_batch_size?"),
        (["--lr", "fast"], "--lr/--learning_rate: invalid float value: 'fast'"),
        (["--optimizer", "sgd"], "invalid choice: 'sgd'"),
        (["--train_batch_size", "0"], "train_batch_size must be at least 1, not 0"),
        (["--lr", "nan"], "lr must be a finite number, not nan"),
        (["--max_norm", "inf"], "max_norm must be a finite number, not inf"),
        (["--learning_rat", "1"], "unknown argument --learning_rat; did you mean --learning_rate?"),
        (["--train_batch_size"], "--train_batch_size/--per_device_train_batch_size: expected one argument"),
        (["no_such_preset"], "no preset no_such_preset"),
        (["--resume", "nowhere"], "--resume nowhere: no run folder there"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_flag(argv, message):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert message in str(error.value)


def test_a_run_is_resumed_by_its_own_script(tmp_path):
    run = {"script": "multitask_train.py", "arguments": {"tasks": "trec,rte"}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="made it, with a flag --tasks .* resume it with multitask_train.py"):
        parse("--resume", str(tmp_path))


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"learning_rat": 1}', "unknown key 'learning_rat'; did you mean learning_rate?"),
        ('{"notify": "a"}', "notify must be list[str] or null"),
        ('{"n_epoch": 1}', "did you mean n_epochs?"),
        ('{"lr": "high"}', 'lr must be float, not "high"'),
        ('{"n_steps": 1.5}', "n_steps must be int or null, not 1.5"),
        ('{"compile": 1}', "compile must be bool, not 1"),
        ('{"schedule": "step"}', "schedule must be one of cosine, linear, not 'step'"),
        ('{"schedule": "cosin"}', "did you mean cosine?"),
        ("[1]", "must hold one JSON object"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_mistake_in_a_preset_names_the_key(tmp_path, content, message):
    (tmp_path / "preset.json").write_text(content)
    with pytest.raises(UserError) as error:
        parse(str(tmp_path / "preset.json"))
    assert message in str(error.value)


@pytest.mark.processes("it looks at what a new process imports")
@pytest.mark.parametrize("script, usage", USAGE.items())
def test_help_imports_nothing_heavy_and_shows_what_the_script_takes(script, usage):
    code = (
        f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "finally: print({'torch', 'argcomplete'} & sys.modules.keys() or 'light')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip().endswith("light")
    assert result.stdout.startswith(f"usage: {script} {usage} [--flag value …]\n")
    without_device = ("export.py", "quickstart.py")
    assert script in without_device or (
        "--device STR" in result.stdout and "(default: auto)" in result.stdout
    )


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_a_mistake_exits_with_code_2_at_once_and_debug_shows_where(monkeypatch):
    command = [sys.executable, str(ROOT / "pretraining_train.py"), "--n_step", "3"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (
        result.returncode == 2
        and result.stderr == "error: unknown argument --n_step; did you mean --n_steps?\n"
    )
    monkeypatch.setenv("DEBUG", "1")
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True).stderr


def test_help_titles_the_groups(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    titles = [line for line in capsys.readouterr().out.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["positional arguments:", "options:", "what to read:", "optimization:", "run:"]


@pytest.mark.processes("a shell starts one for each key")
@pytest.mark.parametrize(
    "typed, completions",
    [
        ("--learning", ["--learning_rate"]),
        ("--schedule ", ["cosine", "linear"]),
        ("wikitext", ["wikitext-103", "wikitext-2"]),
        ("squad --n_ste", ["--n_steps"]),
    ],
)
def test_the_tab_key_completes_flags_choices_and_presets(typed, completions, tmp_path):
    pytest.importorskip("argcomplete")
    line = f"pretraining_train.py {typed}"
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "pretraining_train.py", "--help"], cwd=ROOT, env=environment, check=True)
    assert [word.strip() for word in (tmp_path / "out").read_text().split("\n")] == completions


@pytest.mark.parametrize("script", USAGE)
def test_the_shell_finds_the_marker_of_scripts_that_complete(script):
    """The global hook of argcomplete asks only files with this marker in their first 1,024 bytes."""
    assert b"PYTHON_ARGCOMPLETE_OK" in (ROOT / script).read_bytes()[:1024]


@dataclass
class GridFlags(Arguments):
    map: str = positional("what to train")
    training: dict = flags_of(OptimizationArguments, without=["output_dir"])
    seed: int = flag(1, "of the grid")


def test_flags_of_another_config_are_kept_in_a_field_of_their_own():
    config = parse_argv(GridFlags, "", ["a.json", "--learning_rate", "0.5", "--seed", "3", "--compile"])
    assert config == GridFlags(map="a.json", seed=3, training={"lr": 0.5, "compile": True})
    assert parse_argv(GridFlags, "", ["a.json"]).training == {}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--output_dir", "runs"], "unknown argument --output_dir"),
        (["--lr", "much"], "argument --lr/--learning_rate: invalid float value"),
        (["--lr", "1", "--learning_rate", "2"], "--lr and --learning_rate mean the same"),
    ],
)
def test_mistakes_in_flags_of_another_config_are_sentences_too(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_argv(GridFlags, "", ["a.json", *arguments])
