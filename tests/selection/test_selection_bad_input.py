"""What cannot be used is one sentence that says how to mend it, and nothing is written."""

import json
from pathlib import Path

import pytest
from helpers.runs import call, metrics, parse, run

from config.errors import UserError
from selection_rank import rank
from selection_train import train_sources

TRAIN, RANK = "selection_train.py", "selection_rank.py"


def names(pool: Path) -> list[str]:
    return sorted(str(file) for file in pool.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there are no sources; name some with --sources"),
        (["--sources", "FILM,FILM"], "names two sources film; rename one"),
        (["--sources", "FILM,"], "has an empty name"),
        (["--sources", "FILM,."], r"'\.' names no folder of its own"),
        (["--sources", "nowhere"], "nowhere"),
        (["--sources", "FILM", "--represent", "esm,textem"], "--represent textem is not one of"),
        (["--sources", "FILM", "--represent", "semb"], "--represent semb needs --sentence_model"),
        (["--sources", "FILM", "--model_checkpoint", "none"], "task selection needs a pretrained model"),
        (["--sources", "FILM", "--esm", "linaer"], "--esm"),
        (["--sources", "FILM", "--output_dir", "SOURCES"], "holds something else than a pool"),
        (["--sources", "FILM", "--pooling", "cls"], "was trained with pooling mean, not cls"),
        (["--sources", "FILM", "--lr", "1e-5"], "was trained with lr 0.003, not 1e-05"),
    ],
)
def test_training_sources(arguments, sentence, pool, sources, flags):
    before = names(pool)
    places = {"FILM": str(sources / "film"), "SOURCES": str(sources)}
    for place, path in places.items():
        arguments = [one.replace(place, path) for one in arguments]
    with pytest.raises((UserError, SystemExit), match=sentence):
        train_sources(parse(TRAIN, *flags, "--output_dir", pool, *arguments))
    assert names(pool) == before


def test_sources_of_another_base_do_not_join_a_pool(pool, sources, flags, pretraining, tmp_path):
    call(
        "pretraining_train.py", *pretraining, "--n_steps", 2, "--seed", 7, "--output_dir", tmp_path / "other"
    )
    others = [*flags, "--model_checkpoint", tmp_path / "other"]
    with pytest.raises(UserError, match="started from .*, not from --model_checkpoint"):
        train_sources(parse(TRAIN, "--sources", sources / "film", *others, "--output_dir", pool))
    with pytest.raises(UserError, match="all sources of a pool need the same base"):
        train_sources(
            parse(TRAIN, "--sources", pool / "runs" / "film", *others, "--output_dir", tmp_path / "x")
        )
    with pytest.raises(UserError, match="started from .*, not from"):
        rank(
            parse(RANK, "--target", sources / "film", *others, "--pool", pool, "--output_dir", tmp_path / "x")
        )
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "FILM", "--pool", "nowhere"], "nowhere is not a pool"),
        ([], "there is no target; name the task"),
        (["--target", "nowhere"], "nowhere"),
        (["--target", "FILM", "--methods", "logmee"], "--methods logmee is not one of"),
        (["--target", "FILM", "--methods", "esm-logme,fusion"], "name two or more of them"),
        (["--target", "SCORE", "--methods", "nce"], "--methods nce is for classes"),
        (["--target", "SCORE", "--methods", "esm-nce"], "--methods esm-nce is for classes"),
        (
            ["--target", "NAMES", "--methods", "esm-logme"],
            "is tagging, but scores are for classes or numbers",
        ),
        (["--target", "FILM", "--methods", "semb"], "semb needs a model that embeds sentences"),
        (["--target", "ONE_CLASS"], "all examples have the label"),
        (["--target", "ONE_ROW"], "all examples have the label"),
        (["--target", "FILM", "--output_dir", "SOURCES"], "holds something else than a ranking"),
    ],
)
def test_ranking(arguments, sentence, pool, sources, flags, tmp_path):
    places = {"FILM": sources / "film", "SCORE": sources / "score", "NAMES": sources / "names.json"}
    places |= {"SOURCES": sources, "ONE_CLASS": tmp_path / "same", "ONE_ROW": tmp_path / "single"}
    for name, n_rows in (("same", 9), ("single", 1)):
        (tmp_path / name).mkdir()
        rows = [json.dumps({"text": f"a film {number}", "label": "pos"}) + "\n" for number in range(n_rows)]
        for split in ("train", "valid"):
            (tmp_path / name / f"{split}.jsonl").write_text("".join(rows))
    arguments = [str(places.get(one, one)) for one in arguments]
    out = tmp_path / "out"
    with pytest.raises(UserError, match=sentence):
        rank(parse(RANK, "--pool", pool, *flags, "--output_dir", out, *arguments))
    assert not out.exists()


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_a_method_whose_files_are_missing_says_how_to_make_them(pool, sources, flags, tmp_path):
    folder = pool / "runs" / "film"
    small = tmp_path / "pool"
    call(TRAIN, "--sources", folder, *flags, "--represent", "textemb", "--output_dir", small)
    command = ["--target", sources / "film", "--pool", small, *flags, "--output_dir", tmp_path / "out"]
    result = run(RANK, *command, "--methods", "taskemb", check=False)
    assert result.returncode == 2 and "selection_train.py --represent taskemb" in result.stderr
    assert "Traceback" not in result.stderr and metrics(small / "textemb" / "film")
    with pytest.raises(UserError, match="there is no map of film; add it with"):
        rank(parse(RANK, *command, "--methods", "esm-logme"))
