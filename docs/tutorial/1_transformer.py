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
# # 1. A transformer from the inside
#
# A language model reads a text and says, at each place in it, which token will come next. This chapter
# follows one sentence through ours, from characters to the loss, and opens each part on the way: tokens,
# embeddings, attention, the mask, the residual stream. The model is the one that the training scripts use;
# the few functions that are defined here only look inside it. The code in boxes is read from its file when
# the notebook runs.
#
# You need Python and some linear algebra; no GPU, and no network. All cells together take less than a minute.
# `make tutorial` sets up `.venv` with all that the chapters need, and executes them where they are. To change
# cells, open this file in an editor that knows notebooks, with the Python of `.venv`, or install `jupyterlab`
# there.
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

from config.model import TransformerConfig
from data.corpus import next_token_batch
from data.sources import open_source
from data.splits import split_rows
from data.wordpiece import train_tokenizer
from docs.tutorial.helpers import SHORT, Excerpt, heat_map
from pretraining_attention import SelfAttention, expand_mask
from pretraining_loss import chunked_cross_entropy
from pretraining_model import EmptySlot, LanguageModel, Transformer, TransformerLayer, TransformerWithLMHead

# %% [markdown]
# ## Tokens
#
# A model computes with numbers, so a text is first cut into *tokens* from a fixed vocabulary, and each token
# is replaced by its number in it. We could use words, but there are too many of them, and tomorrow's text has
# new ones. We could use characters, but then a review has a thousand steps. *WordPiece* is in between:
# frequent words are one token, rare ones are spelled from pieces. Which pieces, it learns from a corpus. Here
# it reads a thousand film reviews and makes a vocabulary of 2,000.

# %%
reviews = [row["text"] for row in split_rows(open_source("imdb"))["train"]][: 100 if SHORT else 1000]
tokenizer = train_tokenizer(lambda: iter(reviews), vocab_size=2000, lowercase=True)

text = "This film is unwatchable, and that's a compliment."
ids = tokenizer.encode(text)
pieces = [tokenizer.vocab[i] for i in ids]
print(pieces)
print(ids)
print(tokenizer.decode(ids))

# %% [markdown]
# A piece that starts with `##` continues the word before it. *Unwatchable* is rare, so it is spelled out, and
# the model has to learn what the pieces mean together. Case and spacing are lost: this vocabulary has only
# small letters, and punctuation always stands alone. A handful of tokens are not text: `[SEP]` stands between
# texts, `[CLS]` at the place whose state a classifier will read, `[PAD]` fills up short texts, `[UNK]` stands
# for a word with a character that the vocabulary lacks.
#
# Each token costs a step of computation, and each entry of the vocabulary a row of weights. A larger
# vocabulary needs fewer tokens for a text:

# %%
n_words = sum(len(review.split()) for review in reviews)
n_tokens = sum(len(ids) for ids in tokenizer.encode_batch(reviews))
print(f"{n_tokens / n_words:.2f} tokens per word with a vocabulary of {len(tokenizer):,}")

# %% [markdown]
# ## The model, from outside
#
# A model is made from its shape. Ours is tiny: two layers, and states of 64 numbers for each token.

# %%
config = TransformerConfig(
    num_embeddings=len(tokenizer),
    num_max_positions=64,
    embed_dim=64,
    hidden_dim=256,
    num_layers=2,
    num_heads=4,
    dropout=0.0,
    attention_dropout=0.0,
)
torch.manual_seed(0)
model = TransformerWithLMHead(config).eval()
input_ids = torch.tensor([ids])

logits = model(input_ids)
print("input_ids", tuple(input_ids.shape), "→ logits", tuple(logits.shape))
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

# %% [markdown]
# For each position of the text there is a score, a *logit*, for each token of the vocabulary. A softmax turns
# the logits into probabilities of the next token. Nothing is trained yet, so they are all about the same.
#
# Between the two ends, there are three stages: embeddings, layers, and a head. For now, skip what says `past`
# (generation, token by token), `query_positions` (classification) and `token_type_ids` (BERT).

