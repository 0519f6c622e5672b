# PYTHON_ARGCOMPLETE_OK
"""Write a pretrained or fine-tuned transformer as a folder that the transformers library loads.

python export.py RUN_FOLDER OUTPUT_FOLDER
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, positional


@dataclass
class ExportConfig(Arguments):
    title = "export"

    run_folder: str = positional("run folder of a pretraining, or of a fine-tuning without adapters")
    output_folder: str = positional("folder to write")


if __name__ == "__main__":
    config = parse_arguments(ExportConfig, __doc__)  # before the slow imports: --help answers at once

from pathlib import Path

from checkpoints.families import find_family, to_theirs
from checkpoints.files import CONFIG, WEIGHTS, read_run_config, save_weights, write_json
from checkpoints.pretrained import open_checkpoint
from config.errors import UserError
from data.tokenization import load_tokenizer


def export(config: ExportConfig) -> None:
    """Write the transformer of a run folder, its LM head and its tokenizer for the transformers library.

    Raises UserError for a model that transformers does not have.
    """
    folder, output = Path(config.run_folder), Path(config.output_folder)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"OUTPUT_FOLDER {output} is not an empty folder; name a new one")
    if read_run_config(folder, "RUN_FOLDER").get("base"):
        raise UserError(f"RUN_FOLDER {folder} has only adapters, which transformers has no place for")
    checkpoint, tokenizer = open_checkpoint(str(folder), "RUN_FOLDER"), load_tokenizer(str(folder))
    family = find_family(checkpoint.config, f"RUN_FOLDER {folder}")
    settings, weights = to_theirs(checkpoint.config, checkpoint.weights, family)
    special = {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
    }
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.export(output, checkpoint.config.causal, checkpoint.config.num_max_positions)
    save_weights(output / WEIGHTS, weights, {"format": "pt"})  # transformers 4 refuses a header without it
    write_json(output / CONFIG, settings | special)
    print(f"{settings['architectures'][0]} in {output}")


if __name__ == "__main__":
    run_script(export, config)
