"""What hf-dataset-selector makes of our maps, and one of its own: tests/checkpoints/test_dataset_selector.py.

    python dataset_selector.py OUR_MAP FOLDER

It reads the linear map in the folder OUR_MAP, and writes to FOLDER what comes of it, a map of its own, and
its LogME. It imports nothing of this project: it runs in an environment that has the library.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from hfselect import ESM
from hfselect.esmconfig import ESMConfig
from hfselect.logme import LogME


def main() -> None:
    our_map, folder = map(Path, sys.argv[1:])
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    ours = ESM.from_pretrained(our_map)
    config = ESMConfig(base_model_name="bert", task_id="rte", esm_architecture="linear", esm_embedding_dim=6)
    theirs = ESM(config=config)
    theirs.save_pretrained(folder / "their_map")
    with torch.no_grad():
        np.savez(folder / "mapped.npz", x=x, ours=ours(x), theirs=theirs(x))
    labels = (x[:, 0] > 0.3).long().numpy() + (x[:, 1] > 0.5).long().numpy()
    scores = {
        "classes": LogME(regression=False).fit(x.numpy(), labels),
        "numbers": LogME(regression=True).fit(x.numpy(), (x[:, 2] + x[:, 3]).numpy()),
    }
    np.save(folder / "labels.npy", labels)
    (folder / "scores.json").write_text(json.dumps({name: float(score) for name, score in scores.items()}))


if __name__ == "__main__":
    main()
