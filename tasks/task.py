"""Labelled tasks: the splits of a source as examples of a kind."""
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from config.arguments import UserError
from config.finetuning import TaskArguments
from data.cache import EncodedTexts, encode_rows, find_tokenizer
from data.sources import HUB_DATASETS, KNOWN_DATASETS, open_source
from data.splits import SPLIT_FILES, split_rows
from data.tables import FIELDS
from tasks.examples import Examples
from tasks.kinds import Classification, Kind, KindOptions, MultipleChoice, Regression, as_numbers
from tasks.question_answering import QuestionAnswering
from tasks.words import Parsing, Tagging
from utils import show

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Classification, Regression, MultipleChoice, Tagging, QuestionAnswering, Parsing)}


def columns_of(dataset_path: str, kind: Kind, given: dict[str, str | None]) -> dict[str, str]:
    """What holds the fields of a row (`data.tables.read_column`): what the flags give, else what is known of the
    dataset, else the columns of the kind."""
    own = {} if dataset_path in KNOWN_DATASETS else kind.columns
    known = HUB_DATASETS[dataset_path].columns if dataset_path in HUB_DATASETS else own
    return known | {key: column for key, column in given.items() if column}


class Task:
    """A labelled dataset of one kind."""

    def __init__(
        self,
        dataset_path: str,
        tokenizer: str,
        cache: str,
        columns: dict | None = None,
        n_classes: int | None = None,
        kind: str = "auto",
        splits: dict | None = None,
        options: KindOptions | None = None,
    ):
        """Encode the training split, or map it from the cache, and learn the labels from it.

        The kind `auto` is classification, or regression if the labels are numbers and not all of them whole (`n_classes` 1 asks for
        it). Raises UserError for a dataset that is missing, empty or mislabelled.
        """
        kind = "regression" if n_classes == 1 and kind == "auto" else kind
        self.kind = (Classification if kind == "auto" else KINDS[kind])(options=options)
        self.columns = columns_of(dataset_path, self.kind, columns or {})
        self.source, self.cache = open_source(dataset_path, self.columns, splits), cache
        self.tokenizer = find_tokenizer(tokenizer, self.source, "task", self._training_texts, cache)
        texts = self._encode("train")
        if kind == "auto" and n_classes is None and any(one % 1 for one in as_numbers(texts.labels) or ()):
            self.kind = Regression(options=options)
        where = f"{self.source.name} train"
        self.kind.learn(texts.labels, where)
        names = self.kind.label_names
        if n_classes and names and n_classes != len(names):
            raise UserError(f"--num_classes {n_classes}: {self.source.name} has {len(names)} classes ({', '.join(names)})")
        self.train = self._examples(texts, where)
        self.is_pair = bool(self.kind.has_pairs and texts.n_texts[0] == 2)

    def examples(self, split: str) -> Examples:
        """The encoded `valid` or `test` split. Raises UserError for a split that is missing or mislabelled."""
        texts = self._encode(split)
        if self.kind.has_pairs and (texts.n_texts[0] == 2) != self.is_pair:
            has = {True: "a text_pair", False: "no text_pair"}
            raise UserError(f"{self.source.name}: {split} has {has[not self.is_pair]}, training {has[self.is_pair]}")
        return self._examples(texts, f"{self.source.name} {split}")

    def rows(self, split: str) -> Iterable[dict]:
        """The prepared rows of a split, in the order of its examples."""
        if split == "test":
            return self._prepared("test", self.source.rows("test"))
        return split_rows(self.source, self._prepared, self.kind.inputs)[split]

    def _encode(self, split: str) -> EncodedTexts:
        key = ("task", self.source.key, sorted(self.columns.items()), self.kind.name, asdict(self.kind.options), split)
        name, kind = f"{self.source.name} {split}", self.kind
        return encode_rows(
            lambda: (row | {"label": kind.label(row)} for row in self.rows(split) if split != "train" or kind.is_kept(row)),
            self.tokenizer, name, self.cache, key, texts_of=kind.texts, encode=lambda texts: kind.encode(self.tokenizer, texts),
            may_be_empty=split != "train",
        )  # fmt: skip

    def _examples(self, texts: EncodedTexts, where: str) -> Examples:
        """The texts with their labels; a text without tokens is an input like any other, and told."""
        examples = Examples.of(texts, self.kind.label_ids(texts.labels, where), self.kind)
        empty = examples.with_empty_text()
        if len(empty):
            which = f"{len(empty)} of {len(examples)} examples have an empty text"
            show(f"{where}: {which}, the first of them example {empty[0] + 1}; they count like any other")
        return examples

    def _prepared(self, split: str, rows: Iterable[dict]) -> Iterator[dict]:
        is_pair = None
        for number, row in enumerate(rows, start=1):
            where = f"{self.source.name} {split}, example {number}"
            if "label" not in row or self.kind.lacks_label(row):
                if self.kind.options.skip_unlabelled:
                    continue
                raise UserError(f"{where} has no label; name the column that holds it with --label_column")
            row = self.kind.prepare(row, where)
            is_pair = "text_pair" in row if is_pair is None else is_pair
            if is_pair != ("text_pair" in row):
                raise UserError(f"{where} has {'no' if is_pair else 'a'} text_pair, unlike the first one")
            yield row

    def _training_texts(self) -> Iterator[str]:
        return (text for row in self.rows("train") for text in self.kind.texts(row))


def open_task(config: TaskArguments, tokenizer: str) -> Task:
    """The task that the flags describe. Raises UserError for one that cannot be read."""
    columns = {field: getattr(config, f"{field}_column") for field in FIELDS}
    splits = {split: getattr(config, f"{split}_split") for split in SPLIT_FILES}
    names = config.label_names.split(",") if config.label_names else []
    options = KindOptions(names, config.blank, config.doc_stride, config.max_answer_length, config.unanswerable, config.skip_unlabelled, bool(config.group_column))
    return Task(config.dataset_path, tokenizer, config.dataset_cache, columns, config.num_classes, config.kind, splits, options)
