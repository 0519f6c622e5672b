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
# # 5. Many tasks at once
#
# Instead of one model per task, or one addition per task, a single model can learn all tasks at the same
# time. What the tasks have in common is learned once, from all of their examples. But they also pull the same
# weights in different directions. CA-MTL (Pilault et al. 2021) lets a small vector per task bend the shared
# model a little. This chapter trains both kinds, looks at what the vector does, and at a way to choose which
# task a step should be about.
#
# It takes four and a half minutes on two cores. It starts from chapter 2's model, and trains it first if it
# is not there.
# %%
import os
import sys

if not os.path.exists("quickstart.py"):  # a notebook starts in its own folder, the project is above it
    os.chdir("../..")
sys.path.insert(0, os.getcwd())

import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from checkpoints.files import read_evaluations
from config.multitask import MultitaskConfig
from config.presets import load_preset
from docs.tutorial.helpers import (
    COLORS,
    FOLDER,
    MARKERS,
    SHORT,
    STYLES,
    Excerpt,
    heat_map,
    language_model,
    train,
)
from finetuning_predict import Predictor
from layers.conditional import FiLM
from multitask_train import train_multitask
from tasks.review_tasks import TASKS, write_review_tasks
from tasks.sampling import uncertainty_scores

# %% [markdown]
# ## Eight tasks of the same texts
#
# The film reviews that chapter 2 read can be made into more than one task. People labeled three of them; five
# ask for something that the texts themselves say. Each has 1,500 examples to train on and 500 held out
# (*rating*: 413), so the choice of the held-out examples alone gives an accuracy a deviation of about two
# points, and a correlation one of three to five. *pearson* is the correlation of predicted and true numbers,
# *f1* the harmonic mean of precision and recall of the names that are found, and the *average* below is the
# mean of these and of the accuracies. Guessing gives 0.5 in four of the classifications, a third in
# *punctuation*, and 0 in the regressions.

# %%
tasks = FOLDER / "tasks"
if not tasks.exists():
    write_review_tasks(tasks)
for name, task in TASKS.items():
    with open(tasks / name / "train.jsonl", encoding="utf-8") as file:
        example = json.loads(next(file))
    text = example.get("text") or " ".join(example["tokens"])
    texts = f"{text[:60]} …" + (f" + {example['text_pair'][:30]} …" if "text_pair" in example else "")
    print(f"{name} ({task.metric}): {task.make.__doc__}")
    print(f"    {example.get('label', 'tags')!s:.6}: {texts}")

# %% [markdown]
# ## One model, with and without a condition
#
# Each optimizer step has rows of one task, drawn at random (`--sampling uniform`). All tasks share the
# transformer, and each has a head of its own. That is plain multi-task learning. With conditioning, each task
# has a learned vector, a linear layer turns it into a vector z, and from z come scales and shifts for the
# embeddings, the attention scores, the LayerNorms and a bottleneck (the figure in
# [multitask.md](../multitask.md)). All scales and shifts come from one small module:

# %%
Excerpt(FiLM)

# %% [markdown]
# γ and β start at zero, so that at first all tasks see the pretrained model.

# %%
pretrained = language_model()
options = {
    "tasks": ",".join(str(tasks / f"{name}.json") for name in TASKS),
    "model_checkpoint": str(pretrained),
    "n_steps": 500,
}
plain = load_preset(MultitaskConfig, "multitask_quickstart", conditioning="none", **options)
conditional = load_preset(MultitaskConfig, "multitask_quickstart", **options)
results = {
    "plain": train("plain", train_multitask, plain),
    "CA-MTL": train("ca_mtl", train_multitask, conditional),
}


def print_scores() -> None:
    """The main metric of each task, their average, and the number of weights, of all systems so far."""
    print(f"{'':20}" + "".join(f"{name:>12}" for name in results))
    for name, task in TASKS.items():
        cells = (metrics["tasks"][name][f"valid_{task.metric}"] for metrics in results.values())
        print(f"{name:20}" + "".join(f"{cell:>12.3f}" for cell in cells))
    print(f"{'average':20}" + "".join(f"{metrics['average']:>12.3f}" for metrics in results.values()))
    print(f"{'parameters':20}" + "".join(f"{metrics['n_parameters']:>12,}" for metrics in results.values()))


print_scores()

