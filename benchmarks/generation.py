"""Generating 200 tokens, compared with transformers' `generate` with the same weights.

python benchmarks/generation.py
"""

import statistics

import torch
from common import gpt2_config, gpt2_weights, median_ratio, parse, pretrained, record, seconds, side_by_side

from checkpoints.pretrained import load_pretrained
from pretraining_sampling import generate

N_TOKENS, PROMPT = 200, 20


def main() -> None:
    """Measure greedy decoding for one text and for 16, and record."""
    import transformers

    parse(__doc__)
    folder = pretrained(activation="gelu_new", output_bias=False)  # as GPT-2 has it
    model = load_pretrained(folder, "RUN_FOLDER")[0].eval()
    peer = transformers.GPT2LMHeadModel(gpt2_config(model.config.num_embeddings)).eval()
    peer.transformer.load_state_dict(gpt2_weights(model))
    figures = {}
    for batch in (1, 16):
        prompt = torch.randint(
            5, model.config.num_embeddings, (batch, PROMPT), generator=torch.Generator().manual_seed(0)
        )

        def ours(prompt=prompt) -> torch.Tensor:
            return torch.stack(list(generate(model, prompt, N_TOKENS, temperature=0)), 1)

        def theirs(prompt=prompt) -> torch.Tensor:
            tokens = peer.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=N_TOKENS,
                min_new_tokens=N_TOKENS,
                pad_token_id=0,
                eos_token_id=None,
            )
            return tokens[:, PROMPT:]

        same = (ours() == theirs()).float().mean().item()
        spent = side_by_side(5, ours=lambda: seconds(ours), theirs=lambda: seconds(theirs))
        figures[f"batch_{batch}"] = {
            "ratio": median_ratio(spent["theirs"], spent["ours"]),
            "tokens_per_second": {
                name: round(batch * N_TOKENS / statistics.median(values)) for name, values in spent.items()
            },
            "same_tokens": same,
        }
    record(
        "generation_vs_transformers",
        ratio=figures["batch_1"]["ratio"],
        **figures,
        peer="transformers' generate",
    )


if __name__ == "__main__":
    main()
