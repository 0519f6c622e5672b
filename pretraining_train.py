# PYTHON_ARGCOMPLETE_OK
"""Pretrain a transformer with a language-modelling objective, on one device or many.

python pretraining_train.py                                    the tutorial's 50M model on WikiText-103
python pretraining_train.py run_configs/wikitext-2.json        a preset; flags override it
torchrun --nproc_per_node 8 pretraining_train.py               8 GPUs
"""

from dataclasses import dataclass

from config.command_line import parse_arguments, run_script
from config.flags import flag
from config.groups import ModelArguments, OptimizationArguments


@dataclass
class PretrainingConfig(ModelArguments, OptimizationArguments):
    title = "data"

    dataset_path: str = flag(
        "wikitext-103", "a corpus or a task of run_configs/, hub:owner/name[:config], a folder or a file"
    )
    text_column: str | None = flag(
        None, "column of the texts, for data from the Hub or in tables (default: text)"
    )
    dataset_cache: str = flag("dataset_cache", "folder for encoded corpora")
    tokenizer: str = flag(
        "bert-base-cased",
        "a model of the Hub, a vocab.txt or tokenizer.json, train:SIZE or train:SIZE:uncased",
    )
    mlm_probability: float = flag(0.15, "fraction of the tokens to predict, for mlm", least=0.001, most=1)
    eval_at_start: bool = flag(False, "evaluate before the first step, too")
    initial_embeddings: str = flag(
        "random", "lsa: start from latent semantic analysis of the corpus", ("random", "lsa")
    )


if __name__ == "__main__":
    config = parse_arguments(PretrainingConfig, __doc__)  # before the slow imports: --help answers at once

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from ignite.engine import Engine
from ignite.metrics import Loss, MetricsLambda
from torch import nn

from config.constants import IGNORE_INDEX
from config.model import transformer_config
from data.corpus import Corpus, CorpusBatches, EvaluationBlocks, load_corpus
from data.fast_tokenizers import FastTokenizer
from data.masking import Masking
from data.token_file import count_ids
from experiments.notify import notified
from pretraining_model import TransformerWithLMHead
from pretraining_sampling import generate
from training.evaluation import BestWeights
from training.loop import count_parameters, fit
from training.optimizers import build_optimizers
from training.resuming import check_resumable, rows_per_process, step_sizes
from training.step import LoopOptions, Objective
from utils import Batch, Run, finish_run, open_folder, show, start_run


@notified
def pretrain(config: PretrainingConfig) -> dict[str, float]:
    """Pretrain a model; return `loss`, `ppl` and `word_ppl` of its best evaluation, `tokens_per_second`, ….

    Raises UserError for input that cannot be used.
    """
    run = start_run(config)

    # The corpus is encoded once; later runs map its token ids from the cache.
    corpus = load_corpus(config.dataset_path, config.tokenizer, config.dataset_cache, config.text_column)
    mask = Masking(corpus.tokenizer, config.mlm_probability) if config.mlm else None
    n_rows = rows_per_process(config, run)
    batches = CorpusBatches(
        corpus.train.ids, config.num_max_positions, n_rows, config.seed, run.rank, run.world_size, mask
    )
    check_resumable(config, run, len(batches))

    # The model is on its device before the optimizers see its parameters.
    model = TransformerWithLMHead(transformer_config(config, len(corpus.tokenizer)))
    initialize_from_counts(model, corpus, config)
    model.transformer.gradient_checkpointing = config.gradient_checkpointing
    optimizers = build_optimizers(model.to(run.device), config)

    # All input has been read. Only now is a folder written, so that a mistake overwrites nothing.
    write_run_folder(run, corpus, model, step_sizes(batches))

    # The best weights are those with the lowest validation loss.
    evaluate = create_evaluation(model, corpus, mask, run, config)
    best = BestWeights(run, model.state_dict, "loss", higher_is_better=False)
    objective = Objective(lm_losses, lm_counts, {"lm": 1.0})
    options = LoopOptions.from_flags(config, batches)
    progress = fit(model, optimizers, objective, batches, evaluate, best, run, options)

    n_parameters, n_trained = count_parameters(model)
    metrics = {"n_steps": progress.n_steps, "tokens_per_second": progress.tokens_per_second}
    return finish_run(run, best.best | metrics | {"n_parameters": n_parameters, "n_trained": n_trained})


