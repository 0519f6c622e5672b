"""A checkpoint's settings for its tokenizer: what becomes of case, accents and spaces."""

from pathlib import Path

from tokenizers import normalizers

from config.errors import UserError
from config.presets import read_json

SETTINGS_FILE = "tokenizer_config.json"  # beside the file of a tokenizer
BERT_SETTINGS = {  # → arguments of BertNormalizer
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
SETTINGS = (*BERT_SETTINGS, "add_prefix_space")
# Classes of `transformers` that take tokenizer.json as it is. Those of a model family take only its
# vocabulary, and the rest from tokenizer_config.json.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def read_settings(path: Path) -> dict[str, bool]:
    """The settings in `tokenizer_config.json` beside a tokenizer's file that `transformers` would heed.

    Raises UserError for a value that is neither true nor false.
    """
    file = path.with_name(SETTINGS_FILE)
    config = read_json(file) if file.is_file() else {}
    is_tokenizer_json = path.suffix == ".json" and path.name != "vocab.json"
    if is_tokenizer_json and config.get("tokenizer_class") in GENERIC_CLASSES:
        return {}
    settings = {name: config[name] for name in SETTINGS if config.get(name) is not None}
    for name, value in settings.items():
        if not isinstance(value, bool):
            raise UserError(f"{file}: {name} must be true or false, not {value!r}")
    return settings


def bert_normalizer(settings: dict[str, bool]) -> normalizers.BertNormalizer | None:
    """The normalizer that the settings describe, with the defaults of `transformers`; None without any."""
    options = {BERT_SETTINGS[name]: value for name, value in settings.items() if name in BERT_SETTINGS}
    return normalizers.BertNormalizer(**options) if options else None
