"""What a run trains on and is judged by: its vocabulary, its texts, their pairs.

Each was given, lies in the directory of the run already, or is made there.
"""

import os
import shutil
from pathlib import Path

from bert.checkpoint import model_directory
from bert.tokenization import Tokenizer
from bert.training.phases import Phase
from bert.training.progress import say
from pretrain.batches import PretrainingBatch, PretrainingBatches, held_out_batches
from pretrain.config import PretrainConfig
from pretrain.corpus import TOKENIZER, Corpus
from pretrain.documents import Rows, describe_sources
from pretrain.masking import MaskRecipe, MaskSchedule
from pretrain.place_aside import delete_leftovers
from pretrain.preparation import prepare
from pretrain.prepare import read_text


def find_tokenizer(config: PretrainConfig) -> Tokenizer:
    """Load the tokenizer that was given or that this run has learned, or learn one."""
    if not config.is_learned:
        if config.tokenizer is None and config.data is not None:
            return Tokenizer.load(Corpus.open(config.data).directory / TOKENIZER)
        return Tokenizer.load(config.tokenizer or model_directory(Path(config.model)))
    home = config.out / "tokenizer"
    if (home / "tokenizer.json").exists():
        return Tokenizer.load(home)
    files = (*config.files, *config.domain_files)
    describe_sources(files)
    say(f"learning a vocabulary of {config.vocab_size:,} tokens")
    text = read_text(files, Rows())
    tokenizer = Tokenizer.train(text, config.vocab_size, lowercase=not config.cased)
    partial = config.out / ".tokenizer.partial"  # moved into place whole
    shutil.rmtree(partial, ignore_errors=True)
    tokenizer.save(partial, model_max_length=config.max_length)
    partial.rename(home)
    return tokenizer


def open_corpus(files: tuple[Path, ...], home: Path, tokenizer: Tokenizer) -> Corpus:
    """Open the prepared files, preparing them first if that hasn't been done.

    Raises:
        ValueError: what lies there was prepared from other files or another tokenizer.
    """
    if not home.exists():
        return prepare(files, home, tokenizer, workers=os.cpu_count() or 1)
    delete_leftovers(home)
    corpus = Corpus.open(home, verify=True)
    corpus.check_tokenizer(tokenizer)
    if corpus.manifest["sources"] != describe_sources(files):
        raise ValueError(
            f"files: expected those that {home} was prepared from, got others; "
            f"choose another out, or delete it"
        )
    return corpus


def training_corpus(config: PretrainConfig, tokenizer: Tokenizer) -> Corpus:
    """Open what was prepared for many runs, or prepare the files for this one."""
    if config.data is None:
        return open_corpus(config.files, config.out / "data" / "train", tokenizer)
    corpus = Corpus.open(config.data, verify=True)
    corpus.check_tokenizer(tokenizer)
    return corpus


def make_phases(
    config: PretrainConfig, corpus: Corpus, tokenizer: Tokenizer
) -> list[Phase[PretrainingBatch]]:
    """Make the micro-batches of each phase."""
    phases, until = [], 0.0
    for shape in config.parsed_phases():
        until += shape.share
        batches = PretrainingBatches(
            corpus,
            tokenizer,
            max_length=shape.max_length,
            tokens_per_batch=shape.tokens_per_batch,
            seed=config.seed,
            masks=_masks(config),
            short_probability=config.short_pairs,
            task=config.pair_task,
        )
        name = f"phase {shape.name}: " if shape.name else ""
        say(f"{name}an epoch is {batches.batches_per_epoch:,} micro-batches")
        phases.append(Phase(shape.name, until, batches))
    return phases


def _masks(config: PretrainConfig) -> MaskRecipe | MaskSchedule | None:
    """Say how much is masked in training."""
    if not config.is_masked:
        return None
    recipe = MaskRecipe(config.mask_rate, whole_words=config.whole_words)
    if config.final_mask_rate is None:
        return recipe
    steps = config.training.total().steps
    assert steps is not None  # PretrainConfig refuses another budget
    return MaskSchedule(recipe, config.final_mask_rate, steps * config.training.accumulation)


def held_out(
    config: PretrainConfig, corpus: Corpus, tokenizer: Tokenizer
) -> list[PretrainingBatch]:
    """Make the batches that the run is judged on; none where nothing is held out."""
    if config.validation_files:
        home = config.out / "data" / "validation"
        text = open_corpus(config.validation_files, home, tokenizer)
    else:
        text = corpus.held_out()
    if text is None:
        config.refuse_evaluations()
        say("no text is held out (--validation-files), so the run is not evaluated")
        return []
    return held_out_batches(
        text,
        tokenizer,
        max_length=config.max_length,
        tokens_per_batch=config.tokens_per_batch,
        tokens=config.evaluation_tokens,
        is_masked=config.is_masked,
        task=config.pair_task,
    )


def domain(config: PretrainConfig, tokenizer: Tokenizer) -> list[Corpus]:
    """Prepare the text that only the word vectors heed; nothing without domain files."""
    if not config.domain_files:
        return []
    return [open_corpus(config.domain_files, config.out / "data" / "domain", tokenizer)]
