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
# # 2. Pretraining
#
# Labels are expensive, text is not. *Pretraining* has a model predict the next token of plain text, so that a
# task with few labels can later start from what it has learned. In this chapter, a transformer reads a
# quarter of 20,000 film reviews, without their labels, in two to four minutes. We look at what it reads, how
# its loss falls, what that loss means, and what it writes.
# %%
import os
import sys

if not os.path.exists("quickstart.py"):  # a notebook starts in its own folder, the project is above it
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from checkpoints.files import read_evaluations
from checkpoints.pretrained import load_pretrained
from config.presets import load_preset
from data.corpus import CorpusBatches, load_corpus, next_token_batch
from data.lsa import latent_semantic_analysis
from docs.tutorial.helpers import FOLDER, PRETRAINING, Excerpt, train, training_curve
from pretraining_model import TransformerWithLMHead
from pretraining_sampling import generate
from pretraining_train import PretrainingConfig, lm_losses, pretrain

# %% [markdown]
# ## What the model reads
#
# A *preset* says how to train: which data, which shape, how fast, how long. This one is the quickstart's,
# with fewer steps. A finished training is never repeated; one with another configuration needs another
# `NAME`.

# %%
NAME = "pretrained"
config = load_preset(PretrainingConfig, "quickstart_pretrain", **PRETRAINING)
print(
    f"{config.num_layers} layer of width {config.embed_dim} with {config.num_heads} heads,"
    f" {config.n_steps} steps"
)
corpus = load_corpus(config.dataset_path, config.tokenizer, config.dataset_cache)
print(f"{len(corpus.train.ids):,} tokens to train on, {len(corpus.valid.ids):,} to validate")
print(corpus.tokenizer.decode(corpus.train.ids[:60].tolist()))

# %% [markdown]
# To a language model, a corpus is one long line of tokens, with `[SEP]` between texts. A batch is a few
# blocks of it. Here each row of a batch has 256 tokens, and starts anywhere, also in the middle of a
# sentence.

# %%
batches = CorpusBatches(corpus.train.ids, config.num_max_positions, config.train_batch_size, config.seed)
batch = batches[7]
print({key: tuple(tensor.shape) for key, tensor in batch.items()})
print("row 3 reads:   ", corpus.tokenizer.decode(batch["input_ids"][3, :12].tolist()))
print("and predicts:  ", corpus.tokenizer.decode(batch["labels"][3, :12].tolist()))

# %% [markdown]
# `batches[7]` is what step 7 sees: always the same, because a batch is a function of the seed and of the
# number of the step, and of nothing else. This is why a training that is killed can go on exactly where it
# was. It does not have to remember what a data loader was about to do.
#
# ## Training
#
# `pretrain` does it all: corpus, model, optimizers, loop, evaluation, run folder. Read its source as a table
# of contents. Three things in the preset are unusual, and buy speed: the token embeddings do not start at
# random, but from a latent semantic analysis of the corpus (`initialize_from_counts`), which merely counts
# which words occur in the same texts; Muon, an optimizer for matrices, trains the layer; and the softmax of a
# training step is over the tokens of its batch and 512 others, which stand for all 8,192, so that its loss is
# an estimate of theirs.

# %%
Excerpt(pretrain, lm_losses)

# %%
metrics = train(NAME, pretrain, config)
print({key: round(value, 2) for key, value in metrics.items()})

# %%
steps, losses = training_curve(FOLDER / NAME)
evaluations = read_evaluations(FOLDER / NAME)
vocab_size = len(corpus.tokenizer)

counts = np.bincount(corpus.train.ids, minlength=vocab_size) + 1
unigram = -np.log(counts / counts.sum())[corpus.valid.ids].mean()

figure, axes = plt.subplots()
axes.plot(steps, losses, marker="", linestyle="-", alpha=0.5, label="training (sampled softmax)")
axes.plot(
    [row["step"] for row in evaluations],
    [row["loss"] for row in evaluations],
    linestyle="",
    label="validation",
)
for name, level in (("all tokens alike", math.log(vocab_size)), ("by frequency alone", unigram)):
    axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(name, (config.n_steps, level), ha="right", va="top")
axes.set(xlabel="step", ylabel="loss (nats per token)")
axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.85))
plt.show()

# %% [markdown]
# *A fresh model finds all tokens alike, so the first loss is about the logarithm of the size of the
# vocabulary. Then it learns how frequent each token is: the curve has its knee where knowing that alone would
# end. What lies below, it has learned about context. Training and validation agree: with less than one pass
# over the text, each batch is new, and there is nothing that the model could know by heart.*
#
# ## What a perplexity means
#
# The loss of a token is $-\ln p$, where $p$ is the probability that it was given. The mean over the
# validation text, exponentiated, is the *perplexity*. A model with perplexity 100 is as unsure as one that
# always hesitates between 100 equally likely tokens.
#
# But what is a token? With a smaller vocabulary, a text has more tokens, and each is easier to guess, so the
# perplexity per *token* falls without anything being learned. To compare models with different vocabularies,
# divide the summed loss by the number of *words*:
#
# $$\mathrm{ppl}_\mathrm{word} = \exp\left(\frac{1}{N_\mathrm{words}}\sum_t -\ln p(x_t)\right)$$
#
# Two baselines need no transformer. One finds all tokens equally likely. The other knows how frequent each
# one is, and nothing else.

# %%
n_tokens, n_words = len(corpus.valid.ids) - 1, corpus.valid.n_words  # the first token is not predicted

