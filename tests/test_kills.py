"""A run that is killed again and again ends as one that is not, bit for bit.

KILLS=50 kills each run so often.
"""

import pytest
from helpers.crashes import assert_kills_change_nothing

pytestmark = pytest.mark.processes("it kills them")

STEPS = ["--n_steps", 120, "--save_every", 10, "--log_every", 3]
RUNS = {
    "pretraining, with masks, Muon and accumulated gradients": [
        "pretraining_train.py",
        *(
            "--mlm",
            "--eval_at_start",
            "--gradient_accumulation_steps",
            2,
            "--optimizer",
            "muon",
            "--eval_every",
            25,
            *STEPS,
        ),
    ],
    "fine-tuning in adversarial turns, with an auxiliary loss": [
        "finetuning_train.py",
        *("--adversarial_epsilon", 0.05, "--lm_loss_coef", 0.5, "--eval_every", 25, *STEPS),
    ],
    "fine-tuning that unfreezes layers and stops early": [
        "finetuning_train.py",
        *("--unfreeze_every", 20, "--patience", 2, "--eval_every", 10, *STEPS, "--lr", 1e-2),
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_it_ends_as_if_nothing_had_been(name, request, tmp_path, capsys):
    script, *flags = RUNS[name]
    data = request.getfixturevalue("pretraining" if script.startswith("pre") else "finetuning")
    moments = assert_kills_change_nothing(script, tmp_path, *data, *flags)
    with capsys.disabled():
        print(f"\n{name}: killed " + "; ".join(moments))
