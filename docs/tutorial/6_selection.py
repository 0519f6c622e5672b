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
# # 6. Which task should come first?
#
# You have 200 labels. Fine-tuning on some other task first, one with more labels, may help. But which one?
# With five candidates you can try them all. With a thousand, you cannot. This chapter plots what fine-tuning
# does to the embeddings of texts, replaces it with a matrix, ranks five tasks with such matrices, and then
# does try them all, to see whether the ranking was right.
#
# It takes four and a half minutes on two cores. It starts from chapter 2's model, and trains it first if it
# is not there.
# %%
import os
import sys

if not os.path.exists("quickstart.py"):  # a notebook starts in its own folder, the project is above it
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import matplotlib.pyplot as plt
import numpy as np
import torch

from checkpoints.encoders import open_encoder
from config.finetuning import FinetuningConfig
from config.flags import replace
from config.presets import find_preset, read_preset
from config.selection import RankConfig, SelectionConfig
from docs.tutorial.helpers import (
    COLORS,
    FOLDER,
    MARKERS,
    SHORT,
    SMALL,
    Excerpt,
    gains,
    language_model,
    train,
)
from finetuning_train import finetune
from selection.pool import open_pool
from selection.quality import regret
from selection.sources import FinetunedSource
from selection_model import LinearMap, TextEncoder
from selection_rank import rank
from selection_scores import log_evidence, logme
from selection_train import train_sources
from tasks.embedding import embed
from tasks.review_tasks import write_review_tasks

# %% [markdown]
# ## What fine-tuning does to a text
#
# The target: judging from one sentence, does a critic like the film? We have 200 labels. Five tasks could
# come first, all from chapter 5, with 1,500 labels each: `review_sentiment` (did the viewer like the film?),
# `rating` (how many points did the viewer give?), `one_liner` (critic or viewer?), `order` (which of two
# sentences came first?), and `punctuation` (which mark ended the sentence?). `train_sources` fine-tunes the
# pretrained model on each, and then learns a *map* for each, of which more in a moment.

# %%
SOURCES = ("review_sentiment", "rating", "one_liner", "order", "punctuation")[: 2 if SHORT else 5]
TARGET = "sentence_sentiment"
tasks, pool_folder = FOLDER / "tasks", FOLDER / "pool"
if not tasks.exists():
    write_review_tasks(tasks)
training = read_preset(find_preset("selection_quickstart")) | {"model_checkpoint": str(language_model())}
training |= SMALL if SHORT else {}
finished = train_sources(
    SelectionConfig(
        sources=",".join(str(tasks / f"{name}.json") for name in SOURCES),
        output_dir=str(pool_folder),
        training=training,
        n_texts=50 if SHORT else 10_000,
    )
)

# %% [markdown]
# We take the ends of reviews that the source `review_sentiment` was not trained on, and embed each as the
# mean of its tokens' states: by the pretrained model, and by the fine-tuned one. To draw points of 256
# dimensions on paper, we keep the two directions in which the fine-tuned embeddings vary most (their first
# two principal components), and use the same two for all three pictures.

# %%
pool = open_pool(str(pool_folder))
source = next(source for source in pool.sources if source.name == "review_sentiment")
run = FinetunedSource.open(source.run_folder, "dataset_cache")
texts = run.valid_texts(at_most=500)
labels = np.asarray(texts.examples.labels)[texts.chosen]


def embeddings_by(encoder: TextEncoder) -> torch.Tensor:
    """The held-out texts, [texts, embed]."""
    return embed(encoder.eval(), texts, batch_size=64, to_device=lambda batch: batch)


before = embeddings_by(open_encoder(pool.base, run.pooling))
after = embeddings_by(TextEncoder(source.model().transformer, run.pooling))
with torch.no_grad():
    approximated = source.map(before)

centre = after.mean(0)
_, _, directions = torch.linalg.svd(after - centre, full_matrices=False)
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharex=True, sharey=True)
clouds = {"before": before, "after": after, "approximated": approximated}
for axes, (name, points) in zip(panels, clouds.items(), strict=True):
    flat = (points - centre) @ directions[:2].T
    for label, (color, marker) in enumerate(zip(("#88BBDD", COLORS[1]), MARKERS[:2], strict=False)):
        chosen = flat[labels == label]
        text = run.task.kind.label_names[label]
        axes.scatter(*chosen.T, s=9, alpha=0.6, color=color, marker=marker)
        axes.scatter(
            *chosen.mean(0), s=90, color=color, marker=marker, edgecolor="black", label=text, zorder=3
        )
    score = f"{logme(points.numpy(), labels):.3f}".replace("-", "−")
    axes.set(title=f"{name}: LogME {score}", xlabel="component 1")
