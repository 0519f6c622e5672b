"""Kinds of tasks: how rows become batches, logits metrics, and predictions, without a training run."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from config.constants import IGNORE_INDEX
from config.errors import UserError
from config.model import TransformerConfig
from finetuning_model import (
    Biaffine,
    HeadConfig,
    TransformerWithClfHead,
    TransformerWithParserHead,
    TransformerWithTagHead,
)
from tasks.answers import exact_match, token_f1
from tasks.kind import KindOptions
from tasks.kinds import KINDS
from tasks.labels import label_name
from tasks.multiple_choice import ChoiceReader
from tasks.question_answering import QuestionReader, window_starts
from tasks.tagging import TagReader
from tasks.task import Task
from tasks.trees import best_tree

CLS, SEP = 2, 3
CAUSAL = pytest.mark.parametrize("causal", [True, False])


@pytest.fixture
def task(tmp_path, tiny_vocab):
    """Make a task of one kind from rows."""

    def make(kind, *rows, valid=None, **options):
        for split, some in (("train", rows), ("valid", valid or rows)):
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        return Task(
            str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), kind=kind, options=KindOptions(**options)
        )

    return make


def make_model(model_class, num_outputs, causal):
    torch.manual_seed(0)
    shape = TransformerConfig(500, 32, 64, 64, 4, 2, 0.0, 0.0, causal=causal)
    model = model_class(shape, HeadConfig(num_outputs, initializer_range=0.3)).eval()
    for parameter in model.classification_head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def collator(made, max_length, causal, **options):
    return made.kind.collator_class(made.tokenizer, max_length, causal, **options)


def call(model, batch):
    return model(**{key: tensor for key, tensor in batch.items() if key != "labels"})


def loss(model, batch):
    return model(**batch)["clf"]


# -------------------------------------------------------------------------------------------- multiple choice


CHOICES = [
    {"text": "the film was", "choices": ["good", "bad and long", "here"], "label": 1},
    {"text": "a story of", "choices": ["its own", "words"], "label": 0},
]


@CAUSAL
def test_choices_are_scored_alone_as_in_company(task, causal):
    made = task("multiple_choice", *CHOICES)
    model, collate = make_model(TransformerWithClfHead, 1, causal), collator(made, 64, causal)
    together = made.train.batch(np.array([0, 1]), collate)
    assert together["input_ids"].shape[:2] == (2, 3) and together["labels"].tolist() == [1, 0]
    logits = call(model, together)
    assert logits.shape == (2, 3) and logits[1, 2] == -math.inf
    alone = made.train.batch(np.array([1]), collate)
    torch.testing.assert_close(call(model, alone), logits[1:, :2], atol=1e-5, rtol=1e-5)
    total = sum(loss(model, made.train.batch(np.array([one]), collate)) for one in (0, 1))
    torch.testing.assert_close(loss(model, together), total, atol=1e-5, rtol=1e-5)
    assert [len(one) for one in made.kind.outputs_per_row(logits.detach(), together)] == [3, 2]


@pytest.mark.parametrize(
    ("row", "options", "texts"),
    [
        ({"text": "q", "choices": ["a", "b"]}, {}, ["q", "a", "q", "b"]),
        ({"text": "c", "text_pair": "q", "choices": ["a", "b"]}, {}, ["c", "q a", "c", "q b"]),
        ({"text": "one \0 two", "choices": ["a", "b"]}, {}, ["one a two", "one b two"]),
        ({"text": "the _ ran", "choices": ["a", "b"]}, {"blank": "_"}, ["the a ran", "the b ran"]),
        (
            {"text": "c", "text_pair": "is _ it? \0", "choices": ["a", "b"]},
            {"blank": "_"},
            ["c", "is a it?", "c", "is b it?"],
        ),
    ],
)
def test_a_choice_stands_where_the_text_has_room_for_it(row, options, texts):
    assert ChoiceReader(KindOptions(**options)).texts(row) == texts


@pytest.mark.parametrize(
    ("label", "names", "right"),
    [
        (1, [], 1), ("1", [], 1), (1.0, [], 1), ("B", ["A", "B"], 1), ("y\n", [], 1), (["z", "y"], [], 1),
        ("2", ["1", "2"], 1), (2, ["1", "2"], 1),
        (1, ["A", "B"], 1), (" 1", ["A", "B"], 1), (["1"], ["A", "B"], 1), ("y", ["A", "B"], 1),
    ],
)  # fmt: skip
def test_the_right_choice_has_a_number_a_name_or_its_text(label, names, right):
    row = {"text": "q", "choices": ["x", "y"], "label": label}
    assert ChoiceReader(KindOptions(names)).prepare(row, "here")["label"] == [right]


def test_any_of_several_right_choices_will_do(task):
    rows = [
        {"text": "q", "choices": ["Rome", "the old Oslo", "Oslo"], "label": label}
        for label in (["Rome", "Oslo"], ["Rome", "Oslo"], ["the old Oslo"])
    ]
    made = task("multiple_choice", *rows)
    found = made.kind.measure(made.train, [np.eye(3)[one] for one in (2, 1, 1)])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx((1 + 2 / 3 + 1) / 3)}
    assert made.kind.has_metric("f1") and not task("multiple_choice", *rows[2:]).kind.has_metric("f1")


# ---------------------------------------------------------------------------------------------------- tagging


WORDS = ["Zebediah", "was", "in", "Xanadupolis", "."]
TAGS = ["B-PER", "O", "O", "B-LOC", "O"]


@CAUSAL
@pytest.mark.parametrize("max_length", [64, 9])
def test_a_tag_stands_at_the_first_token_of_its_word(task, causal, max_length):
    made = task("tagging", {"tokens": WORDS, "tags": TAGS})
    batch = made.train.batch(np.array([0]), collator(made, max_length, causal, truncation="tail"))
    pieces = made.tokenizer.encode_words(WORDS)
    assert max(map(len, pieces)) > 2, "words of several tokens"
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert len(ids) <= max_length
    starts = [position for position, label in enumerate(labels) if label != IGNORE_INDEX]
    assert [ids[start] for start in starts] == [piece[0] for piece in pieces[: len(starts)]]
    assert [made.kind.label_names[labels[start]] for start in starts] == TAGS[: len(starts)]
    assert len(starts) == len(WORDS) or len(ids) == max_length
    assert torch.equal(batch["word_mask"], (batch["labels"] != IGNORE_INDEX).long())


def test_entities_count_whole_and_words_that_were_cut_off_count_as_wrong(task):
    made = task(
        "tagging", {"tokens": WORDS, "tags": TAGS}, {"tokens": ["Bob", "was"], "tags": ["B-PER", "O"]}
    )
    of = made.kind.label_names.index
    outputs = [
        np.array([of(tag) for tag in ("B-PER", "O", "O", "O", "O")]),
        np.array([of("B-PER"), of("B-PER")]),
    ]
    found = made.kind.measure(made.train, outputs)  # of 3 entities 2 are found, and 3 predicted
    assert found == {
        "f1": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "accuracy": pytest.approx(5 / 7),
    }
    cut = made.kind.measure(made.train, [outputs[0][:3], outputs[1]])
    assert cut == found, "the fourth word was tagged O before, and is O now that it is cut off"


def test_tags_without_entities_are_measured_by_word(task):
    made = task("tagging", {"text": "a b c d", "tags": "N V N X"} | {"tokens": "a b c d"})
    of = made.kind.label_names.index
    found = made.kind.measure(made.train, [np.array([of("N"), of("N"), of("N"), of("X")])])
    assert found["accuracy"] == 0.75 and found["f1"] == pytest.approx((2 * 0.8 + 0 + 1) / 4)


def test_a_tag_that_training_does_not_have_is_never_right(task):
    made = task(
        "tagging",
        {"tokens": ["a", "b"], "tags": ["N", "V"]},
        valid=[{"tokens": ["a", "b"], "tags": ["N", "new"]}],
    )
    valid = made.examples("valid")
    batch = valid.batch(np.array([0]), collator(made, 64, False))
    assert (batch["labels"] != IGNORE_INDEX).sum() == 1 and batch["word_mask"].sum() == 2
    assert made.kind.measure(valid, [np.array([0, 1])])["accuracy"] == 0.5


@CAUSAL
def test_padding_does_not_change_tags(task, causal):
    made = task(
        "tagging", {"tokens": WORDS, "tags": TAGS}, {"tokens": ["Bob", "was"], "tags": ["B-PER", "O"]}
    )
    model, collate = make_model(TransformerWithTagHead, 3, causal), collator(made, 64, causal)
    together, alone = (made.train.batch(np.array(one), collate) for one in ([0, 1], [1]))
    width = alone["input_ids"].size(1)
    torch.testing.assert_close(call(model, together)[1:, :width], call(model, alone), atol=1e-5, rtol=1e-5)
    total = sum(loss(model, made.train.batch(np.array([one]), collate)) for one in (0, 1))
    torch.testing.assert_close(loss(model, together), total, atol=1e-4, rtol=1e-5)


# ----------------------------------------------------------------------------------------- question answering


LONG = (
    "The film was made by people who were not there. " * 12
    + "It was made in Kyoto, by one woman. "
    + "And so on, with some more words. " * 9
)
ANSWER = {"text": ["Kyoto"], "answer_start": [LONG.index("Kyoto")]}


def question(context=LONG, answers=ANSWER, text="Where was it made?"):
    return {"question": text, "context": context, "answers": answers}


@CAUSAL
@pytest.mark.parametrize(("max_length", "stride"), [(40, 8), (40, 128), (63, 20), (400, 128)])
def test_windows_cover_the_context_and_know_where_the_answer_is(task, causal, max_length, stride):
    made = task("question_answering", question(), doc_stride=stride)
    collate = collator(made, max_length, causal)
    windows = made.kind.model_inputs(made.train, collate)
    ids, spans = made.train[0][1], made.train.spans[made.train.bounds[1, 0] :]
    covered, n_with_answer = set(), 0
    for index in range(len(windows)):
        batch = windows.batch(np.array([index]), collate)
        row, mask, (first, last) = (
            batch["input_ids"][0],
            batch["span_mask"][0].bool(),
            batch["labels"][0].tolist(),
        )
        assert len(row) <= max_length and row[mask][-1 if causal else 0] == CLS
        start = windows.bounds[2 * index + 1, 0] - made.train.bounds[1, 0]
        context = row[mask][:-1] if causal else row[mask][1:]
        assert context.tolist() == ids[start : start + len(context)].tolist()
        covered |= set(range(start, start + len(context)))
        if row[first] == CLS:
            assert first == last
            continue
        n_with_answer += 1
        at = int(torch.nonzero(mask)[0 if causal else 1])
        characters = spans[start + first - at][0], spans[start + last - at][1]
        assert LONG[slice(*characters)] == "Kyoto"
    assert covered == set(range(len(ids))) and n_with_answer >= 1


@CAUSAL
@pytest.mark.parametrize("max_length", [5, 6, 12, 17])
def test_a_long_question_leaves_half_of_the_input_to_the_context(task, causal, max_length):
    made = task("question_answering", question(text="Where was it made? " * 40), doc_stride=8)
    collate = collator(made, max_length, causal)
    windows = made.kind.model_inputs(made.train, collate)
    batch = windows.batch(np.arange(len(windows)), collate)
    n_context = batch["span_mask"].sum(1)[:-1] - 1  # but for [CLS]; the last window is shorter
    half = (max_length - collate.n_special(2) + 1) // 2
    assert batch["input_ids"].size(1) == max_length and (n_context == half).all()
    first, last = made.train.bounds[1]
    read = {at for start, end in windows.bounds[1::2] for at in range(start, end)}
    assert read == set(range(first, last)), "all of the context"
    is_answer = batch["labels"][:, 0] != batch["input_ids"].eq(CLS).long().argmax(1)
    assert is_answer.any() or half < 4
    assert ((batch["input_ids"] == CLS).sum(1) == 1).all()


def test_an_input_without_room_for_a_context_is_a_sentence(task):
    made = task("question_answering", question())
    with pytest.raises(UserError, match="--max_length 3 leaves no room for the context"):
        made.kind.model_inputs(made.train, collator(made, 3, False))


@pytest.mark.parametrize(
    ("n_tokens", "room", "stride"), [(1, 5, 2), (5, 5, 2), (6, 5, 2), (7, 5, 9), (50, 7, 3)]
)
def test_no_window_is_in_vain(n_tokens, room, stride):
    starts = window_starts(n_tokens, room, stride)
    assert starts[-1] + room >= n_tokens and (len(starts) == 1 or starts[-2] + room < n_tokens)
    assert all(later - earlier <= room for earlier, later in itertools.pairwise(starts))


@CAUSAL
@pytest.mark.parametrize("unanswerable", [True, False])
def test_the_best_answer_comes_from_all_windows(task, causal, unanswerable):
    made = task("question_answering", question(), doc_stride=8, unanswerable=unanswerable)
    collate = collator(made, 40, causal)
    windows = made.kind.model_inputs(made.train, collate)
    batch = windows.batch(np.arange(len(windows)), collate)
    sure = torch.zeros(*batch["input_ids"].shape, 2)
    for row, ends in enumerate(batch["labels"]):
        for end in (0, 1):
            sure[row, ends[end], end] = 9.0
    logits = sure.masked_fill(batch["span_mask"].unsqueeze(-1) == 0, -math.inf)
    outputs = made.kind.outputs_per_row(logits, batch)
    described = made.kind.prediction_as_json(windows.by_example(outputs)[0], question() | {"text_pair": LONG})
    assert (described["answer"], LONG[described["start"] : described["end"]]) == ("Kyoto", "Kyoto")
    assert any(one["answer"] == "" for one in described["n_best"]) <= unanswerable
    found = made.kind.measure(windows, outputs)
    assert found == {"exact_match": 1.0, "f1": 1.0}


def test_a_question_without_an_answer_wants_none(task):
    rows = [question(), question(answers={"text": [], "answer_start": []}, text="Who sang?")]
    assert len(task("question_answering", *rows).train) == 1, "not part of the task: not trained on"
    made = task("question_answering", *rows, unanswerable=True)
    collate = collator(made, 400, False)
    windows = made.kind.model_inputs(made.train, collate)
    assert windows.batch(np.array([1]), collate)["labels"].tolist() == [[0, 0]]
    nothing = np.concatenate([[[9.0, 9.0]], np.zeros((len(made.train[1][1]), 2))])
    assert made.kind.measure(windows, [nothing, nothing])["exact_match"] == 0.5


@pytest.mark.parametrize(
    "answers",
    ["Kyoto", ["kyoto"], ["nowhere", "Kyoto"], {"text": ["Kyoto"], "answer_start": [LONG.index("Kyoto")]}],
)
def test_answers_come_in_several_forms(answers):
    row = QuestionReader().prepare({"text": "q", "text_pair": LONG, "label": answers}, "here")
    assert LONG[slice(*row["span"])] == "Kyoto"


def test_answers_are_compared_as_squad_does():
    assert exact_match("The Kyoto.", "kyoto") == 1 and exact_match("Kyoto", "Osaka") == 0
    assert token_f1("in Kyoto", "the old Kyoto") == pytest.approx(2 * 0.5 * 0.5 / (0.5 + 0.5))
    assert token_f1("", "") == 1 and token_f1("", "Kyoto") == 0


# ---------------------------------------------------------------------------------------------------- parsing


SENTENCE = {"tokens": WORDS, "head": [2, 0, 4, 2, 2], "deprel": ["nsubj", "root", "case", "obl:loc", "punct"]}


@CAUSAL
def test_heads_are_positions_of_first_tokens(task, causal):
    made = task("parsing", SENTENCE)
    batch = made.train.batch(np.array([0]), collator(made, 64, causal))
    words = torch.nonzero(batch["word_mask"][0]).flatten().tolist()
    root = batch["input_ids"][0].tolist().index(CLS)
    assert batch["heads"][0, words].tolist() == [[root, *words][head] for head in SENTENCE["head"]]
    assert [made.kind.label_names[one] for one in batch["labels"][0, words]] == [
        "nsubj",
        "root",
        "case",
        "obl",
        "punct",
    ]


@CAUSAL
def test_a_parser_that_knows_the_arcs_is_right(task, causal):
    made = task("parsing", SENTENCE, {"tokens": ["go"], "head": [0], "deprel": ["root"]})
    batch = made.train.batch(np.array([0, 1]), collator(made, 64, causal))
    logits = torch.zeros(2, batch["input_ids"].size(1), batch["input_ids"].size(1), 1 + made.kind.num_outputs)
    for row, word in torch.nonzero(batch["word_mask"]).tolist():
        head = batch["heads"][row, word]
        logits[row, word, head, 0] = logits[row, word, head, 1 + batch["labels"][row, word]] = 5
    outputs = made.kind.outputs_per_row(logits, batch)
    assert outputs[0][0].tolist() == SENTENCE["head"]
    assert made.kind.measure(made.train, outputs) == {"las": 1.0, "uas": 1.0}
    outputs[0][1, 0] += 1  # one relation
    outputs[0][0, 4] = 1  # one arc
    assert made.kind.measure(made.train, outputs) == {
        "las": pytest.approx(4 / 6),
        "uas": pytest.approx(5 / 6),
    }
    cut = [outputs[0][:, :4], outputs[1]]
    assert made.kind.measure(made.train, cut) == made.kind.measure(made.train, outputs), (
        "what is cut off is wrong"
    )


@CAUSAL
def test_padding_does_not_change_a_parse(task, causal):
    made = task("parsing", SENTENCE, {"tokens": ["go", "there"], "head": [0, 1], "deprel": ["root", "obl"]})
    model = make_model(TransformerWithParserHead, made.kind.num_outputs, causal)
    collate = collator(made, 64, causal)
    together, alone = (made.train.batch(np.array(one), collate) for one in ([0, 1], [1]))
    width = alone["input_ids"].size(1)
    torch.testing.assert_close(
        call(model, together)[1:, :width, :width], call(model, alone), atol=1e-4, rtol=1e-4
    )
    total = sum(loss(model, made.train.batch(np.array([one]), collate)) for one in (0, 1))
    torch.testing.assert_close(loss(model, together), total, atol=1e-4, rtol=1e-5)


def test_biaffine_attention_is_that_of_the_paper():
    torch.manual_seed(0)
    module = Biaffine(8, HeadConfig(3))
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    states = torch.randn(1, 4, 8)
    scores = module(states)[0]
    gelu = torch.nn.functional.gelu
    for dependent, head in ((0, 3), (2, 1)):
        r_dep, r_head = (
            gelu(one(states[0, at]))
            for one, at in ((module.arc_dependent, dependent), (module.arc_head, head))
        )
        arc = r_dep @ module.arc[0, :-1] @ r_head + module.arc[0, -1] @ r_head
        torch.testing.assert_close(scores[dependent, head, 0], arc)
        r_dep, r_head = (
            torch.cat((gelu(one(states[0, at])), torch.ones(1)))
            for one, at in ((module.relation_dependent, dependent), (module.relation_head, head))
        )
        torch.testing.assert_close(
            scores[dependent, head, 1:], torch.stack([r_dep @ matrix @ r_head for matrix in module.relation])
        )


def trees(n_words):
    """All trees over so many words of which one is the root's child."""
    for heads in itertools.product(range(n_words + 1), repeat=n_words):
        reached = {0}
        for _ in range(n_words):
            reached |= {word for word in range(1, n_words + 1) if heads[word - 1] in reached}
        if len(reached) == n_words + 1 and heads.count(0) == 1:
            yield heads


