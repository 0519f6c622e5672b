# PYTHON_ARGCOMPLETE_OK
"""Continue a prompt with a pretrained causal model.

python pretraining_generate.py runs/quickstart/pretrained "This film is"
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import Arguments, flag, positional


@dataclass
class GenerationConfig(Arguments):
    title = "sampling"

    run_folder: str = positional("run folder of a pretraining")
    prompt: str = positional("text to continue")
    n_tokens: int = flag(60, "tokens to generate", least=1)
    n_samples: int = flag(1, "continuations to generate", least=1)
    temperature: float = flag(
        0.8, "divides the logits: below 1 safer, above 1 bolder; 0: always the likeliest token", least=0
    )
    top_k: int = flag(0, "sample among the k likeliest tokens; 0: among all", least=0)
    top_p: float = flag(
        0.95, "sample among the fewest tokens whose probabilities add up to p", least=0.01, most=1
    )
    seed: int = flag(42, "seed of the sampling")
    device: str = flag("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, mps …")


if __name__ == "__main__":
    config = parse_arguments(GenerationConfig, __doc__)  # before the slow imports: --help answers at once

import torch

from checkpoints.pretrained import load_pretrained
from config.errors import UserError
from pretraining_sampling import generate
from utils import choose_device


def continue_prompt(config: GenerationConfig) -> list[str]:
    """Generate and print `n_samples` continuations; return them with the prompt in front."""
    device = choose_device(config.device)
    model, tokenizer = load_pretrained(config.run_folder, "RUN_FOLDER")
    model.to(device)
    if not model.config.causal:
        raise UserError(
            f"{config.run_folder} is a masked language model, which cannot continue a text;"
            " pretrain without --mlm"
        )
    # In the corpus, a text follows the [SEP] that ends the one before.
    prompt_ids = [tokenizer.sep_id, *tokenizer.encode(config.prompt)]
    prompt = torch.tensor([prompt_ids] * config.n_samples, device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    tokens = generate(
        model, prompt, config.n_tokens, config.temperature, config.top_k, config.top_p, generator
    )
    input_ids = torch.cat((prompt, torch.stack(list(tokens), dim=1)), dim=1)
    texts = [tokenizer.decode(row[1:]) for row in input_ids.tolist()]
    print(*texts, sep="\n")
    return texts


if __name__ == "__main__":
    run_script(continue_prompt, config)
