"""Exported checkpoints are loaded by transformers and compute the same."""

import pytest
import torch
import transformers
from helpers.published import MODELS, padded_batch
from helpers.runs import ALONE, call, run

from checkpoints.pretrained import load_pretrained
from data.tokenization import load_tokenizer


def test_an_exported_checkpoint_is_loaded_by_transformers(folder, tmp_path):
    call("export.py", folder, tmp_path / "exported")
    original = transformers.AutoModel.from_pretrained(folder).eval()
    exported = transformers.AutoModel.from_pretrained(tmp_path / "exported").eval()
    input_ids, mask = padded_batch()
    with torch.no_grad():
        for one, other in (
            (original, exported),
            (
                MODELS[original.config.model_type]().from_pretrained(folder),
                transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "exported"),
            ),
        ):
            one, other = (model.eval()(input_ids=input_ids, attention_mask=mask)[0] for model in (one, other))
            torch.testing.assert_close(one[mask.bool()], other[mask.bool()], atol=1e-6, rtol=1e-6)
    ours, theirs = (
        load_tokenizer(str(folder)),
        transformers.AutoTokenizer.from_pretrained(tmp_path / "exported"),
    )
    for text in ("A good film, it was naïve.", "[MASK] of it"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert theirs.pad_token_id == ours.pad_id and theirs.mask_token_id == ours.mask_id


@pytest.mark.processes("the command as a user gives it")
def test_our_own_model_can_be_exported(corpus, cache, pretraining, tmp_path):
    call("pretraining_train.py", *pretraining, "--n_steps", 2, "--output_dir", tmp_path / "run")
    run("export.py", tmp_path / "run", tmp_path / "exported", launcher=ALONE)
    model, tokenizer = load_pretrained(tmp_path / "run", "RUN_FOLDER")
    exported = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "exported").eval()
    input_ids = torch.tensor([tokenizer.encode("the film was good and so on")])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids), exported(input_ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.processes("it looks at the exit code and at all that is printed")
def test_what_cannot_be_exported_is_a_sentence(pretrained, tmp_path):
    result = run("export.py", pretrained, tmp_path / "exported", check=False)
    assert (
        result.returncode == 2
        and "gpt2 with output_bias True" in result.stderr
        and not (tmp_path / "exported").exists()
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not an empty folder" in run("export.py", pretrained, tmp_path / "full", check=False).stderr
