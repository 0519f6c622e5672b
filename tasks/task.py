"""Labelled tasks: the splits of a source as examples of a kind."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from config.errors import UserError
from config.finetuning import TaskArguments
from config.presets import read_dataset
from data.cache import EncodedTexts, encode_rows, find_tokenizer
from data.sources import open_source, settings_of
from data.splits import SPLIT_FILES, split_rows
from data.tables import FIELDS
from tasks.classification import Classification, Regression
from tasks.examples import Examples
from tasks.kind import KindOptions, RowReader
from tasks.kinds import KINDS
from tasks.labels import are_fractional
from utils import show


def columns_of(dataset_path: str, reader: RowReader, given: dict[str, str | None]) -> dict[str, str]:
    """What holds the fields of a row (`data.tables.read_column`): what the flags say, else run_configs/, else
    the columns of the kind.
    """
    known = settings_of(read_dataset(dataset_path), FIELDS, "column")
    return reader.columns | known | {key: column for key, column in given.items() if column}


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

        The kind `auto` is classification, or regression if the labels are numbers and not all of them whole
        (`n_classes` 1 asks for it). Raises UserError for a dataset that is missing, empty or mislabelled.
        """
        options = options or KindOptions()
        kind = "regression" if n_classes == 1 and kind == "auto" else kind
        kind_class = Classification if kind == "auto" else KINDS[kind]
        self.reader = kind_class.reader_class(options)
        self.columns = columns_of(dataset_path, self.reader, columns or {})
        self.source, self.cache = open_source(dataset_path, self.columns, splits), cache
        self._cache_key = (
            "task",
            self.source.key,
            sorted(self.columns.items()),
            kind_class.name,
            asdict(options),
        )
        self.tokenizer = find_tokenizer(tokenizer, self.source, "task", self._training_texts, cache)
        texts = self._encode("train")
        if kind == "auto" and n_classes is None and are_fractional(texts.labels):
            kind_class = Regression  # which reads rows as classification does
        self.kind = kind_class.from_labels(texts.labels, options, f"{self.source.name} train")
        self._check_number_of_classes(n_classes)
        self.is_pair = self._has_pairs(texts)
        self.train = self._examples(texts, "train")

    def examples(self, split: str) -> Examples:
        """The encoded `valid` or `test` split. Raises UserError for a split that is missing or
        mislabelled."""
        texts = self._encode(split)
        if self._has_pairs(texts) != self.is_pair:
            has = {True: "a text_pair", False: "no text_pair"}
            raise UserError(
                f"{self.source.name}: {split} has {has[not self.is_pair]}, training {has[self.is_pair]}"
            )
        return self._examples(texts, split)

    def rows(self, split: str) -> Iterable[dict]:
        """The prepared rows of a split. Those that are not trained on are among them."""
        if split == "test":
            return self._prepared("test", self.source.rows("test"))
        return split_rows(self.source, self._prepared, self.reader.inputs)[split]

    def _rows_of_examples(self, split: str) -> Iterator[dict]:
        return (row for row in self.rows(split) if split != "train" or self.reader.is_trained_on(row))

    def _rows_to_measure(self, split: str) -> Iterator[dict]:
        fields = self.kind.measured_fields
        return (
            {field: row[field] for field in fields if field in row} for row in self._rows_of_examples(split)
        )

    def _encode(self, split: str) -> EncodedTexts:
        reader = self.reader
        return encode_rows(
            lambda: (row | {"label": reader.label_for_cache(row)} for row in self._rows_of_examples(split)),
            self.tokenizer,
            f"{self.source.name} {split}",
            self.cache,
            (*self._cache_key, split),
            texts_of=reader.texts,
            encode=lambda texts: reader.encode(self.tokenizer, texts),
            may_be_empty=split != "train",
        )

    def _has_pairs(self, texts: EncodedTexts) -> bool:
        return bool(self.reader.has_pairs and texts.n_texts[0] == 2)

    def _check_number_of_classes(self, n_classes: int | None) -> None:
        names = self.kind.label_names
        if n_classes and names and n_classes != len(names):
            classes = f"{self.source.name} has {len(names)} classes ({', '.join(names)})"
            raise UserError(f"--num_classes {n_classes}: {classes}")

    def _examples(self, texts: EncodedTexts, split: str) -> Examples:
        """The texts with their labels; a text without tokens is an input like any other, and told."""
        where = f"{self.source.name} {split}"
        labels = self.kind.label_ids(texts.labels, where)
        examples = Examples.of(texts, labels, lambda: self._rows_to_measure(split))
        empty = examples.with_empty_text()
        if len(empty):
            which = f"{len(empty)} of {len(examples)} examples have an empty text"
            show(f"{where}: {which}, the first of them example {empty[0] + 1}; they count like any other")
        return examples

    def _prepared(self, split: str, rows: Iterable[dict]) -> Iterator[dict]:
        is_pair = None
        for number, row in enumerate(rows, start=1):
            where = f"{self.source.name} {split}, example {number}"
            if "label" not in row or self.reader.lacks_label(row):
                if self.reader.options.skip_unlabelled:
                    continue
                raise UserError(f"{where} has no label; name the column that holds it with --label_column")
            row = self.reader.prepare(row, where)
            is_pair = "text_pair" in row if is_pair is None else is_pair
            if is_pair != ("text_pair" in row):
                raise UserError(f"{where} has {'no' if is_pair else 'a'} text_pair, unlike the first one")
            yield row

    def _training_texts(self) -> Iterator[str]:
        return (text for row in self.rows("train") for text in self.reader.texts(row))


def open_task(config: TaskArguments, tokenizer: str) -> Task:
    """The task that the flags describe. Raises UserError for one that cannot be read."""
    columns = {field: getattr(config, f"{field}_column") for field in FIELDS}
    splits = {split: getattr(config, f"{split}_split") for split in SPLIT_FILES}
    names = config.label_names.split(",") if config.label_names else []
    options = KindOptions(
        names,
        config.blank,
        config.doc_stride,
        config.max_answer_length,
        config.unanswerable,
        config.skip_unlabelled,
        grouped=bool(config.group_column),
    )
    return Task(
        config.dataset_path,
        tokenizer,
        config.dataset_cache,
        columns,
        config.num_classes,
        config.kind,
        splits,
        options,
    )
