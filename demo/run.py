"""The whole path on embedded data. Read `run` from the top.

OUT/
    demo.json                the budget's shares, kept for a run that goes on
    shape/config.json        the network
    pretrain/                see pretrain/run.py
    finetune-pretrained/     see finetune/run.py
    finetune-scratch/        the same network, drawn at random
    report.md, losses.png    what came out
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bert.config import read_json
from bert.training.progress import say
from demo import recipe
from demo.config import DemoConfig
from demo.report import Outcome, compare_with_transformers, fill_in, write_report
from finetune.run import FinetuneResult, finetune
from pretrain.run import PretrainResult, find_tokenizer, open_corpus, pretrain


@dataclass(frozen=True)
class Budgets:
    """Seconds for each part, once it is known how long the preparation took."""

    preparation: float
    pretraining: float
    finetuning: float
    """Of one of the two."""

    @staticmethod
    def split(total: float, preparation: float) -> "Budgets":
        """Share out what the preparation left.

        Raises:
            ValueError: it left nothing to train in.
        """
        left = total - preparation - recipe.RESERVE
        if left < 10:
            raise ValueError(
                f"budget: expected at least {preparation + recipe.RESERVE + 10:.0f}s on this "
                f"machine, since preparing the text took {preparation:.0f}s, got {total:.0f}s"
            )
        finetuning = (1 - recipe.PRETRAINING_SHARE) * left / 2
        return Budgets(preparation, recipe.PRETRAINING_SHARE * left, finetuning)


def run(config: DemoConfig) -> int:
    """Run the demo, or go on with it; return the exit code."""
    started = time.monotonic()
    out = config.out
    shape = write_shape(out / "shape" / "config.json")

    heading(1, "a vocabulary and token ids from public-domain books")
    budgets = prepare(config, shape)

    heading(2, f"pretraining on masked words and next sentences, {budgets.pretraining:.0f} s")
    pretrained = pretrain(
        recipe.pretraining(shape, out / "pretrain", config.seed, f"{budgets.pretraining:.1f}s")
    )
    if pretrained.model is None:
        return stopped(pretrained)

    outcomes: dict[str, FinetuneResult] = {}
    for number, name in ((3, "pretrained"), (4, "scratch")):
        heading(number, f"fine-tuning on film reviews, {name}, {budgets.finetuning:.0f} s")
        outcomes[name] = finetune(
            recipe.finetuning(
                pretrained.model,
                out / f"finetune-{name}",
                config.seed,
                f"{budgets.finetuning:.1f}s",
                from_scratch=name == "scratch",
            )
        )
        if outcomes[name].model is None:
            return stopped(outcomes[name])

    heading(5, "the saved models in transformers")
    directories = [pretrained.model, *(o.model for o in outcomes.values() if o.model)]
    outcome = Outcome(
        out,
        config,
        pretrained,
        outcomes,
        parity=compare_with_transformers(directories),
        examples=fill_in(pretrained.model),
        preparation=budgets.preparation,
        seconds=time.monotonic() - started,
    )
    print(write_report(outcome))
    say(f"report: {out / 'report.md'}")
    return 0


def heading(number: int, text: str) -> None:
    """Say which of the five parts begins."""
    say(f"\n[{number}/5] {text}")


def stopped(result: PretrainResult | FinetuneResult) -> int:
    """Return the exit code of a part that a signal ended; the same command goes on."""
    return result.training.exit_code


def write_shape(path: Path) -> Path:
    """Write the network's configuration where the pretraining looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe.SHAPE.to_dict("BertForPreTraining"), indent=1) + "\n")
    return path


def prepare(config: DemoConfig, shape: Path) -> Budgets:
    """Learn the vocabulary and tokenize the books, unless that is done, and share the time out.

    A run that goes on keeps the shares that it began with.

    Raises:
        ValueError: the budget is too short, or another one than the run began with.
    """
    kept = config.out / "demo.json"
    settings = {"budget": config.seconds, "seed": config.seed}
    if kept.exists():
        found = read_json(kept)
        if found["settings"] != settings:
            raise ValueError(
                f"out: expected an empty directory, or a run with {settings}; "
                f"{kept} has {found['settings']}"
            )
        return Budgets(**found["budgets"])
    started = time.monotonic()
    plan = recipe.pretraining(shape, config.out / "pretrain", config.seed, "1")
    tokenizer = find_tokenizer(plan)
    for files, purpose in ((plan.files, "train"), (plan.validation_files, "validation")):
        open_corpus(files, plan.out / "data" / purpose, tokenizer)
    budgets = Budgets.split(config.seconds, time.monotonic() - started)
    partial = kept.with_name(".demo.json.partial")
    partial.write_text(json.dumps({"settings": settings, "budgets": vars(budgets)}, indent=1))
    os.replace(partial, kept)
    return budgets
