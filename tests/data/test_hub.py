"""Datasets, files and archives from a Hub on the loopback device."""

import base64
import json
import socket
import zipfile

import datasets
import datasets.config
import pytest
from helpers.hub_mirror import HubMirror

from config.errors import UserError
from data import hub, network
from data.sources import open_source

pytestmark = pytest.mark.processes("the libraries read the address of the Hub when they are imported")

SHARD = "00000-of-00001"
SPLITS = ["train", "validation", "test"]
QUESTION_CLASSES = {
    "coarse_label": ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
    "fine_label": ["ABBR:abb", "HUM:ind"],
}


@pytest.fixture(scope="module")
def hub_root(tmp_path_factory, tiny_vocab):
    """The repositories that the tests ask for, in the layout of the real ones."""
    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("hub")
    put_films_and_corpora(root / "datasets")
    put_tasks(root / "datasets")
    vocabulary = root / "models/google-bert/bert-base-cased/vocab.txt"
    vocabulary.parent.mkdir(parents=True)
    vocabulary.write_text(tiny_vocab.read_text(encoding="utf-8") + "Capital\n", encoding="utf-8")
    return root


def put(file, columns, **classes):
    """A table as a parquet file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {key: "string" if isinstance(values[0], str) else "int64" for key, values in columns.items()}
    features = {key: datasets.Value(kind) for key, kind in kinds.items()}
    features |= {key: datasets.ClassLabel(names=names) for key, names in classes.items()}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)


def put_card(repository, folders, splits):
    """The part of a dataset card that maps configurations to files."""
    card = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}-*\n" for split in splits)
        for name in folders
    )
    (repository / "README.md").write_text(f"---\nconfigs:\n{card}---\n")


def put_films_and_corpora(root):
    """Films, also in a zip archive and in a damaged file, and corpora with two configurations each."""
    for split in SPLITS:
        labels = [-1, -1] if split == "test" else [1, 0]
        films = {"text": [f"good {split}", f"bad {split}"], "label": labels}
        put(root / f"owner/films/data/{split}-{SHARD}.parquet", films, label=["neg", "pos"])
        for name, texts in {"wikitext-2-v1": ["", f" = {split} = \n"], "wikitext-103-v1": ["large"]}.items():
            put(root / f"Salesforce/wikitext/{name}/{split}-{SHARD}.parquet", {"text": texts})
    put_card(root / "Salesforce/wikitext", ["wikitext-103-v1", "wikitext-2-v1"], SPLITS)
    for name in ("small", "large"):
        put(root / f"owner/corpus/{name}/train-{SHARD}.parquet", {"text": [f"a line of the {name} one"]})
    put_card(root / "owner/corpus", ["small", "large"], ["train"])
    broken = root / f"owner/broken/data/train-{SHARD}.parquet"
    broken.parent.mkdir(parents=True)
    content = (root / f"owner/films/data/test-{SHARD}.parquet").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(root / "owner/films/books.zip", "w") as archive:
        for split in ("train", "valid", "test"):
            archive.writestr(f"books/{split}.txt", f"{split} line\n\n a second line \n")


def put_tasks(root):
    """Tasks of run_configs/, as they are published."""
    for split in SPLITS:
        labels = [-1, -1] if split == "test" else [1, 0]
        sentences = {"idx": [0, 1], "sentence": [f"fine {split} ", f"dull {split} "], "label": labels}
        put(root / f"nyu-mll/glue/sst2/{split}-{SHARD}.parquet", sentences, label=["negative", "positive"])
    put_card(root / "nyu-mll/glue", ["sst2"], SPLITS)
    for split in ("train", "test"):
        questions = {"text": [f"Who {split} ?"], "coarse_label": [3], "fine_label": [1]}
        trec = root / f"CogComp/trec@refs/convert/parquet/default/{split}/0000.parquet"
        put(trec, questions, **QUESTION_CLASSES)
        reviews = {"text": [f"Bad {split}.<br /><br />Very."], "label": [0]}
        put(root / f"stanfordnlp/imdb/plain_text/{split}-{SHARD}.parquet", reviews, label=["neg", "pos"])
    put_card(root / "stanfordnlp/imdb", ["plain_text"], ["train", "test"])
    (root / "CogComp/trec").mkdir()
    (root / "CogComp/trec/trec.py").write_text("raise SystemExit('main has nothing but a script')")


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


def test_xet_is_left_out_for_a_while_only():
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    with pytest.raises(KeyError), network.without_xet():
        assert constants.HF_HUB_DISABLE_XET
        raise KeyError
    assert before == constants.HF_HUB_DISABLE_XET


@pytest.fixture
def web_cache(tmp_path, monkeypatch):
    """The folder that keeps archives of the web, in place of the user's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "tables")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "archives")
    return tmp_path / "archives"


def test_text_in_an_archive_on_the_web_is_a_corpus(hub_root, web_cache):
    with HubMirror(hub_root) as mirror:
        url = f"{mirror.url}/datasets/owner/films/resolve/main/books.zip"
        for split in ("train", "valid", "train"):
            assert [row["text"] for row in open_source(url + ":books/{split}.txt").rows(split)] == [
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


def test_a_password_is_taken_from_netrc_and_not_from_an_address(tmp_path, monkeypatch):
    address = "https://me:s3cret@example.org/books.zip:books/{split}.txt"
    with pytest.raises(UserError) as error:
        open_source(address)
    assert "~/.netrc" in str(error.value) and "s3cret" not in str(error.value)

    monkeypatch.setenv("HOME", str(tmp_path))
    assert not hub.request_for("https://example.org/books.zip").unredirected_hdrs
    (tmp_path / ".netrc").write_text("machine example.org login me password s3cret\n")
    (tmp_path / ".netrc").chmod(0o600)
    headers = hub.request_for("https://example.org/books.zip").unredirected_hdrs
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"me:s3cret"
    assert not hub.request_for("https://elsewhere.org/books.zip").unredirected_hdrs


def test_a_model_may_be_pinned(tmp_path, hub):
    for name, version in (("model", 2), ("model@v1", 1)):
        file = tmp_path / "models" / "owner" / name / "config.json"
        file.parent.mkdir(parents=True)
        file.write_text(f'{{"version": {version}}}')
    code = """
import sys
from data.hub import download
for name in ("owner/model", "owner/model@v1"):
    print(download(name, "config.json", "--model_checkpoint").read_text())
"""
    printed = hub(tmp_path).run("-c", code).stdout
    assert printed.split("\n") == ['{"version": 2}', '{"version": 1}', ""]


SHAPE = [
    *("--embed_dim", "16", "--hidden_dim", "32"),
    "--num_layers",
    "1",
    "--num_heads",
    "2",
    "--num_max_positions",
    "32",
]
STEPS = ["--n_steps", "1", "--n_warmup", "0", "--device", "cpu"]
SCRIPT = [
    "finetuning_train.py",
    "--model_checkpoint",
    "none",
    "--dataset_path",
    "hub:owner/films",
    *SHAPE,
    *STEPS,
]


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