# %% [markdown]
# With 29 % more parameters, CA-MTL is level on average: ahead on two tasks, level on two, behind on four. The
# choice of held-out examples alone makes a difference of about a point, and this is one seed of a short
# training. In the study of ten other tasks in [multitask.md](../multitask.md), CA-MTL gains 0.4 to 0.9 points
# over plain multi-task learning with a small model and `sequential` sampling, 0.3 to 2.7 with `uniform`
# (three seeds each). But with `sequential`, a control whose tasks all have the same z gains as much (exercise
# 1), so the gain comes from weights that all tasks share, and a model per task is better still. `make
# multitask` makes that comparison for the eight tasks here, with longer trainings.
#
# ## What the vector does
#
# If z matters, the model must get worse when it is given the wrong one. So we ask each task's questions of
# the trained model with the vector of each other task: the head and the texts are right, only the condition
# is not.

# %%
N_ROWS = 20 if SHORT else 300
MEASURED = [name for name, task in TASKS.items() if task.metric != "f1"]


def scores_with_each_vector(name: str) -> list[float]:
    """Accuracy or correlation of a task's head on held-out rows, with the vector of each task in turn."""
    predictor = Predictor(str(FOLDER / "ca_mtl"), task=name)
    vectors = predictor.model.model.task_embeddings.vectors
    learned = {condition: vectors[condition].data.clone() for condition in MEASURED}
    with open(tasks / name / "valid.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(N_ROWS), strict=False)]
    labels = np.array([row.pop("label") for row in rows])
    scores = []
    for vector in learned.values():
        vectors[name].data = vector
        predicted = np.array([answer["label"] for answer in predictor.predict(rows)])
        is_regression = TASKS[name].metric == "pearson"
        score = np.corrcoef(predicted, labels)[0, 1] if is_regression else np.mean(predicted == labels)
        scores.append(float(score))
    return scores


scores = np.array([scores_with_each_vector(name) for name in MEASURED])
changes = scores - np.diag(scores)[:, None]
figure, axes = plt.subplots(figsize=(6.5, 5))
texts = np.char.replace(np.char.mod("%+.2f", changes.round(2) + 0.0), "+0.00", "0.00")  # + 0.0: no −0
np.fill_diagonal(texts, np.char.mod("%.2f", np.diag(scores)))
image = heat_map(axes, changes, MEASURED, MEASURED, limit=0.25, texts=texts)
axes.set(xlabel="whose vector", ylabel="whose texts and head")
figure.colorbar(image, label="change of the score")
plt.show()

# %% [markdown]
# *The score of each task's texts and head (rows), on the diagonal with its own vector, elsewhere how it
# changes with the vector of another task (columns). Only three rows have anything dark beside the diagonal.
# With 300 texts, changes below 0.05 may be noise.*
#
# `one_liner` clearly needs its own vector: it loses 0.18 to 0.25 with those of `rating`, `position` and
# `order`. `punctuation` loses 0.15 with that of `rating`, and 0.06 to 0.09 with those of `order` and
# `position`; `review_sentiment` loses 0.05 to 0.08 with most others, which is just above the noise. The other
# four hardly notice. So the model computes something else for few tasks, and most hardly use the condition.
# It has had little chance to matter: what makes z, γ and β trains at a fiftieth of the learning rate of all
# else (`--conditioning_lr`). `names` is left out; its metric needs whole sentences.
#
# Which tasks bend the model in a similar way? The scales and shifts of all parts, one after the other, are a
# point for each task; the cosine of two points says how alike two tasks are to the model. The means over the
# tasks are taken off first, since what all have in common says nothing.

# %%
model = Predictor(str(FOLDER / "ca_mtl"), task=MEASURED[0]).model.model
with torch.no_grad():
    z = model.task_embeddings(TASKS)
    films = [module for module in model.modules() if isinstance(module, FiLM)]
    modulations = torch.cat([F.linear(z, film.weight, film.bias) for film in films], dim=-1)
centred = F.normalize(modulations - modulations.mean(0), dim=-1)
figure, axes = plt.subplots(figsize=(6, 5))
names = list(TASKS)
cosines = (centred @ centred.T).numpy()
image = heat_map(axes, cosines, names, names, limit=1, texts=np.char.mod("%.2f", cosines))
figure.colorbar(image, label="cosine")
plt.show()

# %% [markdown]
# *Cosine of the modulations of each pair of tasks. Since the mean is subtracted, unrelated tasks have about
# −0.14, not 0. The regressions, `rating` and `position`, are alike (0.35), perhaps because their heads give
# numbers and not classes, and both are unlike `names`; the two sentiments are no more alike than unrelated
# tasks, and `rating` and `review_sentiment`, which ask nearly the same, are even less alike (−0.31). So alike
# vectors do not mean alike questions.*
#
# ## Which task comes next?
#
# With `--sampling uncertainty`, the model chooses its own examples. Before a step it looks at candidates of
# each task, measures how unsure it is of each, and trains on those of which it is least sure. The measure is
# the entropy of the predicted classes, divided by the logarithm of their number, so that 1 is the most for
# any task. Each entropy is multiplied by the mean of its task, relative to the largest such mean, so that
# tasks of which the model is unsure throughout come first.

# %%
Excerpt(uncertainty_scores)

# %%
unsure = load_preset(
    MultitaskConfig,
    "multitask_quickstart",
    sampling="uncertainty",
    uncertainty_candidates=8,
    eval_every=50,
    **options,
)
NAME = "uncertainty"
results[NAME] = train(NAME, train_multitask, unsure)
evaluations = read_evaluations(FOLDER / NAME)
steps = [row["step"] for row in evaluations]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True)
for index, name in enumerate(TASKS):
    style = {"color": COLORS[index], "linestyle": STYLES[index], "marker": MARKERS[index]}
    axes[0].plot(steps, [row[f"{name}.share"] for row in evaluations], label=name, **style)
    axes[1].plot(steps, [row.get(f"{name}.entropy", math.nan) for row in evaluations], label=name, **style)
