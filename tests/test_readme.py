"""The docs are right: the files and flags that they name exist, and the README's commands run.

Inline code counts as a path of the project if it has the suffix of a source file, or has a slash and ends
with a suffix or a slash. Names of files in a run folder, or of the user's own files, do not look like that.
"""

import ast
import contextlib
import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from helpers.documents import BLOCK, DOCS, broken_links, prose
from helpers.runs import MAIN, ROOT, SHAPE, STEPS, call, config_class_of, parse

from config.flags import ALIASES

README = prose(DOCS[0])
SOURCES = {".py", ".md", ".toml", ".cff"}
NOT_OURS = {"train.py"}  # nanoGPT's
WRITTEN_LATER = ("runs/", "benchmarks/results")  # by a run, by a benchmark
PROGRAMS = ("python", "torchrun", "srun", "make", "tensorboard", ".venv/bin/python")

# The flags that make each command of the README run in miniature ...
N_STEPS = [*SHAPE, *STEPS, "--n_steps", "2"]
TEXTS = ["--dataset_path", "my_texts", "--tokenizer", "train:200", *N_STEPS]
TASK = ["--dataset_path", "my_task", *N_STEPS]
QUESTIONS = ["--kind", "question_answering", "--label_column", "answer", "--doc_stride", "8"]
RUNS = {
    "python pretraining_train.py quickstart_pretrain --n_steps 200": TEXTS,
    "python pretraining_train.py mlm_imdb": TEXTS,
    "python pretraining_train.py --dataset_path my_texts/ --tokenizer train:8192 --n_epochs 10": TEXTS,
    "python pretraining_train.py --resume RUN_FOLDER": [],
    "python pretraining_generate.py RUN_FOLDER 'This film is'"
    " --temperature 0.8 --top_p 0.95 --n_samples 3": [],
    "python export.py RUN_FOLDER OUTPUT_FOLDER": [],
    "python finetuning_train.py --model_checkpoint RUN_FOLDER": TASK,
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --adapters_dim 32": TASK,
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --lm_loss_coef 0.5": TASK,
    "python finetuning_train.py --model_checkpoint none": [*TASK, "--tokenizer", "train:200"],
    "python finetuning_train.py --dataset_path my_tags.conll --kind tagging": N_STEPS,
    "python finetuning_train.py --dataset_path my_questions.jsonl"
    " --kind question_answering --label_column answer": [*N_STEPS, *QUESTIONS],
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --dataset_path my_task --restarts 5": [
        *N_STEPS,
        "--restarts",
        "2",
    ],
    "python finetuning_train.py --model_checkpoint hf:roberta-base --dataset_path data/mnli --tuning pfeiffer"
    " --output_dir runs/mnli": [*N_STEPS, "--model_checkpoint", "RUN_FOLDER", "--overwrite"],
    "python finetuning_train.py --model_checkpoint runs/mnli --dataset_path data/rte"
    " --tuning pfeiffer": N_STEPS,
    "python finetuning_predict.py RUN_FOLDER 'A wonderful, moving film.' 'A boring waste of two hours.'": [],
    "python finetuning_predict.py RUN_FOLDER --input_file reviews.jsonl": [],
    "python finetuning_predict.py RUN_FOLDER 'Who wrote it?<TAB>It was written by Ann in 1950.'": [],
    "python multitask_train.py --tasks data/mnli,data/rte,my_task --model_checkpoint RUN_FOLDER": N_STEPS,
    "python multitask_train.py --tasks data/mnli,data/rte --model_checkpoint RUN_FOLDER"
    " --sampling uncertainty --freeze_layers 0": N_STEPS,
    "python selection_train.py --sources data/mnli,data/rte,my_task --model_checkpoint RUN_FOLDER": N_STEPS,
    "python selection_rank.py --target my_task --pool runs/pool --methods esm-logme,textemb,fusion": [
        "--n_bootstrap",
        "1",
    ],
    "python finetuning_transfer.py map.json --output_dir runs/grid --restarts 3"
    " --source_train_subset_size 10000": [*N_STEPS, "--restarts", "1", "--source_train_subset_size", "20"],
}
# ... or the reason why it does not run here; then the test only parses its flags.
NETWORK, PROCESSES = "needs the network", "needs several GPUs"
RAY = "starts Ray; tests/experiments has that"
GRID = "needs a finished grid; tests/selection has that"
PACKAGE = "needs a package that the tests do without"
MINUTES, SERVER = "takes minutes", "runs until it is stopped"
ONLY_READ = {
    "python pretraining_train.py": NETWORK,
    "python pretraining_train.py wikitext-2": NETWORK,
    "python finetuning_train.py --model_checkpoint hf:roberta-base --dataset_path trec"
    " --tuning lora": NETWORK,
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --dataset_path trec": NETWORK,
    "python finetuning_train.py --dataset_path squad --model_checkpoint RUN_FOLDER": NETWORK,
    "python finetuning_train.py squad pfeiffer --model_checkpoint hf:roberta-base": NETWORK,
    "python finetuning_train.py squad full --model_checkpoint hf:roberta-base --lr 2e-5": NETWORK,
    "python multitask_train.py multitask_glue": NETWORK,
    "python selection_rank.py --target my_task --pool hub:"
    " --model_checkpoint hf:bert-base-multilingual-uncased": NETWORK,
    "python selection_evaluate.py runs/grid --pool runs/pool --methods esm-logme,logme": GRID,
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --tracker mlflow": PACKAGE,
    "python finetuning_train.py --model_checkpoint RUN_FOLDER --notify tgram://BOT_TOKEN/CHAT_ID"
    " --notify mailto://USER:PASSWORD@gmail.com": NETWORK,
    "python -m torch.distributed.launch --nproc_per_node 8 pretraining_train.py": PROCESSES,
    "torchrun --nproc_per_node 8 pretraining_train.py": PROCESSES,
    "torchrun --nproc_per_node 8 finetuning_train.py --model_checkpoint RUN_FOLDER": PROCESSES,
    "python finetuning_transfer.py map.json --output_dir runs/grid --workers 4": RAY,
    "python finetuning_transfer.py map.json --output_dir runs/grid --ray_address HOST:6379": RAY,
    "python finetuning_transfer.py map.json --output_dir runs/grid --workers 8 --gpus_per_training 0.5"
    " --max_retries 5": RAY,
    "srun --nodes 4 --ntasks-per-node 1 ray symmetric-run --address HOST:6379 --min-nodes 4 -- python"
    " finetuning_transfer.py map.json --output_dir runs/grid --ray_address auto": RAY,
    "torchrun --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr HOST --master_port 29500"
    " pretraining_train.py": PROCESSES,
    "srun --ntasks 16 --gpus-per-task 1 python pretraining_train.py": PROCESSES,
    "srun --nodes 2 --ntasks-per-node 1 torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d"
    " --rdzv_endpoint HOST:29500 pretraining_train.py": PROCESSES,
    "make quickstart": MINUTES,
    "make multitask": MINUTES,
    "make selection": MINUTES,
    "make tutorial": MINUTES,
    "make test": MINUTES,
    "make bench NANOGPT=path": MINUTES,
    "python quickstart.py --labels 100,500,2000,10000 --restarts 2": MINUTES,
    "python benchmarks/tfidf.py 2000 5000 10000": MINUTES,
    "python benchmarks/time_to_quality.py": MINUTES,
    "python benchmarks/throughput.py": MINUTES,
    "python benchmarks/finetuning.py": MINUTES,
    "python benchmarks/multitask.py": MINUTES,
    "python benchmarks/ranking.py": MINUTES,
    "python benchmarks/selection_study.py ours --table": MINUTES,
    "python benchmarks/ranking_total.py": MINUTES,
    "python benchmarks/adapters.py": MINUTES,
    "python benchmarks/text.py": MINUTES,
    "python benchmarks/generation.py": MINUTES,
    "tensorboard --logdir runs": SERVER,
}
PRETRAINED = "runs/quickstart/pretrained"
HELP = "python pretraining_train.py --help"


