"""Every chapter of the tutorial runs, with few examples and steps; its notebook shows what is true now."""

import json
import os
import re
from pathlib import Path

import pytest
from helpers.documents import CHAPTERS, cells_of
from helpers.runs import ROOT

pytestmark = pytest.mark.processes("a chapter sets the style of all plots and the folder that it runs in")

EXCERPT = re.compile(r"^# ([\w/]+\.py), line \d+\n", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(reviews, tmp_path_factory) -> Path:
    """The tutorial's run folders, with forty reviews of each label to train on and twenty to validate."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "few_reviews").mkdir()
    for name, rows in (("train", slice(0, 40)), ("valid", slice(40, 60))):
        chosen = [
            row for label in ("pos", "neg") for row in [r for r in reviews if r["label"] == label][rows]
        ]
        lines = [json.dumps({"text": row["text"], "label": row["label"]}) for row in chosen]
        (folder / "few_reviews" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_runs(chapter, folder, run_script):
    setting = {"TUTORIAL": "short", "TUTORIAL_FOLDER": str(folder), "MPLBACKEND": "agg"}
    result = run_script(chapter.relative_to(ROOT), env=setting, cwd=ROOT)
    assert not result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_whole_chapter_runs(chapter, tmp_path_factory, run_script):
    folder = tmp_path_factory.getbasetemp() / "whole_tutorial"
    environment = {
        "TUTORIAL_FOLDER": str(folder),
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    result = run_script(chapter.relative_to(ROOT), env=environment, cwd=ROOT, timeout=1800)
    assert not result.returncode, result.stderr


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_the_notebook_is_that_of_the_text_file(chapter):
    cells = json.loads(chapter.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [(cell["cell_type"] == "markdown", "".join(cell["source"]).strip()) for cell in cells]
    assert shown == cells_of(chapter), "run `make tutorial`"
    assert all(
        ("outputs" in cell) == (cell["cell_type"] == "code") for cell in cells
    )  # else it is no notebook
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_excerpts_are_the_source_as_it_is_now(chapter):
    cells = json.loads(chapter.with_suffix(".ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    excerpts = ["".join(data["text/markdown"]) for data in outputs if "text/markdown" in data]
    assert excerpts
    for excerpt in excerpts:
        code = excerpt.removeprefix("```python\n").removesuffix("```")
        _, *pieces = EXCERPT.split(code)
        for file, text in zip(pieces[::2], pieces[1::2], strict=True):
            assert text.rstrip() in (ROOT / file).read_text(encoding="utf-8"), "run `make tutorial`"