axes[0].axhline(0.25, color="black", linewidth=0.8, linestyle=":")
axes[0].set(xlabel="step", ylabel="share of the rows", ylim=(0, None))
axes[1].set(xlabel="step", ylabel="normalized entropy", ylim=(0, 1))
figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, frameon=False, loc="outside upper center")
plt.show()
print(f"{'step':20}" + "".join(f"{step:>8}" for step in steps))
for name in ("one_liner", "order"):
    print(f"{name:20}" + "".join(f"{row[f'{name}.accuracy']:>8.3f}" for row in evaluations))
print()
print_scores()

# %% [markdown]
# *Left: the share of the rows that each task got in the 50 steps before; with eight candidates for 32 rows, a
# quarter is the most (dotted line). Right: the mean entropy of its candidates in these steps. A regression
# has no entropy; its candidates get the mean score of the other tasks' candidates, rank by rank. `one_liner`
# has as many rows as it can get from step 50 to step 100, and none at the points from 250 on.*
#
# Its average is the lowest, by eight points, since it loses two tasks that CA-MTL learns: `names`, of which
# it finds next to nothing, and `one_liner`, which is at chance. (`order` is at chance, too, but CA-MTL hardly
# learns it either.) The other six have 0.524 on average, and 0.537 with CA-MTL; `rating` loses most of these.
# (The table has the evaluation with the best average, of ten here and of two elsewhere.)
#
# What happened to `one_liner`? Up to step 100 it gets more and more rows, and 64 % of its answers are right.
# By step 150 it is down to 55 %, though it still gets more than its share: the model gives most texts the
# same answer, and grows surer of it. So other tasks get the rows. They change the layer that all tasks share,
# nothing corrects that for `one_liner`, and its accuracy falls on to 0.500, while the model is ever surer. To
# be sure is not to be right, and as long as the model is sure, it gets no rows that would correct it. `order`
# stays at 0.500 until step 400, and after the first 100 steps it gets rows only where its entropy has risen,
# around step 250 and near the end.
#
# `names` gets next to nothing after step 50, though the model is more than half unsure of it. An entropy is
# multiplied by the mean of its task, and 0.6 times 0.6 is far from the 0.9 times 0.9 of the tasks on top. The
# mean is not all, though: `order` gets a tenth of the rows with a mean of 0.59. A sentence of `names` has the
# mean entropy of its words, so perhaps its candidates are too alike for one to stand out; this was not
# measured.
#
# To be unsure of something does not mean that more examples would help. `--uncertainty_equal_shares` takes
# the same number of rows of each task, those that the model is least sure of; [multitask.md](../multitask.md)
# has what came of it.
#
# ## Exercises
#
# The answers are in [answers.md](answers.md). Run the whole chapter once with the source as it is. Then, for
# each, change the source, restart the kernel, run the cells up to and including the one that trains (in
# exercise 1, the first that does; in the others, the last), and change the source back. A finished training
# is not repeated, so each needs a name of its own.
#
# 1. In `TaskEmbeddings.forward` (`multitask_model.py`), return `torch.zeros_like` of what it returns now, so
#    that all tasks have the same z. What is left of CA-MTL, and how good is it? After the cell that trains
#    both models: `results["no z"] = train("5_1", train_multitask, conditional); print_scores()`.
# 2. In `uncertainty_scores` (`tasks/sampling.py`), return `np.random.random(entropies.shape)`, and set `NAME
#    = "5_2"`. Which sampler is this, and how good is it?
# 3. In `uncertainty_scores`, return the negative scores, so that the model trains on what it is surest of,
#    and set `NAME = "5_3"`. What happens, and what does that say about choosing by uncertainty?
