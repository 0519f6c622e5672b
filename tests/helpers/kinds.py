"""Rows of each kind of task, and models without training."""

import pytest
import torch

from config.model import TransformerConfig
from finetuning_model import HeadConfig

CLS = 2  # the id of [CLS] in the vocabulary of `tiny_vocab`
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PRE_NORM = pytest.mark.parametrize("pre_norm", [True, False])
WORDS = ["Zebediah", "was", "in", "Xanadupolis", "."]
TAGS = ["B-PER", "O", "O", "B-LOC", "O"]
CHOICES = [
    {"text": "the film was", "choices": ["good", "bad and long", "here"], "label": 1},
    {"text": "a story of", "choices": ["its own", "words"], "label": 0},
]
SENTENCE = {"tokens": WORDS, "head": [2, 0, 4, 2, 2], "deprel": ["nsubj", "root", "case", "obl:loc", "punct"]}
LONG = (
    "The film was made by people who were not there. " * 12
    + "It was made in Kyoto, by one woman. "
    + "And so on, with some more words. " * 9
)
ANSWER = {"text": ["Kyoto"], "answer_start": [LONG.index("Kyoto")]}


def question(context=LONG, answers=ANSWER, text="Where was it made?"):
    return {"question": text, "context": context, "answers": answers}


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
