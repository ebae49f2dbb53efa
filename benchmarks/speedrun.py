"""The lowest masked-word loss on held-out books that half an hour on two CPU cores can reach.

    python -m benchmarks.speedrun plain best --budget 30min --threads 2
    torchrun --nproc-per-node 2 -m benchmarks.speedrun best --threads 1 --accumulation 2

Trains the recipes that are named, each for the same budget on the books of the demo, judges them
on the same held-out batches, and appends a line of JSON for each to a file. The recipes are in
speedrun_recipes.py. Each is a `bert pretrain` configuration, and its network is saved as a
directory that transformers' BertForPreTraining loads.

Text and vocabulary are prepared once and are in nobody's budget; word vectors are, in that of each
recipe that counts them. With `--clock cpu` the budget is CPU time of the process, so that one
thread on a busy machine gives much the same figure as on a quiet one. Two processes of one thread
(torchrun) train on the same samples as one of two threads: each makes half of a step's batch.

What is judged: 15 % of the tokens of pairs of 128 tokens, 80/10/10, the same for all, in nats a
token (all of them, and those that show [MASK]). A token is another thing in another vocabulary; so
the pieces of whole words are masked as well, and the losses of a word's pieces are added up: nats
a word.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from benchmarks.speedrun_recipes import LENGTH, RECIPES
from bert.checked import Checked
from bert.command import command_line
from bert.config import BertConfig
from bert.pretraining import BertForPreTraining
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from bert.training.distributed import ALONE, World, join
from bert.training.hardware import choose_hardware
from bert.training.loop import train
from bert.training.progress import say
from bert.training.span import parse_span
from demo import recipe as demo
from demo.report import machine
from pretrain.batches import PretrainingBatch, PretrainingBatches, held_out_batches
from pretrain.config import CONFIG_DEFAULTS, PretrainConfig
from pretrain.corpus import TOKENIZER, Corpus
from pretrain.evaluation import evaluate, unigram_log_probabilities
from pretrain.masking import MaskRecipe
from pretrain.material import make_phases
from pretrain.objective import PretrainingObjective
from pretrain.preparation import prepare
from pretrain.prepare import prepare_files
from pretrain.prepare_config import PrepareConfig
from pretrain.start import build_model, read_model_config, start

RESULTS = Path(__file__).parent / "results" / "speedrun.jsonl"
BOOKS = demo.DATA / "books"
BATCH = 4096
"""Tokens of a batch that is judged."""
CLOCKS = {"wall": time.monotonic, "cpu": time.process_time}


@dataclass(frozen=True)
class Speedrun(Checked):
    """Train recipes for the same budget, and judge them on the same text."""

    recipes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names, such as plain and best; the table is in speedrun_recipes.py."""
    budget: str = "30min"
    """Time for the training of each, word vectors included."""
    clock: Literal["wall", "cpu"] = "wall"
    """What the budget is measured by: the clock on the wall, or CPU time of this process."""
    threads: int = 2
    """CPU threads of torch, in each process."""
    accumulation: int = 1
    """Micro-batches that the batch of a step is cut into, one or more for each process."""
    seed: int = 0
    """Of weights, pairs and masks."""
    vocab_size: int = 8192
    """Tokens of the vocabulary that is learned."""
    tokens: int = 100_000
    """Of the held-out text, how many to judge on in each of the two ways, at most."""
    runs: Path = Path("runs/speedrun")
    """Where the prepared text and the runs lie."""
    out: Path = RESULTS
    """A file of JSON lines, to append to."""

    def __post_init__(self) -> None:
        """Check what can be checked before anything is prepared, and name what is wrong."""
        for name in self.recipes:
            self._require("recipes", f"any of {', '.join(RECIPES)}", name in RECIPES)
        seconds = parse_span("budget", self.budget).seconds
        self._require("budget", "a time such as 30min", seconds is not None)
        self._require("accumulation", "1 or more", self.accumulation >= 1)
        self._require("tokens", "1 or more", self.tokens >= 1)


def open_text(home: Path, vocab_size: int) -> tuple[Corpus, Corpus, Tokenizer]:
    """Open the books and the held-out books, preparing them the first time."""
    books, held_out = home / f"books-{vocab_size}", home / f"held-out-{vocab_size}"
    if not books.exists():
        files = tuple(sorted(BOOKS.glob("train-*.txt.xz")))
        prepare_files(PrepareConfig(files, books, vocab_size=vocab_size))
    tokenizer = Tokenizer.load(books / TOKENIZER)
    if not held_out.exists():
        prepare((BOOKS / "validation.txt.xz",), held_out, tokenizer)
    return Corpus.open(books), Corpus.open(held_out), tokenizer


