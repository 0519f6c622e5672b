"""A source: a model that was fine-tuned on a task, as its run folder has it."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.files import WEIGHTS, file_digest, read_run_config
from checkpoints.finetuned import load_finetuned
from config.errors import UserError
from config.finetuning import FinetuningConfig
from config.flags import replace
from config.presets import arguments_of_run
from finetuning_model import TransformerWithClfHead
from tasks.embedding import TaskTexts
from tasks.examples import choose_subset
from tasks.task import Task, open_task


@dataclass
class FinetunedSource:
    """What a run folder of finetuning_train.py says of its task and its model."""

    folder: Path
    arguments: FinetuningConfig
    task: Task

    @classmethod
    def open(cls, folder: str | Path, dataset_cache: str) -> "FinetunedSource":
        """Raises UserError for a folder that is no such run, or if its data is gone."""
        config = read_run_config(folder, "--sources")
        if "head" not in config or "kind" not in config:
            raise UserError(f"--sources {folder} is not a run of finetuning_train.py")
        arguments = FinetuningConfig(**arguments_of_run(FinetuningConfig, str(folder)))
        arguments = replace(arguments, dataset_cache=dataset_cache)
        return cls(Path(folder), arguments, open_task(arguments, str(folder)))

    @property
    def pooling(self) -> str:
        """What its head reads, which is what its texts are embedded as."""
        return self.arguments.pooling

    @property
    def seen(self) -> np.ndarray:
        """Indices of the training examples that the model was trained on."""
        labels = self.task.train.labels
        return choose_subset(labels, self.arguments.train_subset_size or len(labels), self.arguments.seed)

    def texts(self, at_most: int) -> TaskTexts:
        """These examples, some drawn by the seed if there are more."""
        drawn = np.random.default_rng(self.arguments.seed).permutation(self.seen)[:at_most]
        return TaskTexts(self.task, np.sort(drawn), self.arguments)

    def reference(self, folder: Path) -> dict[str, object]:
        """What config.json in a folder of a pool says of the model that it represents."""
        return {
            "path": str(self.folder.resolve()),
            "relative_path": os.path.relpath(self.folder.resolve(), folder.resolve()),
            "sha256": file_digest(self.folder / WEIGHTS),
            "arguments": dataclasses.asdict(self.arguments),
        }

    def valid_texts(self, at_most: int) -> TaskTexts:
        """Examples that it has not seen."""
        n_examples = len(self.task.examples("valid"))
        chosen = np.sort(np.random.default_rng(0).permutation(n_examples)[:at_most])
        return TaskTexts(self.task, chosen, self.arguments, "valid")

    def model(self) -> TransformerWithClfHead:
        """The fine-tuned model, with its head."""
        return load_finetuned(self.folder, "--sources")
