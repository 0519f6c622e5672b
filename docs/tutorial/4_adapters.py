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
# # 4. A few weights per task
#
# Fine-tuning in full makes a whole new model for every task. With ten tasks, that is ten models to store, to
# load and to serve, though all of them started from the same one. This chapter leaves the pretrained model as
# it is and trains a small addition for each task: biases, adapters, low-rank updates. How small can it be?
# And what can be done with additions that cannot be done with models: put several of them into one model, and
# let it choose.
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
import torch

from checkpoints.finetuned import load_finetuned
from config.flags import replace
from config.presets import load_preset
from data.tokenization import load_tokenizer
from docs.tutorial.helpers import COLORS, FOLDER, MARKERS, SHORT, Excerpt, gains, language_model, train
from finetuning_train import FinetuningConfig, finetune
from layers import adapters
from layers.adapters import Adapter, AdapterFusion, LoRALinear, apply_tuning
from tasks.review_tasks import write_review_tasks

# %% [markdown]
# ## Two ways to change a frozen model
#
# Chapter 1 found empty slots in each layer, after attention and after the feed-forward network. A *bottleneck
# adapter* goes there: a narrow network whose output is added to what passes. Its last matrix starts near
# zero, so that at first it changes almost nothing. Houlsby et al. (2019) put one into both slots of a layer;
# Pfeiffer et al. (2021) put only one, after the feed-forward network, that reads the output of the whole
# layer.

# %%
Excerpt(Adapter.__init__, Adapter.bottleneck, Adapter.forward)

# %% [markdown]
# *LoRA* (Hu et al. 2022) does not add a network, but changes a matrix: $W$ becomes $W + \frac{\alpha}{r} BA$,
# where $A$ has $r$ rows and $B$ has $r$ columns, so that there are few numbers to learn. $B$ starts at zero.
# As in the paper, it is done to the matrices that make queries and values. After the training, the product
# can be added to $W$ once and for all, so that the model is as fast as before. $\alpha$ is a constant.

# %%
Excerpt(LoRALinear.forward)

# %% [markdown]
# A *tuning* is what is added, and which weights train, each given by a function in a table. `bitfit` adds
# nothing: it trains the biases that are there (Ben Zaken et al. 2022). `head` trains the classifier alone,
# which all others train as well. A weight that does not train keeps its value; the run folder stores those
# that do (and the adapters that a fusion reads), and the path and the hash of the model that they belong to.

# %%
Excerpt((adapters, "METHODS"), apply_tuning)

# %% [markdown]
# ## Accuracy against trained weights
#
# The task: given one sentence from Rotten Tomatoes, did the critic like the film? Half of the sentences are
# positive, so guessing gives 0.5. We take 1,000 labels and three seeds for each point. Widths and ranks go
# from almost nothing to an eighth of the layer's 527,104 weights.

# %%
pretrained = language_model()
common = {
    "model_checkpoint": str(pretrained),
    "dataset_path": "rotten_tomatoes",
    "train_subset_size": 1000,
    "max_length": 48,
    "train_batch_size": 32,
    "valid_batch_size": 256,
    "eval_every": 10**6,  # once, at the end
    "n_epochs": 3,
    "restarts": 3,
}
full = load_preset(FinetuningConfig, "quickstart_full", **common)
frozen = load_preset(FinetuningConfig, "quickstart_adapters", **common | {"adapters_dim": 0})

recipes = {
    "head": {"0": {}},
    "bitfit": {"0": {}},
    "lora": {str(rank): {"lora_rank": rank} for rank in (2, 32)},
    "pfeiffer": {str(width): {"adapters_dim": width} for width in (4, 64)},
    "houlsby": {str(width): {"adapters_dim": width} for width in (4, 64)},
}
if SHORT:
    recipes = {"head": recipes["head"]}
results = {}
for tuning, sizes in recipes.items():
    for size, flags in sizes.items():
        recipe = replace(frozen, tuning=tuning, **flags)
        results[tuning, size] = train(f"{tuning}_{size}", finetune, recipe)
results["full", "0"] = train("full", finetune, full)

