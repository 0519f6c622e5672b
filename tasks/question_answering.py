"""Extractive question answering: the answer is a span of the context, or there is none.

A context longer than a model's input is read in overlapping windows, as by BERT (Devlin et al. 2019, sections
4.2 and 4.3, and their run_squad.py).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from data.fast_tokenizers import FastTokenizer
from data.tables import is_missing
from tasks.answers import exact_match, token_f1
from tasks.examples import Collator, Examples
from tasks.kind import Kind, KindOptions, RowReader, with_texts
from utils import Batch

MAX_QUESTION = 64  # tokens of a question, and at most half of an input; the rest is cut off
N_BEST = 20
N_SHOWN = 4  # besides the best one


class QuestionReader(RowReader):
    """Reads a question (`text`), its context (`text_pair`) and the answers."""

    columns = {"text": "question", "text_pair": "context", "label": "answers"}

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """`label`: the answers, as a text, a list of texts, or SQuAD's {"text": […], "answer_start": […]};
        empty or missing if there is no answer. An answer without a start is searched for in the context,
        whatever its case. The row also gets `span`: the first character and last character + 1 of the first
        answer that is in the context, or None."""
        row = with_texts(row, where)
        if "text_pair" not in row:
            raise UserError(f"{where} has no context; name its column with --text_pair_column")
        if not labelled:
            return row
        label = [] if is_missing(row["label"]) else row["label"]
        listed = [label] if isinstance(label, str) else label
        answers = label if isinstance(label, dict) else {"text": listed}
        texts, starts = answers.get("text"), answers.get("answer_start")
        if (
            not isinstance(texts, list)
            or not isinstance(starts, list | None)
            or not all(isinstance(text, str) for text in texts)
            or not all(type(start) is int for start in starts or [])
        ):
            wrong = f"the answers are neither texts nor a list of texts with answer_start but {label!r}"
            raise UserError(f"{where}: {wrong}")
        with_starts = zip(texts, starts or [None] * len(texts), strict=False)
        spans = [answer_span(row["text_pair"], text, start) for text, start in with_starts]
        return row | {"label": texts, "span": next((span for span in spans if span), None)}

    def lacks_label(self, row: dict) -> bool:
        """A question may have no answer."""
        return False

    def is_trained_on(self, row: dict) -> bool:
        """Questions without an answer only if they are part of the task."""
        return row["span"] is not None or self.options.unanswerable

    def encode(self, tokenizer: FastTokenizer, texts: list[str]) -> list[np.ndarray]:
        return tokenizer.encode_with_spans(texts)

    def label_for_cache(self, row: dict) -> list[int]:
        """[first character, last character + 1] of the answer; -1 if there is none."""
        return list(row["span"] or (-1, -1))


class AnswerCollator(Collator):
    """Batches of windows."""

    def batch(self, texts: list[list[np.ndarray]], labels: list[np.ndarray]) -> Batch:
        """labels [batch, 2]: the positions of the first and last token of the answer, of [CLS] if there is
        none; span_mask [batch, seq]: 1 at [CLS] and the tokens of the context."""
        batch = self(texts)
        span_mask, positions = torch.zeros_like(batch["input_ids"]), []
        for mask, (question, context), (first, last) in zip(span_mask, texts, labels, strict=True):
            start = self.first + len(question) + len(self.tokenizer.between_texts)
            cls = start + len(context) if self.causal else 0
            mask[start : start + len(context)] = mask[cls] = 1
            positions.append((cls, cls) if first < 0 else (start + first, start + last))
        return batch | {"labels": torch.tensor(positions), "span_mask": span_mask}


@dataclass
class Windows(Examples):
    """The windows of all examples, each a question and a part of its context. labels [windows, 2]: the first
    and last token of the answer within the window, -1 if it is not in there."""

    example_of: np.ndarray = field(kw_only=True)  # [windows]
    n_examples: int = field(kw_only=True)

    def indices_of(self, examples: np.ndarray) -> np.ndarray:
        """The windows of some examples."""
        return np.flatnonzero(np.isin(self.example_of, examples))

    def by_example(self, outputs: list[np.ndarray]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each example its windows: scores, and the characters [tokens, 2] of the window's tokens."""
        assert self.spans is not None
        windows: list[list] = [[] for _ in range(self.n_examples)]
        for example, scores, (start, end) in zip(self.example_of, outputs, self.bounds[1::2], strict=True):
            windows[example].append((scores, self.spans[start:end]))
        return windows