def inline_code(text: str) -> list[str]:
    """The text between backticks, outside of code blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def commands(text: str) -> list[str]:
    """Commands in code blocks and between backticks, quoted by `shlex.join`, without comments and `>`."""
    joined = text.replace("\\\n", " ")
    lines = [line for _, block in BLOCK.findall(joined) for line in block.splitlines()]
    indented = re.findall(r"^ {4}(\S.*)$", BLOCK.sub("", joined), re.MULTILINE)
    found = []
    for line in [*lines, *indented, *inline_code(joined)]:
        if is_command(line):
            words = shlex.split(line, comments=True)
            found.append(shlex.join(words[: words.index(">")] if ">" in words else words))
    return list(dict.fromkeys(found))


def is_command(code: str) -> bool:
    """Whether it is a program with arguments."""
    return len(code.split()) > 1 and code.split()[0] in PROGRAMS


def script_and_arguments(command: str) -> tuple[str | None, list[str]]:
    """The script of a command, whatever its launcher, and the arguments of the script."""
    words = shlex.split(command)
    index = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
    return (None, []) if index is None else (words[index], words[index + 1 :])


def is_path(code: str) -> bool:
    """Whether it means a file or folder of the project."""
    if code in NOT_OURS or code.startswith(WRITTEN_LATER):
        return False
    if not re.fullmatch(r"[\w.*-]+(/[\w.*-]+)*/?", code):
        return False
    suffix = Path(code).suffix
    return suffix in SOURCES or ("/" in code and (code.endswith("/") or bool(suffix)))


# ------------------------------------------------------------------------------------------- files and names


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_files_that_are_named_exist(doc):
    codes = inline_code(prose(doc))
    missing = [code for code in codes if is_path(code) and not any(ROOT.glob(code.rstrip("/")))]
    assert not missing + broken_links(doc)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# What `it` shows, and why\n", encoding="utf-8")
    doc = tmp_path / "doc.md"
    right = "[a](there.md), [b](there.md#what-it-shows-and-why), [c](#here) and [d](https://there.org/#no)"
    doc.write_text(f'# Here\n{right}\n[e](gone.md), [f](there.md#what), [g](#where), <img src="no.png">')
    assert broken_links(doc) == ["gone.md", "there.md#what", "#where", "no.png"]


def test_the_tree_has_a_line_for_every_file():
    tree = next(block for _, block in BLOCK.findall(README) if block.startswith("quickstart.py"))
    folder, named, folders = "", set(), {ROOT}
    for line in filter(None, tree.splitlines()):
        name = line.split()[0]
        if line.startswith(" "):
            named.add(folder + name)
            folders.add(ROOT / folder)
        else:
            named.add(name)
            folder = name
    assert not [name for name in named if not (ROOT / name).exists()]
    files = {file for folder in folders for file in folder.glob("*.py") if file.name != "__init__.py"}
    assert {file.relative_to(ROOT).as_posix() for file in files} <= named


def test_the_code_tour_leads_to_code_and_is_as_long_as_it_says():
    text = (ROOT / "docs" / "code_tour.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    stops = [re.findall(r"`([^`]+)`", row) for row in rows]
    n_lines = sum(lines_of(ROOT / file, names) for file, *names in stops)
    said = int(re.search(r"These are the ([\d,]+)", text)[1].replace(",", ""))
    assert n_lines == pytest.approx(said, rel=0.1)
    assert f"{said:,} lines" in README
    files = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]
    others = {ROOT / name for name in ("tests", "docs", "benchmarks")}
    n_lines = sum(lines_of(file, []) for file in files if file.parent not in others)
    assert n_lines == pytest.approx(
        int(re.search(r"about ([\d,]+) lines", text)[1].replace(",", "")), rel=0.1
    )


def lines_of(file: Path, names: list[str]) -> int:
    """The number of lines of the named functions and classes of a file, or of the whole file."""
    source = file.read_text(encoding="utf-8")
    if not names:
        return source.count("\n")
    body = ast.parse(source).body
    nodes = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    assert set(names) <= nodes.keys(), file
    return sum(nodes[name].end_lineno - nodes[name].lineno + 1 for name in names)


# ---------------------------------------------------------------------------------------- flags and commands


OF_OTHERS = ("--max-restarts", "--signal", "--signals-to-handle", "--shutdown-timeout")  # torchrun, SLURM


def flags_of_scripts() -> set[str]:
    """The flags of all scripts, also in the form `--no-…`."""
    fields = [field for script in MAIN for field in dataclasses.fields(config_class_of(script))]
    return {f"--{prefix}{field.name}" for field in fields for prefix in ("", "no-")} | {
        "--help",
        *OF_OTHERS,
        *(f"--{alias}" for alias in ALIASES),
    }


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_flags_that_are_named_exist(doc):
    codes = [code for code in inline_code(prose(doc)) if not is_command(code)]
    named = {flag for code in codes for flag in re.findall(r"(?<![\w-])--[\w-]+", code)}
    assert named <= flags_of_scripts()


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.name)
def test_commands_are_understood(doc, home):
    """Their scripts, targets of the Makefile, and flags exist."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for command in commands(prose(doc)):
        script, arguments = script_and_arguments(command)
        if command.startswith("make "):
            assert command.split()[1] in targets
        elif script in MAIN and command != HELP:
            parse(script, *in_place_of_placeholders(script, arguments))
        elif script and command != HELP:
            files = ROOT / script, ROOT / "benchmarks" / "common.py"
            source = "".join(file.read_text(encoding="utf-8") for file in files)
            assert not [word for word in arguments if word.startswith("--") and f'"{word}"' not in source]


