"""The tokenizers of published checkpoints, and their settings on the way through runs and exports."""

import pytest
import transformers
from helpers.published import VOCABULARY, save_tokenizer
from helpers.runs import call, parse

from checkpoints.pretrained import load_pretrained
from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.tokenization import load_tokenizer
from data.wordpiece import Tokenizer
from finetuning_predict import Predictor
from pretraining_train import pretrain
from tasks.examples import Collator


def test_pairs_are_joined_as_by_the_familys_own_tokenizer(folder):
    collate = Collator(load_tokenizer(str(folder)), 32, causal=False)
    theirs = {"vocab.txt": transformers.BertTokenizer, "vocab.json": transformers.RobertaTokenizer}
    name = next(name for name in theirs if (folder / name).is_file())
    reference = theirs[name].from_pretrained(folder)
    if reference.cls_token_id is None or "gpt2" in folder.name:
        pytest.skip("GPT-2 has no pairs")
    ids = [collate.tokenizer.encode_batch([text])[0] for text in ("a good film", "it was bad")]
    assert collate([ids])["input_ids"][0].tolist() == reference("a good film", "it was bad")["input_ids"]


def test_a_byte_level_tokenizer_is_that_of_transformers(reviews, tmp_path):
    texts = [row["text"] for row in reviews[::500]] + [
        "",
        " two  spaces",
        "naïve 😀 中文\n\ttab",
        "a<s>b",
        "half \ud83d",
    ]
    for family, reference in (
        ("gpt2", transformers.GPT2Tokenizer),
        ("roberta", transformers.RobertaTokenizer),
    ):
        (tmp_path / family).mkdir()
        save_tokenizer(family, tmp_path / family, reviews, None)
        ours, theirs = load_tokenizer(str(tmp_path / family)), reference.from_pretrained(tmp_path / family)
        assert isinstance(ours, ByteLevelTokenizer) and len(ours) == VOCABULARY
        for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
            text = text.replace("\ud83d", "")
            assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], ascii(text[:80])
            assert ours.decode(ids) == text
        ours.save(tmp_path / f"{family}.json")
        again = load_tokenizer(str(tmp_path / f"{family}.json"))
        assert again.fingerprint == ours.fingerprint and again.special == ours.special
        assert again.encode("naïve film") == ours.encode("naïve film")


def test_a_word_piece_tokenizer_may_come_as_tokenizer_json(tokenizer, tmp_path):
    tokenizer.export(tmp_path, causal=False, max_length=32)
    ours = load_tokenizer(str(tmp_path))
    assert isinstance(ours, Tokenizer) and ours.vocab == tokenizer.vocab and ours.lowercase


def test_settings_of_a_tokenizer_go_with_all_runs_that_come_of_it(german, pretraining, task, cache, tmp_path):
    """Into a pretraining, adapters, their fusion and what is resumed, and out again for `transformers`."""
    sentence = "Die Bäume stehen über dem Haus"

    def finetune(name, start, *changes):
        data = ["--dataset_path", task, "--dataset_cache", cache, "--max_length", 16]
        common = [*data, "--n_steps", 2, "--n_warmup", 0, "--output_dir", tmp_path / name]
        call("finetuning_train.py", *common, "--model_checkpoint", start, *changes)

    output = ["--output_dir", tmp_path / "pretrained"]
    call("pretraining_train.py", *pretraining, "--tokenizer", german, "--n_steps", 2, *output)
    finetune("adapters", german, "--tuning", "pfeiffer")
    finetune("fusion", german, "--tuning", "fusion", "--adapters", tmp_path / "adapters")
    finetune("full", german)
    call("finetuning_train.py", "--resume", tmp_path / "full")
    finetune("further", tmp_path / "full")
    call("export.py", tmp_path / "further", tmp_path / "exported")
    for run_folder in ("adapters", "fusion", "full", "further"):
        assert Predictor(str(tmp_path / run_folder)).tokenizer.encode(sentence) == [5, 6, 7, 8, 9, 10]
    assert load_pretrained(tmp_path / "pretrained", "RUN_FOLDER")[1].encode(sentence) == [5, 6, 7, 8, 9, 10]
    for folder in (german, tmp_path / "exported"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs(sentence, add_special_tokens=False)["input_ids"] == [5, 6, 7, 8, 9, 10]
    assert load_tokenizer(str(tmp_path / "exported")).encode(sentence) == [5, 6, 7, 8, 9, 10]


@pytest.mark.processes("the libraries read the address of the Hub when they are imported")
def test_the_settings_of_a_tokenizer_come_from_the_hub(hub, german, tmp_path):
    owner = tmp_path / "models" / "owner"
    owner.mkdir(parents=True)
    for name in ("tokenizer", "model"):
        (owner / name).symlink_to(german)
    mirror = hub(tmp_path)
    code = """
from checkpoints.pretrained import load_pretrained, load_tokenizer
for tokenizer in (load_tokenizer("owner/tokenizer"), load_pretrained("hf:owner/model", "--flag")[1]):
    print(tokenizer.encode("Bäume über"))
"""
    result = mirror.run("-c", code, env=mirror.env)
    assert result.stdout.splitlines() == ["[6, 8]", "[6, 8]"], result.stderr


def test_mlm_needs_a_mask_token(corpus, cache, reviews, tmp_path):
    save_tokenizer("gpt2", tmp_path, reviews, None)
    flags = ["--dataset_path", corpus, "--dataset_cache", cache, "--tokenizer", tmp_path, "--mlm"]
    with pytest.raises(UserError, match="has no mask token"):
        pretrain(parse("pretraining_train.py", *flags))