panels[0].set(ylabel="component 2")
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# *The ends of 500 reviews that the source was not trained on, as points, and the mean of each label, large.
# Left: where the pretrained model puts them. Middle: where the fine-tuned one does. Right: where the map of
# the next section puts them. The axes are those of the picture in the middle, so the others may spread in
# directions that are not shown. Fine-tuning moves negative reviews to the left and positive ones to the
# right, though they still overlap widely: the model gets 68 % of these right. The map achieves all of the
# gain in LogME, a score that is explained below, is higher the better the labels can be told apart, and is
# computed from all 256 dimensions.*
#
# ## Fine-tuning as a matrix
#
# Once the map is learned, the third panel no longer needs the fine-tuned model. It is the first panel, moved
# by a linear map that goes from each text's embedding before the fine-tuning to the one after it. The map was
# learned from the source's training texts; the texts in the picture only chose its best epoch, and the
# model's. Schulte et al. (2024) call it an *Embedding Space Map*.

# %%
Excerpt(LinearMap)

# %% [markdown]
# Its 256 × 257 numbers stand in for a model of 2.7 million parameters. For BERT, the map takes 2.4 MB and the
# model 440. So maps of a thousand tasks fit on a laptop, and any text can be sent through all of them after
# one pass through one model.
#
# *LogME* (You et al. 2021) says how well labels $y$ can be predicted from embeddings $F$. For classes, $y$ is
# 1 for the texts of one class and 0 for all others, and the scores of the classes are averaged. The model is
# linear, with Gaussian weights $w$ and Gaussian noise. Its *evidence* is the probability that it gives to the
# labels, averaged over all weights, and the precisions (inverse variances) $\alpha$ of the weights and
# $\beta$ of the noise are those that make it largest:
#
# $$\mathrm{LogME} = \frac{1}{n} \max_{\alpha, \beta} \log \int p(y \mid F w, \beta)\, p(w \mid \alpha)\, dw$$
#
# Averaging over all $w$ is what keeps it honest: embeddings flexible enough to fit any labels must spread
# their probability over all of those. With 200 texts of two equally frequent labels, embeddings that say
# nothing, but have a mean in common as those of a model do, score about −0.74. The integral has a closed
# form; `log_evidence` alternates between fitting the weights and estimating $\alpha$ and $\beta$ anew until
# their ratio settles.

# %%
Excerpt(logme, log_evidence)

# %% [markdown]
# ## A ranking
#
# For the target, the 200 sentences are embedded once, sent through each map, and LogME turns the result and
# the target's labels into a score (`esm-logme`). Next to it, three other ways: LogME of the fine-tuned models
# themselves, which takes a pass through each (`logme`); how similar the texts of the tasks are (`textemb`, Vu
# et al. 2020); and chance.

# %%
few = {"train_subset_size": 40 if SHORT else 200}
METHODS = ("esm-logme", "logme", "textemb", "random")
rows = rank(
    RankConfig(
        target=str(tasks / f"{TARGET}.json"),
        pool=str(pool_folder),
        methods=",".join(METHODS),
        training=training | few,
        output_dir=str(FOLDER / "ranking"),
        overwrite=True,
    )
)
print(f"{'':18}" + "".join(f"{method:>14}" for method in METHODS))
for row in rows:
    ranks = f"   rank by maps {row['esm-logme low']} to {row['esm-logme high']}"
    print(f"{row['source']:18}" + "".join(f"{row[method]:>14.3f}" for method in METHODS) + ranks)

# %% [markdown]
# ESM-LogME scores a source by its map (ESM: Embedding Space Map). On the right is where nine tenths of the
# ranks lie when the 200 texts are drawn again and again: the first two places are settled, the last three are
# not.
#
# ## Was it right?
#
# Now we do what the ranking is meant to spare us: fine-tune on the target from each source, and from the
# pretrained model, three seeds each. A seed also draws its own 200 labels; the ranking saw those of the
# first.

# %%
recipe = training | few | {"n_epochs": 12, "restarts": 3}
start = FinetuningConfig(**recipe, dataset_path=str(tasks / f"{TARGET}.json"))
truth = {"none": train("target_from_none", finetune, start)}
for source in pool.sources:
    config = replace(start, model_checkpoint=str(source.run_folder))
    truth[source.name] = train(f"target_from_{source.name}", finetune, config)
for name, metrics in truth.items():
    accuracy = f"{metrics['valid_accuracy']:.3f} ± {metrics['valid_accuracy_std']:.3f}"
    print(f"{name:18}{accuracy}   minus none: {gains(metrics, truth['none'])}")

figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for axes, method in zip(panels, METHODS, strict=False):
    for row, color, marker in zip(rows, COLORS, MARKERS, strict=False):
        metrics = truth[row["source"]]
        axes.errorbar(
            row[method],
            metrics["valid_accuracy"],
            metrics["valid_accuracy_std"],
            capsize=3,
            color=color,
            marker=marker,
            markersize=6,
            linestyle="none",
            label=row["source"],
        )
    middle, deviation = truth["none"]["valid_accuracy"], truth["none"]["valid_accuracy_std"]
    axes.axhline(middle, color="black", linewidth=0.8, linestyle=":", label="no source")
    axes.axhspan(middle - deviation, middle + deviation, color="black", alpha=0.08)
    axes.set(xlabel=method)
    axes.locator_params(axis="x", nbins=4)
panels[0].set(ylabel="accuracy on the target")
figure.legend(*panels[0].get_legend_handles_labels(), ncols=6, frameon=False, loc="outside upper center")
plt.show()

# %% [markdown]
# *Held-out accuracy on the target, at the best of 12 epochs, from each source against three scores: mean and
# deviation of three seeds. The dotted line and the gray band are the same for no source. With a good score,
# the points rise from left to right.*
#
# `review_sentiment` gains 5.1 points, and `rating`, which asks almost the same thing, 1.7; `order` loses 3.5
# and `one_liner` 1.8: each of these with all three seeds. `punctuation` is level on one seed and behind on
# two, by a point on average. The bars leave out two things: each source was trained only once, and 500
# held-out sentences alone are uncertain by about two points.
#
# The maps put the best source first. The models themselves, which cost as many passes as there are sources,
# put it second. The texts alone are misled here: half of the texts of `one_liner` come from the same
# collection of critics' sentences as the target, but its labels say who wrote them, not what they thought of
# the film.
#
# How good is a ranking? *Regret* at $k$ is the accuracy that you lose, in percent of what the best source
# gives, if you try only the $k$ sources ranked first and keep the best of them.

# %%
Excerpt(regret)

# %%
performance = [truth[row["source"]]["valid_accuracy"] for row in rows]
for method in METHODS:
    ranks = [row[f"{method} rank"] for row in rows]
    first, second = (regret(ranks, performance, k) for k in (1, 2))
    print(f"{method:12}regret@1 {first:5.1f} %   regret@2 {second:5.1f} %")

# %% [markdown]
# With two tries, every method finds the best source here. The row `random` is a single draw; guessing loses
# 7.3 % on average with one try, and 12.5 % is the most that one can lose. With five sources and one target,
# all of this is an anecdote. The study in [selection.md](../selection.md), with 26 sources and seven targets,
# finds a different order: with one try, the models themselves lose 2.5 %, the similarity of the texts 4.8 %,
# and maps trained like those used here 15.8 %, all with wide intervals. What the maps save is time and disk
# space; the page has those costs, too.
#
# ## Exercises
#
# The answers are in [answers.md](answers.md). Run the whole chapter once with the source as it is. After each
# change of the source, restart the kernel and run the cells again (finished trainings are only read); change
# the source back before the next exercise.
#
# 1. Evidence has a fit and a price. In `log_evidence` (`selection_scores.py`), leave the price of a flexible
#    model, `log_determinants`, out of `fit`. Which source is first, and how far apart are the scores now?
# 2. `fit_ridge` (`selection_model.py`) computes a map in closed form and shrinks it towards the identity; the
#    ranking used `esm="linear"`, which starts from a random matrix and is trained by gradient descent. Make a
#    pool in another folder, with `esm="ridge"` in `SelectionConfig` (it fine-tunes the sources again), and
#    rank with it. How much of the movement do the maps explain, `finished["esm/order"]["explained"]`? Then
#    have it shrink towards zero: begin `fit_ridge` with `tuned = tuned + base`, so that the update is the map
#    itself, leave out `+ torch.eye(base.size(1))`, and make one more pool. What was the identity worth?
# 3. Whoever tries sources also knows what no source gives, and falls back on it. Have `regret`
#    (`selection/quality.py`) compare `best_of_top` with `without_transfer`, too, as `best` is, and pass it
#    `truth["none"]["valid_accuracy"]` in the cell above. Whose regret changes? Could LogME have told which
#    sources are worse than none? Compare their scores with that of the pretrained model itself:
#
# ```python
# from checkpoints.pretrained import open_checkpoint
# from config.finetuning import with_task
# from selection.pool import Space
# from selection.target import Target
#
# base = open_checkpoint(str(language_model()), "the model")
# target = Target.open(with_task(replace(start, restarts=1)), base, 0)
# print(logme(target.embed_base(Space("mean")), target.labels))
# ```
