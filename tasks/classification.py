"""A class or a number for a text, or for a pair of texts."""

from typing import Self

import numpy as np

from config.errors import UserError
from tasks.examples import Examples
from tasks.kind import Kind, KindOptions, NamedLabelKind, softmax
from tasks.labels import as_numbers, class_ids, class_names


class Classification(NamedLabelKind):
    """One of several classes."""

    name = "classification"
    metrics = ("accuracy", "macro_f1", "f1", "matthews", "exact_match", "loss")
    measured_fields = ("group",)

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        names = options.label_names or class_names(labels)
        if len(names) < 2:
            wrong = f"all examples have the label {names[0]!r}, so there is nothing to learn"
            raise UserError(f"{where}: {wrong}; look at --label_column")
        return cls(names, options)

    def has_metric(self, name: str) -> bool:
        applies = {"f1": self.num_outputs == 2, "exact_match": self.options.grouped}
        return super().has_metric(name) and applies.get(name, True)

    def label_ids(self, labels: list, where: str) -> np.ndarray:
        return class_ids(labels, self.label_names, where)

    def placeholder_labels(self, rows: list[dict]) -> np.ndarray:
        return np.zeros(len(rows), dtype=np.int64)

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Accuracy, macro F1 and Matthews correlation; with two classes also the F1 of the second (GLUE); of
        groups of examples, like the answers to a question, the fraction of which all are right (MultiRC:
        Khashabi et al. 2018, section 5)."""
        from sklearn.metrics import f1_score, matthews_corrcoef

        labels, predicted = examples.labels, np.stack(outputs).argmax(1)
        metrics = {
            "accuracy": float((predicted == labels).mean()),
            "macro_f1": float(f1_score(labels, predicted, average="macro")),
            "matthews": float(matthews_corrcoef(labels, predicted)),
        }
        if self.num_outputs == 2:
            metrics["f1"] = float(f1_score(labels, predicted, zero_division=0))
        if self.options.grouped:
            groups = [str(row["group"]) for row in examples.rows]
            metrics["exact_match"] = fraction_of_right_groups(predicted == labels, groups)
        return metrics

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`label`, and the `probabilities` of all labels."""
        probabilities = dict(zip(self.label_names, softmax(output), strict=True))
        return {"label": self.label_names[output.argmax()], "probabilities": probabilities}


class Regression(Kind):
    """A number."""

    name = "regression"
    metrics = ("pearson", "spearman", "loss")
    has_entropy = False
    num_outputs = 1

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        return cls(None, options)

    def label_ids(self, labels: list, where: str) -> np.ndarray:
        """The numbers themselves, float32."""
        numbers = as_numbers(labels)
        if numbers is None:
            wrong = next(index for index, label in enumerate(labels) if as_numbers([label]) is None)
            raise UserError(f"{where}: the label {labels[wrong]!r} of example {wrong + 1} is not a number")
        too_large = np.flatnonzero(np.abs(numbers) > np.finfo(np.float32).max)
        if len(too_large):
            label, number = numbers[too_large[0]], too_large[0] + 1
            raise UserError(
                f"{where}: the label {label:g} of example {number} is too large; scale the labels"
            )
        return np.array(numbers, dtype=np.float32)

    def placeholder_labels(self, rows: list[dict]) -> np.ndarray:
        return np.zeros(len(rows), dtype=np.float32)

    def loss_weight(self, labels: np.ndarray | list[np.ndarray]) -> float:
        """1 / their variance, so that their unit does not matter."""
        variance = float(np.var(labels))
        return 1.0 / variance if variance else 1.0

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Pearson and Spearman correlation; 0 where there is none, of constants and of a single example."""
        from scipy.stats import pearsonr, spearmanr

        predicted, labels = np.stack(outputs)[:, 0], examples.labels
        if len(labels) < 2:
            return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(np.nan_to_num(pearsonr(predicted, labels).statistic)),
            "spearman": float(np.nan_to_num(spearmanr(predicted, labels).statistic)),
        }

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`label`: the number."""
        return {"label": round(output.item(), 6)}


def fraction_of_right_groups(is_right: np.ndarray, groups: list[str]) -> float:
    """The fraction of groups whose members are all right."""
    wrong_groups = {group for group, right in zip(groups, is_right, strict=True) if not right}
    return len(set(groups) - wrong_groups) / len(set(groups))
