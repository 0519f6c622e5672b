"""Extractive question answering: the answer is a span of the context, or there is none.

Contexts longer than a model's input are read in overlapping windows, as BERT does (Devlin et al. 2019, section 4.2 and 4.3, and
their run_squad.py).
"""
from dataclasses import dataclass

import numpy as np
import torch

from config.arguments import UserError
from data.tables import is_missing
from tasks.answers import exact_match, token_f1
from tasks.examples import Examples
from tasks.kinds import Kind

MAX_QUESTION = 64  # tokens; more of a question are cut off, and what is more than half of an input
N_BEST = 20
N_SHOWN = 4  # beside the best one


@dataclass
class Windows(Examples):
    """Each window of each example's context, with its question. labels [windows, 2]: the first and last token of the answer within
    the window, -1 if it is not in there."""

    example_of: np.ndarray | None = None  # [windows]
    examples: Examples | None = None


class QuestionAnswering(Kind):
    """The span of the context (`text_pair`) that answers the question (`text`)."""

    name = "question_answering"
    columns = {"text": "question", "text_pair": "context", "label": "answers"}
    model_class = "TransformerWithTokenHead"
    metrics = ("f1", "exact_match", "loss")
    num_outputs = 2

    # ------------------------------------------------------------------------------------------------------ reading

    def prepare(self, row, where, labelled=True):
        """`label`: the answers, as a text, a list of texts, or SQuAD's {"text": […], "answer_start": […]}; none if there is no answer.
        Where no place is given, it is the first one in the context, whatever its case. The row also gets `span`: the first and last
        character + 1 of the first answer that stands in the context, or None."""
        row = super().prepare(row, where, labelled=False)
        if "text_pair" not in row:
            raise UserError(f"{where} has no context; name its column with --text_pair_column")
        if not labelled:
            return row
        label = [] if is_missing(row["label"]) else row["label"]
        found = label if isinstance(label, dict) else {"text": [label] if isinstance(label, str) else label}
        texts, starts = found.get("text"), found.get("answer_start")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: the answers are neither texts nor a list of texts with answer_start but {label!r}")
        spans = [span_in(row["text_pair"], text, start) for text, start in zip(texts, starts or [None] * len(texts), strict=False)]
        return row | {"label": texts, "span": next((span for span in spans if span), None)}

    def lacks_label(self, row):
        """A question may have no answer."""
        return False

    def is_kept(self, row):
        """Rows without an answer only if that is part of the task."""
        return row["span"] is not None or self.options.unanswerable

    def encode(self, tokenizer, texts):
        """Ids and the places of the tokens."""
        return tokenizer.encode_with_spans(texts)

    def label(self, row):
        """The characters of the first answer; -1 if there is none."""
        return list(row["span"] or (-1, -1))

    def learn(self, labels, where):
        """There are no names."""
        self.label_names = None
        if all(first < 0 for first, _ in labels):
            raise UserError(f"{where}: none of the answers stands in its context; name the right columns with --text_pair_column and --label_column")

    def label_ids(self, labels, where):
        """[examples, 2]."""
        return np.array(labels, dtype=np.int64).reshape(-1, 2)

    def no_labels(self, rows):
        """No answers."""
        return np.full((len(rows), 2), -1)

    # ------------------------------------------------------------------------------------------------------ windows

    def features(self, examples, collate):
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
        return Windows(examples.ids, np.array(bounds), first_texts, np.array(labels), self, examples.spans, np.array(example_of), examples)

    def features_of(self, features, chosen):
        """The windows of some examples."""
        return np.flatnonzero(np.isin(features.example_of, chosen))

    def batch(self, texts, labels, collate):
        """labels [batch, 2]: the positions of the first and last token of the answer, of [CLS] if there is none; span_mask [batch, seq]:
        1 at [CLS] and the tokens of the context."""
        batch = collate(texts)
        span_mask, positions = torch.zeros_like(batch["input_ids"]), []
        for row, ((question, context), (first, last)) in enumerate(zip(texts, labels, strict=True)):
            start = collate.first + len(question) + len(collate.tokenizer.between_texts)
            cls = start + len(context) if collate.causal else 0
            span_mask[row, start : start + len(context)] = 1
            span_mask[row, cls] = 1
            positions.append((cls, cls) if first < 0 else (start + first, start + last))
        return batch | {"labels": torch.tensor(positions), "span_mask": span_mask}

    # ------------------------------------------------------------------------------------------------------ results

    def outputs(self, logits, batch):
        """[1 + tokens of the window, 2]: the scores of beginning and ending at no token ([CLS]), and at each token."""
        is_context = batch["span_mask"].cpu().numpy() == 1
        rows = [row[mask] for row, mask in zip(logits.float().cpu().numpy(), is_context, strict=True)]
        # A causal model reads [CLS] behind the context, and its first token is not of the context.
        return [row if mask[0] else np.roll(row, 1, axis=0) for row, mask in zip(rows, is_context, strict=True)]

    def measure(self, features, outputs, rows=None):
        """Exact match and F1 (Rajpurkar et al. 2016, section 6.1) with the best of the answers, over all questions."""
        by_example = self.by_example(features, outputs)
        scores = []
        for row, found in zip(rows(), by_example, strict=True):
            answer = self.best_answers(found, row["text_pair"])[0]["answer"]
            gold = row["label"] or [""]
            scores.append((max(exact_match(answer, one) for one in gold), max(token_f1(answer, one) for one in gold)))
        exact, f1 = np.mean(scores, axis=0)
        return {"exact_match": float(exact), "f1": float(f1)}

    def by_example(self, features: Windows, outputs: list[np.ndarray]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """For each example its windows: scores, and the characters [tokens, 2] of the window's tokens."""
        grouped = [[] for _ in range(len(features.examples))]
        for window, output in enumerate(outputs):
            start, end = features.bounds[2 * window + 1]
            grouped[features.example_of[window]].append((output, features.spans[start:end]))
        return grouped

    def best_answers(self, windows: list[tuple[np.ndarray, np.ndarray]], context: str) -> list[dict]:
        """The N_BEST answers from all windows, the best one first: answer, score, start and end in characters. The empty one means that
        there is none; it is among them only where that is part of the task."""
        found = []
        for scores, spans in windows:
            starts, ends = np.argsort(-scores[1:], axis=0, kind="stable")[:N_BEST].T
            totals = scores[1 + starts, 0][:, None] + scores[1 + ends, 1]
            lengths = ends - starts[:, None]
            allowed = (lengths >= 0) & (lengths < self.options.max_answer_length)
            for first, last in zip(*np.nonzero(allowed), strict=True):
                found.append((float(totals[first, last]), int(spans[starts[first], 0]), int(spans[ends[last], 1])))
        if self.options.unanswerable or not found:
            found.append((min(float(scores[0].sum()) for scores, _ in windows), 0, 0))
        best = sorted({one[1:]: one for one in sorted(found)}.values(), reverse=True)[:N_BEST]
        return [{"answer": context[start:end].strip(), "score": round(score, 4), "start": start, "end": end} for score, start, end in best]

    def describe(self, output, row):
        """The best answer with its place in the context, and the runners-up."""
        best, *others = self.best_answers(output, row["text_pair"])
        return best | {"n_best": others[:N_SHOWN]}


def span_in(context: str, answer: str, start: int | None) -> tuple[int, int] | None:
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
