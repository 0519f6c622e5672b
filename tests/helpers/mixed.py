"""A multi-task model with a head of every kind, and random batches of its tasks."""

import torch
from torch import Tensor

from config.constants import IGNORE_INDEX
from config.model import TransformerConfig
from multitask_model import MultitaskShape, MultitaskTransformer, TaskHead

VOCABULARY, N_TAGS, N_RELATIONS, N_CLASSES = 97, 5, 3, 4
HEADS = {
    "topic": TaskHead("TransformerWithClfHead", N_CLASSES),
    "score": TaskHead("TransformerWithClfHead", 1),
    "tags": TaskHead("TransformerWithTagHead", N_TAGS),
    "answers": TaskHead("TransformerWithAnswerHead", 2),
    "choices": TaskHead("TransformerWithClfHead", 1),
    "trees": TaskHead("TransformerWithParserHead", N_RELATIONS),
}
SHAPE = TransformerConfig(VOCABULARY, 32, 48, 24, 4, 3, 0.0, 0.0)
BERT = {"causal": False, "pre_norm": False, "embedding_norm": True, "num_token_types": 2}


def make_model(conditioning, tasks=HEADS, pooling="cls", tuning=None, **config) -> MultitaskTransformer:
    """At its initialization, for inputs of up to 20 tokens."""
    torch.manual_seed(0)
    options = {} if tuning is None else {"tuning": tuning}
    shape = MultitaskShape(dict(tasks), 20, list(conditioning), pooling, **options)
    return MultitaskTransformer(TransformerConfig(**vars(SHAPE) | config), shape).eval()


def randomize(model: MultitaskTransformer) -> MultitaskTransformer:
    """Every parameter matters; a parser's scores, which are sums of many products, stay moderate."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        torch.nn.init.normal_(parameter, mean, std=0.04 if "heads.trees" in name else 0.3)
    return model


def random_batch(name: str, lengths: list[int], causal: bool, segments=False, seed=0) -> dict[str, Tensor]:
    """A batch as the collator of the kind makes it, with a sequence (or several, one for each choice) of each
    of the `lengths`, which are at least 6."""
    torch.manual_seed(seed)
    batch = sequences(lengths, segments) if name != "choices" else choices(lengths, segments)
    return batch | LABELS[name](batch, torch.tensor(lengths), causal)


def sequences(lengths: list[int], segments: bool) -> dict[str, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": torch.randint(1, VOCABULARY, mask.shape) * mask, "attention_mask": mask}
    return batch | ({"token_type_ids": torch.randint(2, mask.shape) * mask} if segments else {})


def choices(lengths: list[int], segments: bool) -> dict[str, Tensor]:
    """Three sequences for each example, the second of them shorter."""
    flat = sequences([n for length in lengths for n in (length, length - 2, length)], segments)
    return {key: tensor.view(len(lengths), 3, -1) for key, tensor in flat.items()}


def choice_labels(batch: dict, lengths: Tensor, causal: bool) -> dict[str, Tensor]:
    """Every second example has two choices, and a third one that does not count."""
    return {"labels": torch.randint(2, (len(lengths),)), "n_choices": 3 - torch.arange(len(lengths)) % 2}


def words(batch: dict, lengths: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """word_mask, and where [CLS] is: [batch, seq], [batch]. Words begin at every second token or so."""
    shape = batch["input_ids"].shape
    cls = lengths - 1 if causal else torch.zeros_like(lengths)
    word_mask = ((torch.rand(shape) < 0.6) & (batch["attention_mask"] == 1)).long()
    word_mask[torch.arange(len(lengths)), cls] = 0
    word_mask[:, 2:4] = 1  # two at least
    return word_mask, cls


def tag_labels(batch: dict, lengths: Tensor, causal: bool) -> dict[str, Tensor]:
    word_mask, _ = words(batch, lengths, causal)
    tags = torch.randint(N_TAGS, word_mask.shape).masked_fill(word_mask == 0, IGNORE_INDEX)
    return {"word_mask": word_mask, "labels": tags}


def tree_labels(batch: dict, lengths: Tensor, causal: bool) -> dict[str, Tensor]:
    """Each word's head is a word or [CLS]."""
    word_mask, cls = words(batch, lengths, causal)
    heads = torch.full_like(word_mask, IGNORE_INDEX)
    for row, mask in enumerate(word_mask):
        candidates = torch.cat((mask.nonzero().squeeze(1), cls[row : row + 1]))
        drawn = candidates[torch.randint(len(candidates), mask.shape)]
        heads[row] = drawn.where(mask == 1, heads[row])
    relations = torch.randint(N_RELATIONS, word_mask.shape).masked_fill(word_mask == 0, IGNORE_INDEX)
    return {"word_mask": word_mask, "heads": heads, "labels": relations}


def answer_labels(batch: dict, lengths: Tensor, causal: bool) -> dict[str, Tensor]:
    """The context is the second half, after two tokens of a question."""
    _, cls = words(batch, lengths, causal)
    positions = torch.arange(batch["input_ids"].size(1))
    span_mask = ((positions >= 3) & (positions < lengths[:, None] - 1)).long()
    span_mask[torch.arange(len(lengths)), cls] = 1
    return {"span_mask": span_mask, "labels": torch.stack((torch.full_like(lengths, 3), lengths - 2), 1)}


LABELS = {
    "topic": lambda batch, lengths, causal: {"labels": torch.randint(N_CLASSES, (len(lengths),))},
    "score": lambda batch, lengths, causal: {"labels": torch.randn(len(lengths))},
    "tags": tag_labels,
    "answers": answer_labels,
    "choices": choice_labels,
    "trees": tree_labels,
}


def single_examples(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each example as a batch of its own, without padding, and without choices that do not count."""
    examples, width = [], batch["input_ids"].size(-1)
    for row in range(len(batch["input_ids"])):
        longest = int(batch["attention_mask"][row].sum(-1).max())
        example = {key: tensor[row : row + 1] for key, tensor in batch.items()}
        n_choices = int(batch["n_choices"][row]) if "n_choices" in batch else None
        examples.append(
            {
                key: tensor[:, :n_choices, :longest]
                if tensor.dim() == 3
                else tensor[:, :longest]
                if tensor.dim() == 2 and tensor.size(1) == width
                else tensor
                for key, tensor in example.items()
            }
        )
    return examples


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in batch.items() if key != "labels"}
