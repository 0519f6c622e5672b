"""The right one of several choices. The model reads each with the text, and scores it by one number."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from data.cache import texts_of_row
from data.tables import CHOICE, is_missing
from tasks.answers import token_f1
from tasks.examples import Collator, Examples
from tasks.kind import Kind, KindOptions, RowReader, softmax, with_texts
from tasks.labels import label_name
from utils import Batch


class ChoiceReader(RowReader):
    """Reads a text, perhaps a second one, and `choices`."""

    inputs = ("text", "text_pair", "choices")
    columns = {"text": "text", "choices": "choices"}
    line_fields = ("text", "choices")
    has_pairs = False

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """`choices` is a list of texts; `label` the number of the right one (from 0), its name in
        `--label_names`, or its text; or a list of those that are right. It becomes a list of numbers."""
        row = with_texts(row, where)
        given = row.get("choices")
        choices = (
            ["" if is_missing(choice) else choice for choice in given] if isinstance(given, list) else []
        )
        if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            wrong = f"the choices are not two or more texts but {given!r}"
            raise UserError(f"{where}: {wrong}; name their column with --choices_column")
        right = {"label": self.right_choices(row["label"], choices, where)} if labelled else {}
        return row | {"choices": choices} | right

    def right_choices(self, label: object, choices: list[str], where: str) -> list[int]:
        """The indices of the right choices. Raises UserError if there is none."""
        all_names = self.options.label_names or [str(index) for index in range(len(choices))]
        names = all_names[: len(choices)]
        labels = [str(label_name(item, names)) for item in (label if isinstance(label, list) else [label])]
        indices = [
            (names if label in names else choices).index(label)
            for label in labels
            if label in names + choices
        ]
        if not indices:
            fix = f"write {', '.join(all_names)} or the text of one, or name others with --label_names"
            raise UserError(f"{where}: the label {label!r} is none of the choices; {fix}")
        return indices

    def texts(self, row: dict) -> list[str]:
        """For each choice the text, and the second text if there is one. Where neither says where the choice
        goes (`{choice}`, or the blank that it fills), it is the second text or the end of it."""
        texts = texts_of_row(row)
        if not any(mark in text for text in texts for mark in (CHOICE, self.options.blank) if mark):
            texts = [*texts, CHOICE] if len(texts) == 1 else [texts[0], f"{texts[1]} {CHOICE}"]
        return [self.fill_in(text, choice) for choice in row["choices"] for text in texts]

    def fill_in(self, text: str, choice: str) -> str:
        """The text with the choice in its blank; if it has none, at the mark CHOICE."""
        if self.options.blank and self.options.blank in text:
            return text.replace(CHOICE, "").replace(self.options.blank, choice).strip()
        return text.replace(CHOICE, choice)

    def label_for_cache(self, row: dict) -> list[int]:
        """[number of choices, right choice, …]."""
        return [len(row["choices"]), *row["label"]]


class ChoiceCollator(Collator):
    """Batches [batch, choices, seq]; where choices are fewer, the last one is repeated and then ignored."""

    def lengths(self, examples: Examples) -> np.ndarray:
        """[examples]: the mean over the choices of each."""
        return np.minimum(examples.lengths() // self.n_sequences(examples), self.max_length)

    def n_sequences(self, examples: Examples) -> np.ndarray:
        """[examples]: the number of choices of each."""
        return np.asarray(examples.labels)[:, 0]

    def batch(self, texts: list[list[np.ndarray]], labels: list[np.ndarray]) -> Batch:
        """input_ids, attention_mask [batch, choices, seq]; labels (a right choice), n_choices [batch]."""
        n_choices = [int(n) for n, *_ in labels]
        sequences = []
        for row, n in zip(texts, n_choices, strict=True):
            n_texts = len(row) // n
            choices = [row[start : start + n_texts] for start in range(0, n * n_texts, n_texts)]
            sequences += choices + choices[-1:] * (max(n_choices) - n)
        batch = {key: tensor.view(len(texts), max(n_choices), -1) for key, tensor in self(sequences).items()}
        right = torch.tensor([first_right for _, first_right, *_ in labels])
        return batch | {"labels": right, "n_choices": torch.tensor(n_choices)}


@dataclass(frozen=True)
class MultipleChoice(Kind):
    """Labels [examples, 1 + right choices]: the number of choices, and the right ones, of which the last is
    repeated to fill the row."""

    has_several_right: bool = False  # may several choices of an example be right?

    name = "multiple_choice"
    metrics = ("accuracy", "f1", "loss")
    reader_class = ChoiceReader
    collator_class = ChoiceCollator
    measured_fields = ("choices", "label")
    num_outputs = 1

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        return cls(None, options, any(len(right) > 1 for _, *right in labels))

    def has_metric(self, name: str) -> bool:
        return super().has_metric(name) and (name != "f1" or self.has_several_right)

    def label_ids(self, labels: list, where: str) -> np.ndarray:
        width = max(map(len, labels))
        return np.array([label + label[-1:] * (width - len(label)) for label in labels], dtype=np.int64)

    def placeholder_labels(self, rows: list[dict]) -> np.ndarray:
        """The number of choices is part of the label."""
        return np.array([[len(row["choices"]), 0] for row in rows])

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[choices]: the scores of those that there are."""
        return [row[:n] for row, n in zip(logits.cpu().numpy(), inputs["n_choices"].tolist(), strict=True)]

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Accuracy; of several right choices, any will do, and F1 is that of the words that the prediction
        shares with the most similar one (as in ReCoRD: Zhang et al. 2018, section 4)."""
        predicted, right = (
            np.array([scores.argmax() for scores in outputs]),
            np.asarray(examples.labels)[:, 1:],
        )
        metrics = {"accuracy": float((predicted[:, None] == right).any(1).mean())}
        if self.has_several_right:
            pairs = zip(predicted, examples.rows, strict=True)
            metrics["f1"] = float(np.mean([best_overlap(choice, row) for choice, row in pairs]))
        return metrics

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`label` (the number of the right choice), `choice` (its text), and the `probabilities` of all."""
        best = int(output.argmax())
        return {"label": best, "choice": row["choices"][best], "probabilities": softmax(output)}


def best_overlap(choice: int, row: dict) -> float:
    """F1 of the words of a choice and of the right choice most similar to it."""
    return max(token_f1(row["choices"][choice], row["choices"][right]) for right in row["label"])