print(f"{'':28}{'nats per token':>16}{'ppl per token':>16}{'ppl per word':>16}")
rows = [("all tokens equally likely", math.log(vocab_size)), ("by their frequency", unigram)]
rows += [(f"the model after {row['step']} steps", row["loss"]) for row in evaluations]
for name, loss in rows:
    per_word = math.exp(loss * n_tokens / n_words)
    print(f"{name:28}{loss:>16.3f}{math.exp(loss):>16,.0f}{per_word:>16,.0f}")

# %% [markdown]
# Most of the fall of the loss, 2.3 of 3.7 nats, is knowing frequencies. Only what the model gains over the
# second row says that it has learned something about *context*.
#
# The mean hides that some tokens are easy and others hopeless. Token by token, in a sentence that it has not
# seen:

# %%
model, tokenizer = load_pretrained(FOLDER / NAME, "the tutorial's model")
model.eval()


def surprise(text: str) -> tuple[list[str], list[float]]:
    """The tokens of a text, and the loss of each, in nats."""
    ids = [tokenizer.sep_id, *tokenizer.encode(text)]
    batch = next_token_batch(torch.tensor([ids]))
    with torch.no_grad():
        logits = model(batch["input_ids"])[0]
    losses = F.cross_entropy(logits, batch["labels"][0], reduction="none")
    return [tokenizer.vocab[i] for i in ids[1:]], losses.tolist()


tokens, values = surprise("this is one of the worst films i have ever seen, and the penguins are terrible.")
figure, axes = plt.subplots(figsize=(8, 3))
axes.bar(range(len(tokens)), values, color="#0072B2")
axes.axhline(metrics["loss"], color="black", linewidth=0.8, linestyle=":")
axes.annotate("mean of the validation text", (0, metrics["loss"]), va="bottom")
axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right")
axes.set(ylabel="loss (nats)")
plt.show()

# %% [markdown]
# *Low bars are tokens that were expected. Inside of "one of the" and "ever seen", the last words get about
# half of the probability (0.7 nats). `pen` costs the most: penguins occur 46 times in six million tokens, and
# nothing here leads up to them.*
#
# ## What it writes
#
# Sampling from the predictions, token by token, gives text. Not good text: this model is small, and has read
# for minutes. But compare it with what a model with random weights writes.

# %%


def write(model: TransformerWithLMHead, prompt: str, n_tokens: int = 40) -> str:
    """A continuation, sampled from the likeliest tokens that together have 90 % of the probability."""
    input_ids = torch.tensor([[tokenizer.sep_id, *tokenizer.encode(prompt)]])
    generator = torch.Generator().manual_seed(len(prompt))
    tokens = generate(model, input_ids, n_tokens, temperature=0.8, top_p=0.9, generator=generator)
    return f"{prompt} … {tokenizer.decode(int(token) for token in tokens)}"


torch.manual_seed(0)
untrained = TransformerWithLMHead(model.config)
for prompt in ("This film is", "The worst part", "I would recommend"):
    print("random: ", write(untrained, prompt))
    print("trained:", write(model, prompt), "\n")

# %% [markdown]
# ## What it knows about words
#
# What can be transferred to other tasks is not the text that a model writes, but what its weights have come
# to hold. A first look: the nearest neighbors of some words, by the cosine of their embeddings, where they
# started, at the latent semantic analysis, and after the 400 steps.

# %%
torch.manual_seed(0)
start = torch.randn_like(model.transformer.token_embeddings.weight)
embeddings = {
    "start": latent_semantic_analysis(start, corpus.train.ids, config.num_max_positions),
    "after 400 steps": model.transformer.token_embeddings.weight.detach(),
}


def neighbors(word: str, vectors: torch.Tensor, n: int = 7) -> list[str]:
    """The tokens with the nearest embeddings, word pieces left out."""
    similarity = F.normalize(vectors, dim=-1) @ F.normalize(vectors[tokenizer.vocab.index(word)], dim=-1)
    names = [tokenizer.vocab[i] for i in similarity.argsort(descending=True)]
    return [name for name in names if name.isalpha() and name != word][:n]


for word in ("terrible", "wonderful", "actor", "he"):
    for name, vectors in embeddings.items():
        print(f"{word:10} {name:16}", ", ".join(neighbors(word, vectors)))

# %% [markdown]
# The analysis puts words together that occur in the same reviews; language modeling moves them towards those
# that can stand in the same place. The clearest case is *he*, which starts beside *his* and *him* and ends
# beside other pronouns that can begin a sentence. The other three began closer to that.
#
# ## Exercises
#
# The answers are in [answers.md](answers.md). For each, give `NAME` in the cell of the configuration the name
# that the exercise says. When the source changes, restart the kernel, run the chapter again, and change the
# source back.
#
# 1. `NAME = "random_embeddings"`. In `initialize_from_counts` (`pretraining_train.py`), remove the assignment
#    to `embeddings.data`, so that nothing is counted before. How far apart are the two models after 100
#    steps, and after 400? Look at the neighbors, too (`start` still shows counted embeddings): what has
#    language modeling alone put together?
# 2. The output bias, if there is one, starts at the tokens' log frequencies. What should the first loss be
#    then? Look, with `NAME = "output_bias"` and `output_bias=True` in what `load_preset` gets. How much of
#    the head start is left at the end? Then remove the assignment to `output_bias.data` in
#    `initialize_from_counts`, so that the bias starts at zero, and set `NAME = "zero_bias"`. What is such a
#    bias worth?
# 3. `NAME = "same_cuts"`. `data/corpus.py` cuts the corpus into blocks from another place in each epoch. In
#    `CorpusBatches.__getitem__`, set `start = 0`. Is the loss different after 400 steps? When would you see a
#    difference?