# %%
Excerpt(Transformer.forward, Transformer.encode, LanguageModel.logits)

# %% [markdown]
# ## Embeddings
#
# The first stage looks up two vectors for each token and adds them: one says *which* token it is, the other
# *where* it is. Attention, the next stage, treats what it reads as a set. Without the second vector, a model
# that sees the whole text could not tell `dog bites man` from `man bites dog`. (What ours could still tell is
# an exercise.)

# %%
transformer = model.transformer
embedded = transformer.embed(input_ids)
by_hand = transformer.token_embeddings.weight[ids] + transformer.position_embeddings.weight[: len(ids)]
print(tuple(embedded.shape), torch.equal(embedded[0], by_hand))

# %% [markdown]
# ## Attention
#
# So far each token knows itself and its place. In *attention*, it reads others. Each token makes three
# vectors from its state: a *query* (what am I looking for?), a *key* (what do I have?) and a *value* (what do
# I tell those who look here?). The product of a query and a key is a score; a softmax over the keys makes
# weights of the scores; and what a token reads is the weighted mean of the values:
#
# $$\mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d}}\right)V$$
#
# $d$ is the width of a query. A sum of $d$ products with mean 0 and variance 1 has the variance $d$, so the
# square root keeps the scores at a size for which the softmax is neither flat nor all on one key. *Heads* do
# this several times side by side, each with narrower queries, keys and values of its own that it makes from
# the whole state, so that a token can look at several places for several reasons.

# %%
Excerpt(SelfAttention)

# %% [markdown]
# The class hands queries, keys and values to PyTorch's `scaled_dot_product_attention`, which never writes the
# weights down, and is fast for that reason. To see the weights, we compute them from the formula, and check
# that they give what the class gives.

# %%


def attention_weights(attention: SelfAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """softmax(QKᵀ / √d), [batch, heads, query, key]."""
    query, key, _ = attention.query_key_value(hidden_states).chunk(3, dim=-1)
    query, key = (states.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for states in (query, key))
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    if attention.causal:  # see below, "What the mask does"
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    return scores.softmax(-1)


layer = transformer.layers[0]
normed = layer.attention_norm(embedded)
weights = attention_weights(layer.attention, normed)
value = layer.attention.query_key_value(normed).chunk(3, dim=-1)[2]
value = value.unflatten(-1, (config.num_heads, -1)).transpose(1, 2)
attended = layer.attention.projection((weights @ value).transpose(1, 2).flatten(2))
print(f"largest difference: {(attended - layer.attention(normed)).abs().max():.1e}")

# %% [markdown]
# ### Attention that has learned something
#
# Random weights attend to everything alike. To see attention *do* something, we train a model with one layer
# and one head on sequences in which each token is the same as the one three places before it. To predict the
# next token, it is enough to look two places back, and to copy. The other chapters train with the project's
# `fit`; here is the loop written out.

# %%
PERIOD, N_SYMBOLS = 3, 30
copying = TransformerWithLMHead(
    TransformerConfig(
        num_embeddings=N_SYMBOLS, num_max_positions=24, embed_dim=64, hidden_dim=64,
        num_layers=1, num_heads=1, dropout=0.0, attention_dropout=0.0,
    )
)  # fmt: skip
optimizer = torch.optim.AdamW(copying.parameters(), lr=3e-3)
losses = []
for _ in range(20 if SHORT else 400):
    sequences = torch.randint(N_SYMBOLS, (64, PERIOD)).repeat(1, 8)
    batch = next_token_batch(sequences)
    loss = copying(**batch) / batch["labels"].numel()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f}; a guess among {N_SYMBOLS} has {math.log(N_SYMBOLS):.2f}")

# %% [markdown]
# The loss cannot reach 0. The second and the third token of each sequence are random, so two of the 23
# predictions are guesses, and the best loss is 2 · ln 30 / 23 = 0.30. What the head attends to, for one
# sequence:

# %%
copying.eval()
sequence = torch.tensor([[7, 21, 4] * 4])
states = copying.transformer.embed(sequence)
first = copying.transformer.layers[0]
learned = attention_weights(first.attention, first.attention_norm(states))[0, 0].detach()