def initialize_from_counts(model: TransformerWithLMHead, corpus: Corpus, config: PretrainingConfig) -> None:
    """Initialize the output bias and, with `lsa`, the embeddings from token counts of the training corpus."""
    embeddings = model.transformer.token_embeddings.weight
    if model.output_bias is not None:
        counts = count_ids(corpus.train.ids, len(embeddings)) + 1
        model.output_bias.data = torch.from_numpy(np.log(counts / counts.sum())).float()
    if config.initial_embeddings == "lsa":
        from data.lsa import latent_semantic_analysis  # scikit-learn takes a second to import

        embeddings.data = latent_semantic_analysis(
            embeddings.data, corpus.train.ids, config.num_max_positions
        )


def write_run_folder(run: Run, corpus: Corpus, model: TransformerWithLMHead, sizes: dict[str, int]) -> None:
    """Make the run folder self-contained: config.json and the tokenizer."""
    open_folder(run, model=dataclasses.asdict(model.config), **sizes)
    if run.is_main:
        corpus.tokenizer.save(run.folder / corpus.tokenizer.file)
    show(
        f"{count_parameters(model)[0]:,} parameters · {len(corpus.train.ids):,} training tokens"
        f" · {len(corpus.valid.ids):,} validation tokens · vocabulary of {len(corpus.tokenizer):,}"
    )


def lm_losses(model: nn.Module, batch: Batch) -> dict:
    """The summed language-modelling loss of a batch."""
    return {"lm": model(**batch)}


def lm_counts(batch: Batch) -> dict:
    """How many tokens are predicted; at least 1, because masking may choose none."""
    return {"lm": (batch["labels"] != IGNORE_INDEX).sum().clamp(min=1)}


def create_evaluation(
    model: TransformerWithLMHead, corpus: Corpus, mask: Masking | None, run: Run, config: PretrainingConfig
) -> Callable[[], dict[str, float]]:
    """A function that computes loss, ppl and, without masking, word_ppl on the validation corpus."""
    ids, n_words = corpus.valid.ids, corpus.valid.n_words
    blocks = EvaluationBlocks(
        ids, config.num_max_positions, config.valid_batch_size, run.rank, run.world_size, mask
    )

    @torch.inference_mode()
    def inference(engine: Engine, batch: Batch):
        model.eval()
        batch = run.to_device(batch)
        n_labels = (batch["labels"] != IGNORE_INDEX).sum()
        with run.autocast():
            return model(**batch) / n_labels.clamp(min=1), n_labels

    evaluator = Engine(inference)
    # A mean per token: of each batch's mean, weighted by its number of labels.
    nll = Loss(lambda loss, n_labels: loss, batch_size=lambda n_labels: n_labels, device=run.device)
    nll.attach(evaluator, "loss")
    MetricsLambda(perplexity, nll).attach(evaluator, "ppl")
    if mask is None:  # http://sjmielke.com/comparing-perplexities.htm
        tokens_per_word = (len(ids) - 1) / n_words
        MetricsLambda(lambda loss: perplexity(loss * tokens_per_word), nll).attach(evaluator, "word_ppl")

    def evaluate() -> dict[str, float]:
        if mask is None and run.events:
            text = sample_text(model, corpus.tokenizer, run.device, config.seed)
            run.events.add_text("sample", text, run.step)
        return dict(evaluator.run(blocks).metrics)

    return evaluate


def perplexity(nll: float) -> float:
    """Of a mean negative log-likelihood; infinity if it overflows."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def sample_text(
    model: TransformerWithLMHead,
    tokenizer: FastTokenizer,
    device: torch.device,
    seed: int,
    n_tokens: int = 40,
) -> str:
    """What the model writes after the end of a text."""
    start = torch.full((1, 1), tokenizer.sep_id, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    tokens = generate(model, start, n_tokens, top_p=0.9, generator=generator)
    return tokenizer.decode(int(token) for token in tokens)


if __name__ == "__main__":
    run_script(pretrain, config)