# %%
figure, axes = plt.subplots(figsize=(6.5, 4))
for number, tuning in enumerate([*recipes, "full"]):
    points = {size: metrics for (name, size), metrics in results.items() if name == tuning}
    weights = [metrics["n_trained"] * 1.06 ** (number - 2.5) for metrics in points.values()]
    accuracies = [metrics["valid_accuracy"] for metrics in points.values()]
    axes.errorbar(
        weights,
        accuracies,
        [metrics["valid_accuracy_std"] for metrics in points.values()],
        capsize=3,
        label=tuning,
        marker=MARKERS[number],
        markersize=6,
        color=COLORS[number],
    )
    for size, x, y in zip(points, weights, accuracies, strict=True):
        axes.annotate("" if size == "0" else size, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    for size, metrics in points.items():
        share = metrics["n_trained"] / metrics["n_parameters"]
        print(
            f"{tuning:8}{size:>3}{metrics['n_trained']:>12,.0f} weights ({share:7.2%}): "
            f"{metrics['valid_accuracy']:.3f} ± {metrics['valid_accuracy_std']:.3f}"
            f"   minus head: {gains(metrics, results['head', '0'])}"
        )
axes.set(xscale="log", xlabel="trained weights", ylabel="accuracy on held-out sentences")
axes.legend(frameon=False, ncols=2)
plt.show()

# %% [markdown]
# *Accuracy on 1,066 held-out sentences against the number of trained weights (logarithmic); means of three
# seeds, bars of one deviation to both sides. Ranks and widths are beside the points, which are moved a little
# to the sides, so that none hides another. All bars overlap with that of the head.*
#
# The last columns are differences seed by seed. Each seed draws the same 1,000 sentences for all methods, so
# they leave out the luck of the draw, which the bars contain. Only full fine-tuning, with 1,750 times as many
# weights as the head, is ahead of it on all three seeds, by a point each time; but three equal signs come by
# chance in one case of four, and there are eight comparisons. (The choice of 1,066 sentences moves one
# accuracy by 1.4 points, and a difference on the same sentences by less.) What lies between them is ahead on
# some seeds and behind on others. Of each method, the wider one is behind the narrower one on average and
# scatters more: LoRA of rank 32 is five points behind the head on one seed, and three ahead on another. All
# frozen models are trained with the learning rates that suited adapters of width 64 in the quickstart, so
# this says little about how good each could be.
#
# So what the figure does show is that with 1,000 labels the 1,538 weights of the head, 0.06 % of all, come
# within about a point of all weights, and that what is added to them shows no gain. With models of hundreds
# of millions of weights and more labels there is more to win, and adapters of one to four percent come within
# a point of full fine-tuning (Houlsby et al. 2019).
#
# ## Several additions in one model
#
# A model that is frozen is the same for all tasks, so the adapters of several tasks fit into it together.
# *AdapterFusion* (Pfeiffer et al. 2021) does that for a new task: all adapters read the same state, each
# makes its own output, and an attention layer learns how much of each to take, for each token anew. Adapters
# and model stay frozen. (As in the paper, the scores are not divided by $\sqrt{d}$.)

# %%
Excerpt(AdapterFusion.attention, AdapterFusion.forward)

# %% [markdown]
# Three tasks that are made of film reviews (`tasks/review_tasks.py`) get an adapter each: whether a viewer
# liked the film, from the end of a review; whether a sentence is a critic's or a viewer's; and which of two
# sentences comes first in its review. Guessing gives 0.5 in each of them. The new task is that of Rotten
# Tomatoes again, now with 100 labels and five seeds.

# %%
tasks = FOLDER / "tasks"
if not tasks.exists():
    write_review_tasks(tasks)
SOURCES = ("review_sentiment", "one_liner", "order")[: 2 if SHORT else 3]
adapter = {"tuning": "pfeiffer", "adapters_dim": 16, "restarts": 1}
for name in SOURCES:
    source = replace(frozen, dataset_path=str(tasks / f"{name}.json"), train_subset_size=None, **adapter)
    metrics = train(f"adapter_of_{name}", finetune, source)
    print(f"{name:18}{metrics['valid_accuracy']:.3f}")

# %%
few = replace(frozen, train_subset_size=100, n_epochs=12, restarts=5)
trained = [str(FOLDER / f"adapter_of_{name}") for name in SOURCES]
starts = {
    "the head alone": {"tuning": "head"},
    "a new adapter": {"tuning": "pfeiffer", "adapters_dim": 16},
    **{
        f"from that of {name}": {"tuning": "pfeiffer", "adapters_dim": 16, "model_checkpoint": folder}
        for name, folder in zip(SOURCES, trained, strict=True)
    },
    "fusion of the three": {"tuning": "fusion", "adapters": ",".join(trained)},
}
few_results = {
    name: train(f"few_{name.replace(' ', '_')}", finetune, replace(few, **flags))
    for name, flags in starts.items()
}
for name, metrics in few_results.items():
    print(
        f"{name:30}{metrics['valid_accuracy']:.3f} ± {metrics['valid_accuracy_std']:.3f}"
        f"   minus head: {gains(metrics, few_results['the head alone'])}"
    )

# %% [markdown]
# Three starts beat the head alone on every seed: the adapters of *review_sentiment* and of *order*, that of
# *order* by a single sentence on one of them, and the fusion. Chance alone gives five equal signs in one of
# 16 cases. All are compared with the same five heads, one of which was unlucky, so this is less than it
# seems; and there is only one adapter per source here, so another training of it might do better or worse.
# Against a new adapter, which nothing has prepared, that of *review_sentiment* wins on three seeds of five,
# and by a point on average.
#
# Fusion wins although nobody told it which of the three is of use, and although it has twenty times as many
# weights to learn as a new adapter. But it is hardly better than a new adapter, by 0.3 points on average and
# on three seeds of five, and it loses to the adapter of *review_sentiment* on four seeds.
#
# And which adapter does the fusion listen to? Its attention weights say so, for each token. We look at the
# best of the five seeds.

# %%
fused = load_finetuned(FOLDER / "few_fusion_of_the_three", "the fused model").eval()
fusion = fused.transformer.layers[0].after_feed_forward
attention, seen = fusion.attention, {}


def remember(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """The attention, which can be looked at afterwards."""
    seen["weights"] = attention(inputs, outputs)
    return seen["weights"]


fusion.attention = remember

tokenizer = load_tokenizer(pretrained)
sentence = "a moving film , though its plot is hopeless and its ending a disappointment ."
ids = [*tokenizer.encode(sentence), tokenizer.cls_id][:24]
with torch.no_grad():
    fused(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
weights = seen["weights"][0]

figure, axes = plt.subplots(figsize=(8, 3))
left = torch.zeros(len(ids))
for number, (name, color, hatch) in enumerate(zip(SOURCES, COLORS, ("", "///", ".."), strict=False)):
    style = {"color": color, "hatch": hatch, "edgecolor": "white"}
    axes.bar(range(len(ids)), weights[:, number], bottom=left, label=name, **style)
    left += weights[:, number]
axes.set_xticks(range(len(ids)), [tokenizer.vocab[i] for i in ids], rotation=60, ha="right")
axes.set(ylabel="attention", ylim=(0, 1))
axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()

# %% [markdown]
# *For each token of a sentence, the attention to the three adapters, which adds up to 1. It is nearly all or
# nothing, except at [CLS] and, less so, at `##less`, and for 12 of the 17 tokens most of it goes to the
# adapter of `review_sentiment`, the one that helps most by itself. Both `its` go to `one_liner`, and `is`,
# `##less` and the full stop to `order`. This is one seed.*
#
# ## Exercises
#
# The answers are in [answers.md](answers.md). Run the whole chapter once with the source as it is. Then, for
# each, change the source, restart the kernel, run the cells up to and including the one that defines `frozen`
# (its trainings are finished, and only read), train as the exercise says, and change the source back. A
# finished training is not repeated, so each needs a name of its own.
#
# 1. In `Adapter.__init__` (`layers/adapters.py`), let the last matrix start with `std=width**-0.5` instead of
#    near zero. What does the model compute before its training then, and what is the accuracy after
#    `train("4_1", finetune, replace(frozen, tuning="houlsby", adapters_dim=64))`?
# 2. In `METHODS`, replace `lambda name: is_added(name) or "norm" in name` of `houlsby` by `is_added`, so that
#    the LayerNorms stay as they are. How many weights fewer is that, and what does `train("4_2", finetune,
#    replace(frozen, tuning="houlsby", adapters_dim=64))` say?
# 3. In `AdapterFusion.forward`, take the mean of the adapters' outputs, without any attention: `return output
#    + self.value(outputs.mean(2))`. Is attention worth its weights here? Also run the cells that define `few`
#    and `trained`, and then `train("4_3", finetune, replace(few, tuning="fusion",
#    adapters=",".join(trained)))`.
