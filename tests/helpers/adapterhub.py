"""Reference outputs of AdapterHub's library with random weights, for tests/layers/test_adapterhub.py.

    python adapterhub.py FOLDER

For each model family, it writes a folder with the transformer and, for each kind of adapter, a file with the
adapter weights, the input and the hidden states. It imports nothing of this project: it runs in an
environment that has the library, with an older version of transformers than ours.
"""

import sys
from pathlib import Path

import adapters
import safetensors.torch
import torch
import transformers
from adapters.composition import Fuse

SIZES = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 24,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 24},
}
CONFIGS = {
    "houlsby": adapters.DoubleSeqBnConfig(reduction_factor=4, non_linearity="gelu"),
    "pfeiffer": adapters.SeqBnConfig(reduction_factor=4),
    "lora": adapters.LoRAConfig(r=4, alpha=8),
    "fusion": adapters.SeqBnConfig(reduction_factor=4),
}


def new_model(family: str) -> torch.nn.Module:
    """A model of the family, with the same weights at every call."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, vocab_size=97, **SIZES[family])
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


def with_adapters(family: str, kind: str) -> torch.nn.Module:
    """The same model with active, randomly initialized adapters."""
    model, names = new_model(family), ["one", "two"] if kind == "fusion" else ["one"]
    adapters.init(model)
    for name in names:
        model.add_adapter(name, config=CONFIGS[kind])
    if kind == "fusion":
        model.add_adapter_fusion(names)
    model.set_active_adapters(Fuse(*names) if kind == "fusion" else names)
    for name, parameter in model.named_parameters():
        if is_adapter_weight(name):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def is_adapter_weight(name: str) -> bool:
    return any(module in name for module in (".adapters.", ".loras.", ".adapter_fusion_layer."))


def main(folder: Path) -> None:
    """Write the files of all families and kinds."""
    input_ids = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(1))
    attention_mask = (torch.arange(20) < torch.tensor([[20], [13], [1]])).long()
    for family in SIZES:
        new_model(family).save_pretrained(folder / family)
        for kind in CONFIGS:
            model = with_adapters(family, kind)
            with torch.no_grad():
                hidden_states = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            tensors = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "hidden_states": hidden_states,
            }
            for name, tensor in model.state_dict().items():
                if is_adapter_weight(name):
                    tensors[name] = tensor.contiguous()
            safetensors.torch.save_file(tensors, folder / family / f"{kind}.adapters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
