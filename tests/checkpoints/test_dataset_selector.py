"""hf-dataset-selector reads our maps, and we read its own: `make test-slow`, since it needs an environment of
its own.
"""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.maps import load_map, save_map
from selection_logme import MappedLogME
from selection_model import LinearMap
from selection_scores import logme

pytestmark = pytest.mark.slow
LIBRARY = ["hf-dataset-selector==0.2.0", "transformers==4.57.6", "numba==0.60.0", "pandas==2.2.3"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """A folder with what the library made, beside `our_map`. Its environment borrows torch from ours."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("selector")
    torch.manual_seed(1)
    save_map(folder / "our_map", LinearMap(6), {"base_model_name": "bert", "task_id": "trec"})
    venv.create(environment, with_pip=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", *LIBRARY], check=True)
    helper = Path(__file__).parents[1] / "helpers" / "dataset_selector.py"
    subprocess.run([python, helper, folder / "our_map", folder], check=True, cwd=folder)
    return folder


@pytest.mark.parametrize(("side", "name"), [("ours", "our_map"), ("theirs", "their_map")])
def test_maps_go_both_ways(side, name, theirs):
    mapped = np.load(theirs / "mapped.npz")
    fitted, about = load_map(theirs / name)
    assert about["task_id"] == {"ours": "trec", "theirs": "rte"}[side]
    with torch.no_grad():
        ours = fitted(torch.from_numpy(mapped["x"])).numpy()
    np.testing.assert_allclose(ours, mapped[side], rtol=1e-5, atol=1e-6)
    assert abs(ours - mapped["x"]).max() > 0.1


def test_logme_is_that_of_the_library(theirs):
    scores, x = json.loads((theirs / "scores.json").read_text()), np.load(theirs / "mapped.npz")["x"]
    labels = {"classes": np.load(theirs / "labels.npy"), "numbers": x[:, 2] + x[:, 3]}
    identity = np.eye(6, dtype=np.float32), np.zeros(6, dtype=np.float32)
    for name, score in scores.items():
        assert logme(x, labels[name]) == pytest.approx(score, rel=1e-6)
        assert MappedLogME(x, labels[name]).score(*identity) == pytest.approx(score, rel=1e-6)
