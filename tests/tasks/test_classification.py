"""Classification: groups of examples."""

import numpy as np
import pytest


def test_a_group_is_right_if_all_of_it_is(make_task, tmp_path):
    rows = [
        {"text": "a", "group": group, "label": label}
        for group, label in (("x", 0), ("x", 1), ("y", 0), ("y", 1), ("z", 1))
    ]
    made = make_task("classification", *rows, grouped=True)
    outputs = [np.eye(2)[one] for one in (0, 1, 0, 0, 1)]
    assert made.kind.measure(made.train, outputs)["exact_match"] == pytest.approx(2 / 3)
