"""A class or a number for a text, or for a pair of texts."""

from typing import Self

import numpy as np

from config.errors import UserError
from tasks.examples import Examples
from tasks.kind import Kind, KindOptions, softmax
from tasks.labels import as_numbers, class_ids, class_names


class Classification(Kind):
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
        """Accuracy, macro F1 and Matthews correlation; with two classes also the F1 of the second, as GLUE
        has it; of examples that belong together, like the answers to a question, how often all are right
        (MultiRC: Khashabi et al. 2018, section 5)."""
        import sklearn.metrics

        labels, predicted = examples.labels, np.stack(outputs).argmax(1)
        metrics = {
            "accuracy": float((predicted == labels).mean()),
            "macro_f1": float(sklearn.metrics.f1_score(labels, predicted, average="macro")),
            "matthews": float(sklearn.metrics.matthews_corrcoef(labels, predicted)),
        }
        if self.num_outputs == 2:
            metrics["f1"] = float(sklearn.metrics.f1_score(labels, predicted, zero_division=0))
        if self.options.grouped:
            groups = [str(row["group"]) for row in examples.rows]
            metrics["exact_match"] = fraction_of_right_groups(predicted == labels, groups)
        return metrics

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`label`, and the `probabilities` of all labels."""
        probabilities = dict(zip(self.label_names, softmax(output), strict=True))
        rounded = {name: round(float(probability), 6) for name, probability in probabilities.items()}
        return {"label": self.label_names[output.argmax()], "probabilities": rounded}


class Regression(Kind):
    """A number."""

    name = "regression"
    metrics = ("pearson", "spearman", "loss")
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
        return np.array(numbers, dtype=np.float32)

    def placeholder_labels(self, rows: list[dict]) -> np.ndarray:
        return np.zeros(len(rows), dtype=np.float32)

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Pearson and Spearman correlation; 0 where there is none, of constants and of a single example."""
        import scipy.stats

        predicted, labels = np.stack(outputs)[:, 0], examples.labels
        correlations = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}
        if len(labels) < 2:
            return dict.fromkeys(correlations, 0.0)
        values = {
            name: correlation(predicted, labels).statistic for name, correlation in correlations.items()
        }
        return {name: float(np.nan_to_num(value)) for name, value in values.items()}

    def prediction_as_json(self, output: np.ndarray, row: dict) -> dict:
        """`label`, the number."""
        return {"label": round(output.item(), 6)}


def fraction_of_right_groups(is_right: np.ndarray, groups: list[str]) -> float:
    """The fraction of groups all members of which are right."""
    by_group: dict[str, bool] = {}
    for group, right in zip(groups, is_right.tolist(), strict=True):
        by_group[group] = by_group.get(group, True) and right
    return sum(by_group.values()) / len(by_group)
