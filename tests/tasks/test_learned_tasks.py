"""How flags, task files and defaults decide on a task among many."""

import json

from config.multitask import MultitaskConfig
from tasks.multitask import open_tasks


def test_a_flag_of_all_tasks_leaves_their_own_metrics_alone(tiny_vocab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "valid"):
        rows = [{"text": f"word {number}", "label": "ab"[number % 2]} for number in range(6)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"dataset_path": "data", "patience_metric": "matthews", "max_length": 8, "truncation": "tail"}
    (tmp_path / "mine.json").write_text(json.dumps(task))
    config = MultitaskConfig(patience_metric="mine.loss", max_length=6)
    config.explicit_flags = frozenset({"patience_metric", "max_length"})  # both have been typed
    learned = open_tasks(config, "--tasks", "mine.json", str(tiny_vocab))["mine"]
    assert learned.metric == "matthews"  # what counts in the average, whatever decides which weights are best
    assert (learned.arguments.max_length, learned.arguments.truncation) == (6, "tail")
