"""hf-dataset-selector's side of benchmarks/ranking.py and ranking_total.py, in an environment of its own.

It imports nothing of this project. Each line on its input is a JSON object that asks for something, and each
line that it prints is the answer:

* arrays (a file of features and labels), maps (folders): the `scores`, and the seconds of `loading` the maps
  and of `scoring`
* model (a folder), rows (JSONL with text and label), maps: the same, and the seconds of `embedding` the rows
* make_model (a folder with vocab.txt): writes a model with the shape of BERT-base and random weights there
"""

import json
import os
import sys
import time
from pathlib import Path

import hfselect.esm_logme
import numpy as np
import torch
from datasets import Dataset as Table
from hfselect import ESM, Dataset
from hfselect.logme import LogME
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

BATCH_SIZE = 128  # of embeddings, the library's default


def score(esm: ESM, features: torch.Tensor, labels: np.ndarray) -> float:
    """ESM-LogME as `hfselect.esm_logme.compute_scores` computes it, after the embedding."""
    with torch.no_grad():
        mapped = np.vstack([esm(batch).numpy() for batch in features.split(BATCH_SIZE)])
    return float(LogME(regression=False).fit(mapped, labels, add_intercept=False))


def score_features(request: dict) -> dict:
    inputs = np.load(request["arrays"])
    return score_maps(request["maps"], torch.from_numpy(inputs["features"]), inputs["labels"])


def score_maps(folders: list[str], features: torch.Tensor, labels: np.ndarray) -> dict:
    started = time.perf_counter()
    maps = [ESM.from_pretrained(Path(folder)) for folder in folders]
    loaded = time.perf_counter()
    scores = [score(esm, features, labels) for esm in maps]
    return {"loading": loaded - started, "scoring": time.perf_counter() - loaded, "scores": scores}


def score_texts(request: dict) -> dict:
    """Without maps, the library's own function embeds the rows and throws that away; here it is kept."""
    with open(request["rows"], encoding="utf-8") as file:
        table = Table.from_list([json.loads(line) for line in file])
    dataset, kept = Dataset(table, "text", "label", is_regression=False), []
    pooled_output = hfselect.esm_logme.get_pooled_output

    def keep(*arguments) -> torch.Tensor:
        kept.append(pooled_output(*arguments))
        return kept[-1]

    hfselect.esm_logme.get_pooled_output = keep
    started = time.perf_counter()
    model = AutoModel.from_pretrained(request["model"])
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    hfselect.esm_logme.compute_scores(dataset, model, [], tokenizer)
    embedding = time.perf_counter() - started
    labels = np.unique(table["label"], return_inverse=True)[1]
    return {"embedding": embedding} | score_maps(request["maps"], torch.cat(kept), labels)


def make_model(request: dict) -> dict:
    folder = request["make_model"]
    tokenizer = BertTokenizer(f"{folder}/vocab.txt")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    return {}


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  (the library prints, too)
    for line in sys.stdin:
        request = json.loads(line)
        if "make_model" in request:
            answer = make_model(request)
        else:
            answer = score_features(request) if "arrays" in request else score_texts(request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