@pytest.mark.parametrize("seed", range(60))
def test_the_best_tree_is_the_best_of_all_trees(seed):
    random = np.random.default_rng(seed)
    n_words = 1 + seed % 5
    scores = random.normal(size=(n_words + 1, n_words + 1))
    scores[:, 0] += 4 * (seed % 2)  # the root is tempting
    best = max(
        trees(n_words), key=lambda heads: sum(scores[word, head] for word, head in enumerate(heads, start=1))
    )
    assert tuple(best_tree(scores)) == best


# ------------------------------------------------------------------------------------------- what is measured


@pytest.mark.parametrize("has_valid_file", [True, False])
def test_evaluations_read_the_rows_once(has_valid_file, tiny_vocab, tmp_path):
    rows = [question(text=f"Where was it made? {number}") for number in range(20)]
    for split in ("train", "valid") if has_valid_file else ("train",):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Task(str(tmp_path), str(tiny_vocab), str(tmp_path / "cache"), kind="question_answering")
    valid = made.kind.model_inputs(made.examples("valid"), collator(made, 400, False))
    outputs = [np.zeros((1 + end - start, 2)) for start, end in valid.bounds[1::2]]
    first = made.kind.measure(valid, outputs)
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert made.kind.measure(valid, outputs) == first


# --------------------------------------------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("kind", "row", "words"),
    [
        (
            "multiple_choice",
            {"text": "q", "choices": ["a"], "label": 0},
            ["example 2", "two or more texts", "--choices_column"],
        ),
        ("multiple_choice", {"text": "q", "label": 0, "choices": None}, ["example 2", "--choices_column"]),
        (
            "multiple_choice",
            {"text": "q", "choices": ["a", "b"], "label": 2},
            ["example 2", "label 2", "none of the choices", "--label_names"],
        ),
        ("tagging", {"tokens": ["a", "b"], "tags": ["N"]}, ["example 2", "2 words", "1 tags"]),
        ("tagging", {"tokens": ["a"], "tags": []}, ["example 2", "1 words", "0 tags"]),
        ("tagging", {"tokens": "a", "tags": ""}, ["example 2", "has no label"]),
        ("tagging", {"tokens": ["a", 3], "tags": ["N", "N"]}, ["example 2", "words"]),
        (
            "parsing",
            {"tokens": ["a"], "head": [2], "deprel": ["x"]},
            ["example 2", "head 2", "none of the words"],
        ),
        ("parsing", {"tokens": ["a"], "head": [0, 1], "deprel": ["x"]}, ["example 2", "1 words", "2 heads"]),
        (
            "question_answering",
            {"question": "q", "context": "c", "answers": 3},
            ["example 2", "answers", "3"],
        ),
        (
            "question_answering",
            {"question": "q", "context": 3, "answers": "c"},
            ["example 2", "text_pair", "3"],
        ),
        ("regression", {"text": "a", "label": "much"}, ["example 2", "'much'", "not a number"]),
    ],
)
def test_a_bad_row_is_one_sentence(task, kind, row, words):
    good = {
        "multiple_choice": CHOICES[0], "tagging": {"tokens": WORDS, "tags": TAGS}, "parsing": SENTENCE, "question_answering": question(),
        "regression": {"text": "a", "label": 1.5},
    }[kind]  # fmt: skip
    with pytest.raises(UserError) as error:
        task(kind, good, row)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_a_context_without_any_answer_is_a_sentence(task):
    with pytest.raises(UserError, match="none of the answers stands in its context"):
        task("question_answering", question(answers="nowhere"), unanswerable=True)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_column_that_is_missing_is_named_with_its_flag(kind, task):
    with pytest.raises(
        UserError, match=r"row 1 has no column '\w+' \(it has other\); name it with --\w+_column"
    ):
        task(kind, {"other": 1})


