"""The arguments of a grid of transfers."""

from dataclasses import dataclass, fields

from config.finetuning import FinetuningConfig
from config.flags import flag, flags_of, positional
from config.groups import EngineArguments, NotifyArguments

# Flags of finetuning_train.py that the grid sets itself, or that make no sense for all of its trainings.
SET_BY_GRID = {"output_dir", "overwrite", "resume", "local_rank", "notify", "seed", "restarts", "adapters"}
SET_BY_GRID |= {field.name for field in fields(EngineArguments)}


@dataclass
class TransferConfig(EngineArguments, NotifyArguments):
    title = "transfer (all other flags are those of finetuning_train.py, for all trainings)"

    task_map: str = positional(
        'JSON file: "from", "to", "fusion", "recipe", "defaults" (see experiments/task_map.py)'
    )
    training: dict = flags_of(FinetuningConfig, without={*SET_BY_GRID, "dataset_path", "tracker"})
    output_dir: str | None = flag(None, "folder of the grid (default: runs/<name of the task map>)")
    seed: int = flag(42, "seed of the first restart of each cell and source")
    restarts: int = flag(1, "train each cell so many times, with the seeds seed, seed + 1, …", least=1)
    source_restarts: int = flag(
        1, "train each source so many times; the restarts of a cell take turns with them", least=1
    )
    train_subset_size: int | None = flag(
        None, "train on so many examples of each target (default: all, or what the map says)", least=1
    )
    source_train_subset_size: int | None = flag(
        None, "train on so many examples of each source (default: all, or what the map says)", least=1
    )
    keep_models: bool = flag(True, "keep the weights of finished cells; those of sources are always kept")