class QuestionAnswering(Kind):
    """Labels are [examples, 2]: the characters of the answer, -1 if there is none."""

    name = "question_answering"
    metrics = ("f1", "exact_match", "loss")
    model_class = "TransformerWithAnswerHead"
    reader_class = QuestionReader
    collator_class = AnswerCollator
    measured_fields = ("text_pair", "label")
    num_outputs = 2

    @classmethod
    def from_labels(cls, labels: list, options: KindOptions, where: str) -> Self:
        if all(first < 0 for first, _ in labels):
            fix = "name the right columns with --text_pair_column and --label_column"
            raise UserError(f"{where}: none of the answers stands in its context; {fix}")
        return cls(None, options)

    def label_ids(self, labels: list, where: str) -> np.ndarray:
        return np.array(labels, dtype=np.int64).reshape(-1, 2)

    def placeholder_labels(self, rows: list[dict]) -> np.ndarray:
        return np.full((len(rows), 2), -1)

    def model_inputs(self, examples: Examples, collate: Collator) -> Windows:
        """Windows of all contexts, each `doc_stride` tokens after the previous one. Raises UserError if an
        input has no room for a context."""
        n_tokens = collate.max_length - collate.n_special(2)
        if n_tokens < 1:
            where = f"--max_length {collate.max_length}"
            raise UserError(f"{where} leaves no room for the context of a question; raise it")
        assert examples.spans is not None
        bounds, labels, example_of = [], [], []
        for index, ((question, question_end), (context, context_end)) in enumerate(
            examples.bounds.reshape(-1, 2, 2).tolist()
        ):
            question_end = min(question_end, question + min(MAX_QUESTION, n_tokens // 2))
            room = n_tokens - (question_end - question)
            first, last = answer_tokens(examples.spans[context:context_end], *examples.labels[index])
            for start in window_starts(context_end - context, room, self.options.doc_stride):
                end = min(context + start + room, context_end)
                bounds += [(question, question_end), (context + start, end)]
                is_inside = start <= first <= last < start + room
                labels.append((first - start, last - start) if is_inside else (-1, -1))
                example_of.append(index)
        return Windows(
            examples.ids,
            np.array(bounds),
            np.arange(0, len(bounds) + 1, 2),
            np.array(labels),
            examples.spans,
            lambda: examples.rows,
            example_of=np.array(example_of),
            n_examples=len(examples),
        )

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[1 + tokens of the window, 2]: the scores of beginning and ending at no token ([CLS]), and at each
        token."""
        masks = inputs["span_mask"].cpu().numpy() == 1
        scores = [row[mask] for row, mask in zip(logits.float().cpu().numpy(), masks, strict=True)]
        # A causal model reads [CLS] after the context, and then the mask does not begin with it.
        return [row if mask[0] else np.roll(row, 1, axis=0) for row, mask in zip(scores, masks, strict=True)]

    def measure(self, examples: Examples, outputs: list[np.ndarray]) -> dict[str, float]:
        """Exact match and F1 (Rajpurkar et al. 2016, section 6.1) with the nearest gold answer, means over
        questions."""
        scores = []
        for row, windows in zip(examples.rows, examples.by_example(outputs), strict=True):
            answer = self.best_answers(windows, row["text_pair"])[0]["answer"]
            gold = row["label"] or [""]
            scores.append([max(score(answer, text) for text in gold) for score in (exact_match, token_f1)])
        exact, f1 = np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}

    def best_answers(self, windows: list[tuple[np.ndarray, np.ndarray]], context: str) -> list[dict]:
        """The N_BEST answers from all windows, best first: answer, score, start and end in characters. An
        empty one means that there is no answer; it is a candidate only if that is part of the task."""
        answers = []  # (score, first character, last character + 1)
        for scores, spans in windows:
            answers += best_spans(scores[1:], spans, self.options.max_answer_length)
        if self.options.unanswerable or not answers:
            answers.append((min(float(scores[0].sum()) for scores, _ in windows), 0, 0))
        best = sorted({answer[1:]: answer for answer in sorted(answers)}.values(), reverse=True)[:N_BEST]
        return [
            {"answer": context[start:end].strip(), "score": round(score, 4), "start": start, "end": end}
            for score, start, end in best
        ]

    def prediction_as_json(self, output: list[tuple[np.ndarray, np.ndarray]], row: dict) -> dict:
        """The best `answer` with its `score`, `start` and `end` in the context; `n_best`: the next ones."""
        best, *others = self.best_answers(output, row["text_pair"])
        return best | {"n_best": others[:N_SHOWN]}


def best_spans(scores: np.ndarray, spans: np.ndarray, max_length: int) -> list[tuple[float, int, int]]:
    """Score, first character and last character + 1 of each span of at most `max_length` tokens in a window
    that begins at one of the N_BEST first tokens and ends at one of the N_BEST last ones.

    scores [tokens, 2]: of beginning and of ending at a token; spans [tokens, 2]: its characters.
    """
    starts, ends = np.argsort(-scores, axis=0, kind="stable")[:N_BEST].T
    totals = scores[starts, 0][:, None] + scores[ends, 1]
    lengths = ends - starts[:, None]
    allowed = (lengths >= 0) & (lengths < max_length)
    return [
        (float(totals[first, last]), int(spans[starts[first], 0]), int(spans[ends[last], 1]))
        for first, last in zip(*np.nonzero(allowed), strict=True)
    ]


def answer_span(context: str, answer: str, start: int | None) -> tuple[int, int] | None:
    """The characters of an answer in its context, if it is there."""
    if not answer:
        return None
    if start is None:
        start = context.find(answer)
        start = context.lower().find(answer.lower()) if start < 0 else start
    return (start, start + len(answer)) if 0 <= start < len(context) else None


def answer_tokens(spans: np.ndarray, first_character: int, end_character: int) -> tuple[int, int]:
    """The first and last token that have a character of the answer; -1 if there are none."""
    if first_character < 0:
        return -1, -1
    first = int(np.searchsorted(spans[:, 1], first_character, side="right"))
    last = int(np.searchsorted(spans[:, 0], end_character, side="left")) - 1
    return (first, last) if first <= last else (-1, -1)


def window_starts(n_tokens: int, room: int, stride: int) -> list[int]:
    """The first token of each window of `room` tokens; each of the `n_tokens` is in a window."""
    stride = min(stride, room)
    return [0, *range(stride, n_tokens - room + stride, stride)] if n_tokens > room else [0]