names = [f"{place}: {token}" for place, token in enumerate(sequence[0].tolist())]
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8))
axes[0].plot(losses, marker="")
axes[0].axhline(2 * math.log(N_SYMBOLS) / 23, color="black", linewidth=0.8, linestyle=":")
axes[0].set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
heat_map(axes[1], learned, names, names)
axes[1].set(xlabel="key: the token that is read", ylabel="query: the token that reads")
plt.show()

# %% [markdown]
# *Left: the loss of the copying model; the dotted line is the best possible one. Right: dark cells are large
# weights. From the third row on, each token reads the right answer where it has stood before: two places
# back, or five, or eight. The first two rows have nothing to copy yet. The upper right
# half is empty: no token reads its future.*
#
# ## What the mask does
#
# That upper half is the *mask*. A model that could read the next token would have nothing left to predict. So
# scores of later keys become $-\infty$, and their weights 0. What follows from this can be tested from
# outside: if we change a token, no prediction before it may change.

# %%


def change_at_each_position(causal: bool, changed: int) -> np.ndarray:
    """How far the logits of each position move when the token at `changed` becomes another one."""
    torch.manual_seed(1)
    shape = {**vars(config), "causal": causal}
    either = TransformerWithLMHead(TransformerConfig(**shape)).eval()
    other_ids = input_ids.clone()
    other_ids[0, changed] = (other_ids[0, changed] + 1) % len(tokenizer)
    with torch.no_grad():
        return (either(input_ids) - either(other_ids)).abs().amax(-1)[0].numpy()


changed = 6
causal, bidirectional = (change_at_each_position(is_causal, changed) for is_causal in (True, False))
print(
    "before the changed token, exactly the same:",
    (causal[:changed] == 0).all(),
    (bidirectional[:changed] == 0).all(),
)

figure, axes = plt.subplots(figsize=(7, 3.2))
positions = np.arange(len(ids))
axes.bar(positions - 0.2, causal, 0.4, label="causal", color="#0072B2")
axes.bar(positions + 0.2, bidirectional, 0.4, label="bidirectional", color="#E69F00")
axes.set(yscale="log", ylabel="largest change of a logit")
axes.set_xticks(positions, pieces, rotation=60, ha="right")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# *`##able` was replaced by another token. Where a blue bar is missing, nothing changed at all: in a causal
# model, predictions before the replaced token stay as they were. In a bidirectional one (orange), all of them
# change. Note the logarithmic scale.*
#
# This one property is why a causal model can learn from all positions of a text at once: one pass makes as
# many predictions as there are tokens, and none of them can cheat. BERT's kind of model, which sees both
# sides, has to hide the tokens that it is asked about, and learns from 15 % of them (`--mlm`).
#
# The second mask hides *padding*. Texts in a batch have different lengths, and the shorter ones are filled up
# with tokens that mean nothing. `attention_mask` is 1 for real tokens and 0 for padding, and no real token
# may read the latter.

# %%
mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.8))
for either, causal in zip(axes, (True, False), strict=True):
    allowed = expand_mask(mask, causal)[0, 0].expand(6, 6).int()
    heat_map(either, allowed, [str(i) for i in range(6)], [str(i) for i in range(6)])
    either.set(title="causal" if causal else "bidirectional", xlabel="key", ylabel="query")
plt.show()

# %% [markdown]
# *Which keys each query may read (dark) in a text of four tokens, with two of padding before it. Rows 0 and 1
# are padding themselves, and what they compute is never used. In the causal model they could read nothing at
# all, and a softmax over nothing is NaN, so each may read itself.*
#
# ## A layer, and the residual stream
#
# A layer is attention, in which tokens read each other, and a small network, in which each token works on
# what it has read. Neither replaces a token's state. Both *add* to it: the state is a stream that runs from
# the embedding to the head, and each part reads from it and writes to it. Before a part reads, *LayerNorm*
# brings the state to mean 0 and variance 1, so that parts need not care how large the stream has grown. (That
# is GPT-2's order. BERT has LayerNorm after each sum; these are the two halves of `forward` below.) A part
# that writes nothing changes nothing, which matters for what can be plugged in later: an adapter
# (`layers/adapters.py`) or a conditional layer (`layers/conditional.py`) starts by changing nothing, or
# almost nothing, in a model that already works.