def test_examples_without_labels_are_left_out_if_asked(task):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": None}, {"text": "c", "label": "y"}]
    with pytest.raises(UserError, match="example 2 has no label"):
        task("auto", *rows)
    assert len(task("auto", *rows, skip_unlabelled=True).train) == 2


def test_a_group_is_right_if_all_of_it_is(task, tmp_path):
    rows = [
        {"text": "a", "group": group, "label": label}
        for group, label in (("x", 0), ("x", 1), ("y", 0), ("y", 1), ("z", 1))
    ]
    made = task("classification", *rows, grouped=True)
    outputs = [np.eye(2)[one] for one in (0, 1, 0, 0, 1)]
    assert made.kind.measure(made.train, outputs)["exact_match"] == pytest.approx(2 / 3)


def test_label_names_name_numbers(task):
    made = task("auto", {"text": "a", "label": 1}, {"text": "b", "label": 0}, label_names=["bad", "good"])
    assert made.kind.label_names == ["bad", "good"] and made.train.labels.tolist() == [1, 0]
    tagging = TagReader(KindOptions(["O", "B-X"]))
    for row in ({"text": ["a"], "label": [1]}, {"text": "a", "label": "1"}):
        assert tagging.prepare(row, "here")["label"] == ["B-X"]


@pytest.mark.parametrize(
    ("label", "names", "name"),
    [
        # as CSV and Parquet have them
        ("1", "bad,good", "good"), (" 0 ", "bad,good", "bad"), (1.0, "bad,good", "good"),
        ("good", "bad,good", "good"),
        # a name is itself
        ("2", "0,1,2", "2"), (2, "0,1,other", "other"), (3, "1,2,3", 3), ("1", "1,2,3", "1"),
        (1.0, "1,2,3", "1"),
        # neither
        (0, "1,2,3", 0), ("2", "bad,good", "2"), (-1, "bad,good", -1), (True, "bad,good", True),
        ("1.5", "bad,good", "1.5"), ("nan", "bad,good", "nan"), ("1", "", "1"),
    ],
)  # fmt: skip
def test_a_number_as_text_is_a_number_unless_it_is_a_name(label, names, name):
    found = label_name(label, names.split(",") if names else [])
    assert found == name and type(found) is type(name)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_label_names_name_the_numbers_of_a_table(suffix, tiny_vocab, tmp_path):
    separator = {".csv": ",", ".tsv": "\t"}[suffix]
    file = tmp_path / f"films{suffix}"
    rows = [f"film {n}{separator}{n % 2}\n" for n in range(20)]
    file.write_text("".join([f"text{separator}label\n", *rows]))
    made = Task(str(file), str(tiny_vocab), str(tmp_path / "cache"), options=KindOptions(["bad", "good"]))
    assert made.kind.label_names == ["bad", "good"]
    assert sorted(made.train.labels.tolist()) == [0] * 9 + [1] * 9
