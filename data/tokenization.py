"""Finding and reading the tokenizer that `--tokenizer` names, WordPiece or byte-level BPE."""

import re
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from config.errors import UserError
from data.byte_level import ByteLevelTokenizer
from data.tokenizer_settings import SETTINGS_FILE, bert_normalizer, read_settings
from data.wordpiece import Tokenizer

HUB_VOCABULARIES = {
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
}

# What a folder may hold a tokenizer in; the first one there is taken, as by `transformers`.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")


def parse_training_request(name: str) -> tuple[int, bool] | None:
    """`train:8192` → (8192, False), `train:8192:uncased` → (8192, True), any other name → None.

    Raises UserError if the size is not a number that leaves room for the special tokens.
    """
    if not name.startswith("train:"):
        return None
    match = re.fullmatch(r"train:(\d+)(:uncased)?", name)
    if not match or int(match[1]) < 100:
        raise UserError(
            f"--tokenizer {name}: write train:SIZE or train:SIZE:uncased, with a size of 100 or more"
        )
    return int(match[1]), match[2] is not None


def load_tokenizer(name: str) -> Tokenizer | ByteLevelTokenizer:
    """A tokenizer from a file, a folder that holds one, or the Hub. Raises UserError if there is none."""
    path = Path(name)
    if path.is_file():
        return read_tokenizer(path)
    if not path.is_dir():
        if path.suffix in (".txt", ".json") or name.startswith((".", "/")):
            raise UserError(f"--tokenizer {name}: there is no such file")
        from data.hub import download

        repository = HUB_VOCABULARIES.get(name, name.removeprefix("hf:"))
        folder = download_tokenizer(repository, "--tokenizer")
        # Where nothing was found, another try says why.
        path = folder or download(repository, "tokenizer.json", "--tokenizer").parent
    for file in TOKENIZER_FILES:
        if (path / file).is_file():
            return read_tokenizer(path / file)
    raise UserError(f"--tokenizer {name}: the folder holds none of {', '.join(TOKENIZER_FILES)}")


def download_tokenizer(repository: str, flag: str) -> Path | None:
    """Download a Hub repository's tokenizer files; their folder in the cache, or None if there are none."""
    from data.hub import download_if_there

    # Settings first: if the network breaks off, other files fail loudly, but settings would be guessed.
    _, *paths = [download_if_there(repository, file, flag) for file in (SETTINGS_FILE, *TOKENIZER_FILES)]
    return next((path.parent for path in paths if path), None)


def read_tokenizer(path: Path) -> Tokenizer | ByteLevelTokenizer:
    """A tokenizer from `vocab.txt`, `tokenizer.json`, or `vocab.json` beside `merges.txt`, with its settings.

    Raises UserError if it is not one.
    """
    if path.suffix != ".json":
        return Tokenizer.from_file(path)
    settings = read_settings(path)
    try:
        if path.name == "vocab.json":
            add_prefix_space = settings.get("add_prefix_space", False)
            return ByteLevelTokenizer.from_files(path, path.with_name("merges.txt"), add_prefix_space)
        fast = tokenizers.Tokenizer.from_file(str(path))
        if isinstance(fast.model, models.WordPiece):
            normalizer = bert_normalizer(settings) or fast.normalizer
            vocab = _tokens_by_id(fast.get_vocab(with_added_tokens=False))
            return Tokenizer(vocab, normalizers.Sequence([]) if normalizer is None else normalizer)
        if "add_prefix_space" in settings and isinstance(fast.pre_tokenizer, pre_tokenizers.ByteLevel):
            fast.pre_tokenizer.add_prefix_space = settings["add_prefix_space"]
        return ByteLevelTokenizer(fast)
    except Exception as error:  # the Rust library knows no other class
        raise UserError(f"{path} cannot be read as a tokenizer: {error}") from error


def _tokens_by_id(ids: dict[str, int]) -> list[str]:
    """The token of each id. An id without a token, which a line twice in a vocab.txt leaves, gets a name that
    no text ever has.
    """
    tokens = {index: token for token, index in ids.items()}
    return [tokens.get(index, f"[no token {index}]") for index in range(max(tokens, default=-1) + 1)]
