"""Dependency parsing: heads as positions, attachment scores, and the head of the model."""

import numpy as np
import pytest
import torch
from helpers.kinds import CAUSAL, CLS, SENTENCE, call, collator, loss, make_model

from finetuning_model import Biaffine, HeadConfig, TransformerWithParserHead


@CAUSAL
def test_heads_are_positions_of_first_tokens(make_task, causal):
    made = make_task("parsing", SENTENCE)
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
def test_a_parser_that_knows_the_arcs_is_right(make_task, causal):
    made = make_task("parsing", SENTENCE, {"tokens": ["go"], "head": [0], "deprel": ["root"]})
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
def test_padding_does_not_change_a_parse(make_task, causal):
    made = make_task(
        "parsing", SENTENCE, {"tokens": ["go", "there"], "head": [0, 1], "deprel": ["root", "obl"]}
    )
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
