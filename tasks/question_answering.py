"""Extractive question answering: the answer is a span of the context, or there is none.

Contexts longer than a model's input are read in overlapping windows, as BERT does (Devlin et al. 2019,
section 4.2 and 4.3, and their run_squad.py).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.tables import is_missing
from data.wordpiece import Tokenizer
from tasks.answers import exact_match, token_f1
from tasks.examples import Collator, Examples
from tasks.kind import Kind, KindOptions, RowReader, with_texts
from utils import Batch

MAX_QUESTION = 64  # tokens; more of a question are cut off, and what is more than half of an input
N_BEST = 20
N_SHOWN = 4  # beside the best one


class QuestionReader(RowReader):
    """Reads a question (`text`), its context (`text_pair`) and the answers."""

    columns = {"text": "question", "text_pair": "context", "label": "answers"}

    def prepare(self, row: dict, where: str, labelled: bool = True) -> dict:
        """`label`: the answers, as a text, a list of texts, or SQuAD's {"text": […], "answer_start": […]};
        none if there is no answer. Where no start is given, it is the first one in the context, whatever its
        case. The row also gets `span`: the first and last character + 1 of the first answer that stands in
        the context, or None."""
        row = with_texts(row, where)
        if "text_pair" not in row:
            raise UserError(f"{where} has no context; name its column with --text_pair_column")
        if not labelled:
            return row
        label = [] if is_missing(row["label"]) else row["label"]
        answers = label if isinstance(label, dict) else {"text": [label] if isinstance(label, str) else label}
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            wrong = f"the answers are neither texts nor a list of texts with answer_start but {label!r}"
            raise UserError(f"{where}: {wrong}")
        with_starts = zip(texts, starts or [None] * len(texts), strict=False)
        spans = [answer_span(row["text_pair"], text, start) for text, start in with_starts]
        return row | {"label": texts, "span": next((span for span in spans if span), None)}

    def lacks_label(self, row: dict) -> bool:
        """A question may have no answer."""
        return False

    def is_trained_on(self, row: dict) -> bool:
        """Rows without an answer only if that is part of the task."""
        return row["span"] is not None or self.options.unanswerable

    def encode(self, tokenizer: Tokenizer | ByteLevelTokenizer, texts: list[str]) -> list[np.ndarray]:
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
        for row, ((question, context), (first, last)) in enumerate(zip(texts, labels, strict=True)):
            start = self.first + len(question) + len(self.tokenizer.between_texts)
            cls = start + len(context) if self.causal else 0
            span_mask[row, start : start + len(context)] = 1
            span_mask[row, cls] = 1
            positions.append((cls, cls) if first < 0 else (start + first, start + last))
        return batch | {"labels": torch.tensor(positions), "span_mask": span_mask}


@dataclass
class Windows(Examples):
    """Each window of each example's context, with its question. labels [windows, 2]: the first and last token
    of the answer within the window, -1 if it is not in there."""

    example_of: np.ndarray | None = None  # [windows]
    examples: Examples | None = None

    @property
    def rows(self) -> list[dict]:
        """Those of the examples."""
        return self.examples.rows

    def indices_of(self, examples: np.ndarray) -> np.ndarray:
        """The windows of some examples."""
        return np.flatnonzero(np.isin(self.example_of, examples))

    def by_example(self, outputs: list[np.ndarray]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each example its windows: scores, and the characters [tokens, 2] of the window's tokens."""
        grouped = [[] for _ in range(len(self.examples))]
        for window, output in enumerate(outputs):
            start, end = self.bounds[2 * window + 1]
            grouped[self.example_of[window]].append((output, self.spans[start:end]))
        return grouped


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
        """Windows of all contexts, each `doc_stride` tokens after the one before. Raises UserError where an
        input has no room for any."""
        bounds, labels, example_of = [], [], []
        n_tokens = collate.max_length - collate.n_special(2)
        if n_tokens < 1:
            where = f"--max_length {collate.max_length}"
            raise UserError(f"{where} leaves no room for the context of a question; raise it")
        for index, first_text in enumerate(examples.first_texts[:-1]):
            question, context = examples.bounds[first_text], examples.bounds[first_text + 1]
            question_end = min(question[1], question[0] + min(MAX_QUESTION, n_tokens // 2))
            room = n_tokens - int(question_end - question[0])
            answer = answer_tokens(examples.spans[context[0] : context[1]], *examples.labels[index])
            for start in window_starts(int(context[1] - context[0]), room, self.options.doc_stride):
                end = min(context[0] + start + room, context[1])
                bounds += [(question[0], question_end), (context[0] + start, end)]
                is_inside = answer is not None and start <= answer[0] and answer[1] < start + room
                labels.append((answer[0] - start, answer[1] - start) if is_inside else (-1, -1))
                example_of.append(index)
        first_texts = np.arange(0, len(bounds) + 1, 2)
        return Windows(
            examples.ids, np.array(bounds), first_texts, np.array(labels), examples.spans,
            example_of=np.array(example_of), examples=examples,
        )  # fmt: skip

    def outputs_per_row(self, logits: Tensor, inputs: Batch) -> list[np.ndarray]:
        """[1 + tokens of the window, 2]: the scores of beginning and ending at no token ([CLS]), and at each
        token."""
        is_context = inputs["span_mask"].cpu().numpy() == 1
        rows = [row[mask] for row, mask in zip(logits.float().cpu().numpy(), is_context, strict=True)]
        # A causal model reads [CLS] behind the context, and its first token is not of the context.
        return [
            row if mask[0] else np.roll(row, 1, axis=0) for row, mask in zip(rows, is_context, strict=True)
        ]

    def measure(self, examples: Windows, outputs: list[np.ndarray]) -> dict[str, float]:
        """Exact match and F1 (Rajpurkar et al. 2016, section 6.1) with the best of the answers, over all
        questions."""
        scores = []
        for row, windows in zip(examples.rows, examples.by_example(outputs), strict=True):
            answer = self.best_answers(windows, row["text_pair"])[0]["answer"]
            gold = row["label"] or [""]
            scores.append([max(score(answer, one) for one in gold) for score in (exact_match, token_f1)])
        exact, f1 = np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}

    def best_answers(self, windows: list[tuple[np.ndarray, np.ndarray]], context: str) -> list[dict]:
        """The N_BEST answers from all windows, the best one first: answer, score, start and end in
        characters. The empty one means that there is none; it is among them only where that is part of the
        task."""
        answers = []  # (score, first character, last character + 1)
        for scores, spans in windows:
            answers += best_spans(scores[1:], spans, self.options.max_answer_length)
        if self.options.unanswerable or not answers:
            answers.append((min(float(scores[0].sum()) for scores, _ in windows), 0, 0))
        best = sorted({one[1:]: one for one in sorted(answers)}.values(), reverse=True)[:N_BEST]
        return [
            {"answer": context[start:end].strip(), "score": round(score, 4), "start": start, "end": end}
            for score, start, end in best
        ]

    def prediction_as_json(self, output: list[tuple[np.ndarray, np.ndarray]], row: dict) -> dict:
        """The best `answer` with its `score`, `start` and `end` in the context, and the others (`n_best`)."""
        best, *others = self.best_answers(output, row["text_pair"])
        return best | {"n_best": others[:N_SHOWN]}


def best_spans(scores: np.ndarray, spans: np.ndarray, max_length: int) -> list[tuple[float, int, int]]:
    """Score, first and last character + 1 of the spans from one of the N_BEST first tokens to one of the
    N_BEST last ones of a window, of at most `max_length` tokens.

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


def answer_tokens(spans: np.ndarray, first_character: int, end_character: int) -> tuple[int, int] | None:
    """The first and last token that have a character of the answer."""
    if first_character < 0:
        return None
    first = int(np.searchsorted(spans[:, 1], first_character, side="right"))
    last = int(np.searchsorted(spans[:, 0], end_character, side="left")) - 1
    return (first, last) if first <= last else None


def window_starts(n_tokens: int, room: int, stride: int) -> list[int]:
    """Where windows of `room` tokens begin, so that each token is in one."""
    stride = min(stride, room)
    return [0, *range(stride, n_tokens - room + stride, stride)] if n_tokens > room else [0]