@pytest.fixture(scope="module")
def places(corpus, task, tmp_path_factory) -> Path:
    """A folder with the files that the README's commands use."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my_texts").symlink_to(corpus)
    (folder / "data").mkdir()
    for name in ("my_task", "data/mnli", "data/rte"):
        (folder / name).symlink_to(task)
    (folder / "reviews.jsonl").write_text('{"text": "a good film"}\n{"text": "a bad film"}\n')
    (folder / "my_tags.conll").write_text("the O\nfilm B-THING\nwas O\ngood O\n\na O\nstory B-THING\n\n" * 10)
    contexts = [f"{number} of the film was good and a story" for number in range(20)]
    question = {"question": "who was it ?", "answer": "the film"}
    questions = [json.dumps(question | {"context": context}) for context in contexts]
    (folder / "my_questions.jsonl").write_text("\n".join(questions))
    (folder / "map.json").write_text('{"from": ["data/mnli"], "to": ["data/rte"]}')
    with contextlib.chdir(folder):
        call("pretraining_train.py", *TEXTS, "--output_dir", PRETRAINED)
        options = [*N_STEPS, "--model_checkpoint", PRETRAINED]
        call("finetuning_train.py", *options, *TASK, "--output_dir", "finetuned")
        call("finetuning_train.py", *options, *TASK, "--tuning", "pfeiffer", "--output_dir", "runs/mnli")
        call("selection_train.py", "--sources", "data/mnli,data/rte", *options, "--output_dir", "runs/pool")
        questions = ["--dataset_path", "my_questions.jsonl", *QUESTIONS]
        call("finetuning_train.py", *options, *questions, "--output_dir", "answering")
    return folder


@pytest.fixture
def home(places, monkeypatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(places)
    return places


def in_place_of_placeholders(script: str, arguments: list[str]) -> list[str]:
    """The arguments with a run folder that suits the script, and with tabs."""
    is_question = any("<TAB>" in word for word in arguments)
    finetuned = "answering" if is_question else "finetuned"
    run_folder = finetuned if script == "finetuning_predict.py" else PRETRAINED
    return [word.replace("RUN_FOLDER", run_folder).replace("<TAB>", "\t") for word in arguments]


def test_every_command_of_the_readme_runs_here_or_has_a_reason():
    assert set(commands(README)) == {*RUNS, *ONLY_READ, HELP}
    assert not RUNS.keys() & ONLY_READ.keys()


@pytest.mark.parametrize("command", RUNS)
def test_the_readmes_commands_run(command, home, tmp_path):
    script, arguments = script_and_arguments(command)
    arguments += RUNS[command]
    if script.endswith("_train.py") and not {"--output_dir", "--resume"} & set(arguments):
        arguments += ["--output_dir", str(tmp_path / "run")]  # by default, runs of the same second collide
    printed = call(script, *in_place_of_placeholders(script, arguments))
    assert bool(printed) == (script in ("pretraining_generate.py", "finetuning_predict.py", "export.py"))


def test_help_shows_the_flags(capsys):
    script, arguments = script_and_arguments(HELP)
    with pytest.raises(SystemExit) as end:
        parse(script, *arguments)
    assert not end.value.code and "--mlm_probability" in capsys.readouterr().out


def test_the_readmes_python_runs(home):
    block = next(block for language, block in BLOCK.findall(README) if language == "python")
    names = {}
    exec(block, names)  # three epochs of a hundred sentences
    assert 0 <= names["metrics"]["valid_accuracy"] <= 1


def test_the_readmes_task_map_is_one(home):
    from experiments.task_map import read_task_map

    block = next(block for language, block in BLOCK.findall(README) if language == "json")
    file = Path("readme_map.json")
    file.write_text(block)
    task_map = read_task_map(parse("finetuning_transfer.py", str(file), "--model_checkpoint", "none"))
    assert task_map.sources.keys() == {"mnli", "qa"}
