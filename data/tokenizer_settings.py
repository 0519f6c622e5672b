"""What becomes of case, accents and spaces, as a checkpoint says it."""

from pathlib import Path

from tokenizers import normalizers

from config.errors import UserError
from config.presets import read_json

SETTINGS_FILE = "tokenizer_config.json"  # lies beside them


BERT_SETTINGS = {  # as BertNormalizer calls them
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


SETTINGS = (*BERT_SETTINGS, "add_prefix_space")


# Classes of `transformers` that take tokenizer.json as it stands. Those of a family take its vocabulary
# alone, and the rest from tokenizer_config.json.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def read_settings(path: Path) -> dict[str, bool]:
    """What `tokenizer_config.json` beside the file of a tokenizer says, where `transformers` heeds it.

    Raises UserError for a value that is neither true nor false.
    """
    file = path.with_name(SETTINGS_FILE)
    config = read_json(file) if file.is_file() else {}
    is_complete = path.suffix == ".json" and path.name != "vocab.json"  # a tokenizer.json
    if is_complete and config.get("tokenizer_class") in GENERIC_CLASSES:
        return {}
    settings = {name: config[name] for name in SETTINGS if config.get(name) is not None}
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise UserError(f"{file}: {name} must be true or false, not {value!r}")
    return settings


def bert_normalizer(settings: dict[str, bool]) -> normalizers.BertNormalizer | None:
    """The normalizer of settings, with the defaults of `transformers`, or None if they say nothing."""
    said = {BERT_SETTINGS[name]: value for name, value in settings.items() if name in BERT_SETTINGS}
    return normalizers.BertNormalizer(**said) if said else None