def configure(name: str, config: Speedrun) -> PretrainConfig:
    """Return what `bert pretrain` would be told, but for the text that it is judged on."""
    recipe = RECIPES[name]
    home = config.runs / f"{name}-{config.vocab_size}-{config.budget}-{config.seed}"
    home.mkdir(parents=True, exist_ok=True)
    shape = BertConfig(**recipe.shape, max_position_embeddings=LENGTH)
    (home / "shape.json").write_text(json.dumps(shape.to_dict()), encoding="utf-8")
    settings = PretrainConfig(
        out=home / "run",
        data=config.runs / f"books-{config.vocab_size}",
        model=str(home / "shape.json"),
        seed=config.seed,
        training=replace(
            CONFIG_DEFAULTS,
            **recipe.training,
            budget=config.budget,
            accumulation=config.accumulation,
            evaluate_every=None,
            checkpoint_every=None,
            threads=config.threads,
            device="cpu",
        ),
        **recipe.pretraining,
    ).resolved()
    return replace(
        settings,
        tokens_per_batch=settings.tokens_per_batch // config.accumulation,
        phases=tuple(
            f"{phase.max_length}:{phase.tokens_per_batch // config.accumulation}:{phase.share}"
            for phase in settings.parsed_phases()
            if settings.phases
        ),
    )


def pretrain(
    settings: PretrainConfig,
    corpus: Corpus,
    tokenizer: Tokenizer,
    now: Callable[[], float],
    world: World = ALONE,
) -> tuple[BertForPreTraining, dict[str, Any]]:
    """Train a network as `bert pretrain` does, within the budget; return what it took."""
    budget = settings.training.total().seconds
    assert budget is not None  # `Speedrun` refuses another
    torch.set_num_threads(settings.training.threads or 1)
    started = now()
    shape = replace(
        read_model_config(settings), vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
    )
    model = build_model(settings, shape, choose_hardware(settings.training).kernels)
    unigram = unigram_log_probabilities(torch.from_numpy(corpus.token_counts()))
    start(model, settings, [corpus], unigram)
    spent = now() - started
    trained = train(
        PretrainingObjective(model, settings.tasks),
        make_phases(settings, corpus, tokenizer),
        replace(settings.training, budget=f"{budget - spent:.3f}s"),
        settings.out,
        resume="none",
        overwrite=True,
        world=world,
        clock=now,
    )
    return model, {
        "seconds_before_training": spent,
        "seconds": spent + trained.elapsed,
        "steps": trained.step,
        "tokens": trained.tokens,
        "parameters": shape.parameter_count(),
    }


@torch.no_grad()
def judge(
    model: BertForPreTraining,
    text: Corpus,
    held_out: Corpus,
    tokenizer: Tokenizer,
    tokens: int,
) -> dict[str, float]:
    """Judge a network on batches that are always the same; see the head of this file."""
    model.eval()
    shape: Any = {"max_length": LENGTH, "tokens_per_batch": BATCH}
    unigram = unigram_log_probabilities(torch.from_numpy(text.token_counts()))
    pairs = held_out_batches(held_out, tokenizer, tokens=tokens, **shape)
    results = evaluate(model, pairs, unigram, tokenizer)
    whole = PretrainingBatches(
        held_out, tokenizer, seed=0, masks=MaskRecipe(whole_words=True), **shape
    )
    count = min(max(tokens // BATCH, 1), whole.batches_per_epoch)
    losses, words = 0.0, 0
    for batch in (whole[index] for index in range(count)):
        losses += _loss(model, batch)
        is_piece = whole.vocabulary.is_continuation[batch.masked_labels.numpy()]
        words += int((~is_piece).sum())
    return {**results, "nats_per_word": losses / max(words, 1), "words": words}


def _loss(model: BertForPreTraining, batch: PretrainingBatch) -> float:
    """Sum the losses of the masked tokens."""
    hidden = model.bert.encode(batch.packed).last_hidden_state
    return float(model.mlm_loss(hidden, batch.masked_positions, batch.masked_labels))


def measure(name: str, config: Speedrun) -> dict[str, Any] | None:
    """Train one recipe, save its network in `config.runs` and judge it; the first process does."""
    settings = configure(name, config)
    with join(settings.training) as world:
        with world.first_goes_ahead():
            corpus, held_out, tokenizer = open_text(config.runs, config.vocab_size)
        model, took = pretrain(settings, corpus, tokenizer, CLOCKS[config.clock], world)
        if not world.is_first:
            return None
        save_pretrained(model, settings.out.parent / "model", tokenizer)
        asked = {k: v for k, v in asdict(config).items() if k not in ("recipes", "runs", "out")}
        return {
            "recipe": name,
            **asked,
            "processes": world.size,
            **took,
            **judge(model, corpus, held_out, tokenizer, config.tokens),
            "shape": dict(RECIPES[name].shape),
            "command": command_line("bert pretrain", settings),
            "machine": machine(),
        }


def describe(line: Mapping[str, Any]) -> str:
    """Put the figures of a result into a line."""
    return (
        f"{line['recipe']:24} {line['tokens'] / 1e6:6.2f} M tokens  {line['mlm_loss']:.3f} nats a "
        f"token  {line['nats_per_word']:.3f} a word  [MASK] {line['masked_loss']:.3f} nats, "
        f"{100 * line['masked_accuracy']:.1f} % right"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    try:
        config = tyro.cli(Speedrun)
        for name in config.recipes:
            say(f"\n{name}")
            line = measure(name, config)
            if line is not None:
                with config.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(describe(line), flush=True)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