# %%
Excerpt(TransformerLayer.forward, EmptySlot)

# %% [markdown]
# `after_attention` and `after_feed_forward` are the places where adapters go. They are empty now. We can plug
# something in by hand: a module that says how much each part writes, relative to what is in the stream.

# %%


class Meter(EmptySlot):
    """Writes down the relative size of what passes."""

    def forward(self, output, residual, norm):
        self.size = (output.norm(dim=-1) / residual.norm(dim=-1)).mean().item()
        return output


for layer in transformer.layers:
    layer.after_attention, layer.after_feed_forward = Meter(), Meter()
measured = model(input_ids)
for number, layer in enumerate(transformer.layers):
    print(f"layer {number}: attention writes {layer.after_attention.size:.2f},", end=" ")
    print(f"feed-forward {layer.after_feed_forward.size:.2f} of the stream")
    layer.after_attention, layer.after_feed_forward = EmptySlot(), EmptySlot()
print("and the logits are the same:", torch.equal(measured, logits))

# %% [markdown]
# ## The loss
#
# The label of each position is the token that follows. The loss is the *cross-entropy*: minus the logarithm
# of the probability that the model gave to the right token. With the natural logarithm, its unit is the
# *nat*: 0.69 nats (ln 2) are one bit. The model returns the sum over all positions, and we divide. Positions
# with the label −100 do not count; that is how padding, and whatever else should not be learned, is left out.

# %%
batch = next_token_batch(torch.tensor([ids]))
print("reads   ", [tokenizer.vocab[i] for i in batch["input_ids"][0]])
print("predicts", [tokenizer.vocab[i] for i in batch["labels"][0]])

n_labels = batch["labels"].numel()
loss = model(**batch) / n_labels
probabilities = model(batch["input_ids"]).softmax(-1)
right = probabilities[0, torch.arange(n_labels), batch["labels"][0]]
print(f"loss {loss:.4f}, by hand {-right.log().mean():.4f}")
print(f"ln {len(tokenizer)} is {math.log(len(tokenizer)):.4f}")

# %% [markdown]
# The loss of an untrained model is about the logarithm of the size of its vocabulary, because it finds all
# tokens about equally likely. If the first loss of a training that you start is far from that, something is
# wrong. Its exponential is the *perplexity*: the number of equally likely tokens that would leave it as
# unsure.
#
# The head of a language model is its largest matrix product: each position times each token of the
# vocabulary. The logits of one batch can take more memory than all the rest of the model. So the loss is
# computed for `CHUNK_SIZE` positions at a time, by a function of PyTorch that never has all logits at once;
# the rest of the code is about precision.

# %%
Excerpt(chunked_cross_entropy)

# %% [markdown]
# The head has no weights of its own. It uses the token embeddings again, transposed: the logit of a token is
# the product of the state with that token's embedding. Nobody needs to know the next word of a film review.
# But a model that is good at it has learned something about words and what they do to each other, and *that*
# is worth transferring. How much it learns in a few minutes is the subject of [chapter
# 2](2_pretraining.ipynb).
#
# ## Exercises
#
# Each changes the source a little. Change it, run the cells again (after *Restart kernel*), and change it
# back. The answers are in [answers.md](answers.md).
#
# 1. In `SelfAttention.__init__`, set `self.causal = False` and train the copying model again. Its loss falls
#    to 0, which should be impossible. Why is this bad news?
# 2. Remove `self.position_embeddings(positions)` from `Transformer.embed`. Can the copying model still learn?
#    It can still tell something about order; what, and through what?
# 3. In `layer_norm`, return `nn.Identity()`. What do the two layers of this chapter write to the stream now,
#    compared with before, and what would that mean for a model with 48 layers?
