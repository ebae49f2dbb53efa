"""The whole path on embedded data. Read `run` from the top.

OUT/
    demo.json                the budget's shares, kept for a run that goes on
    shape/config.json        the network
    reviews.txt              the film reviews' texts, without their labels
    pretrain/                see pretrain/run.py
    finetune-pretrained/     see finetune/run.py
    finetune-scratch/        the same network, drawn at random
    report.md, losses.png    what came out
"""

import json
import lzma
import os
import time
from pathlib import Path

from bert.config import read_json
from bert.training.progress import say
from bert.training.run_directory import refuse_file
from demo import recipe
from demo.config import DemoConfig
from demo.report import Outcome, compare_with_transformers, fill_in, write_report
from finetune.run import FinetuneResult, finetune
from pretrain.config import PretrainConfig
from pretrain.material import find_tokenizer, open_corpus
from pretrain.run import PretrainResult, pretrain

MINIMUM = 10.0
"""Seconds that a part is given at least; without them there is nothing to see."""


class Ledger:
    """How long the demo has taken, over all its starts, and how long each part may take.

    It is kept in a file, so that a run that goes on keeps the budgets that its parts began with.

    Raises:
        ValueError: the file is of a run with another budget or seed.
    """

    def __init__(self, path: Path, settings: dict[str, float]) -> None:
        self.path, self.settings = path, settings
        self.budgets: dict[str, float] = {}
        self.before = 0.0
        if path.exists():
            found = read_json(path)
            if found["settings"] != settings:
                asked, was = (
                    f"--budget {given['budget']:.0f}s --seed {given['seed']:.0f}"
                    for given in (settings, found["settings"])
                )
                raise ValueError(
                    f"out: expected an empty directory for {asked}, but {path.parent} has a run "
                    f"of {was}; delete it to begin anew"
                )
            self.budgets, self.before = found["budgets"], found["spent"]
        self.started = time.monotonic()

    def spent(self) -> float:
        """Return the seconds so far."""
        return self.before + time.monotonic() - self.started

    def budget(self, part: str, share: float) -> str:
        """Give a part its share of what is left, or what it was given before.

        A part of a run that is late still has `MINIMUM` seconds: a demo ends in a report.
        """
        if part not in self.budgets:
            left = self.settings["budget"] - self.spent() - recipe.RESERVE
            if share * left < MINIMUM:
                say(f"the budget is used up: {MINIMUM:.0f} s for this part all the same")
            self.budgets[part] = max(share * left, MINIMUM)
            self.save()
        return f"{self.budgets[part]:.1f}s"

    def save(self) -> None:
        """Write it down, whole or not at all."""
        content = {"settings": self.settings, "budgets": self.budgets, "spent": self.spent()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, self.path)


def run(config: DemoConfig) -> int:
    """Run the demo, or go on with it; return the exit code."""
    refuse_file(config.out)
    settings = {"budget": config.seconds, "seed": config.seed}
    ledger = Ledger(config.out / "demo.json", settings)
    try:
        return run_parts(config, ledger)
    finally:
        ledger.save()


def run_parts(config: DemoConfig, ledger: Ledger) -> int:
    """Run the five parts, each of which finds what it had done before."""
    out = config.out
    shape = write_shape(out / "shape" / "config.json")
    reviews = write_texts(recipe.DATA / "mr" / "train.tsv.xz", out / "reviews.txt")

    def plan(budget: str) -> PretrainConfig:
        return recipe.pretraining(shape, reviews, out / "pretrain", config.seed, budget)

    heading(1, "a vocabulary and token ids from public-domain books")
    prepare(plan("1"))

    budget = ledger.budget("pretraining", recipe.PRETRAINING_SHARE)
    heading(2, f"pretraining on masked words and next sentences, for {budget}")
    pretrained = pretrain(plan(budget))
    if pretrained.model is None:
        return stopped(pretrained)

    budget = ledger.budget("finetuning", 0.5)
    outcomes: dict[str, FinetuneResult] = {}
    for number, name in ((3, "pretrained"), (4, "scratch")):
        heading(number, f"fine-tuning on {recipe.LABELS} film reviews, {name}, for {budget}")
        outcomes[name] = finetune(
            recipe.finetuning(
                pretrained.model,
                out / f"finetune-{name}",
                config.seed,
                budget,
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
        seconds=ledger.spent(),
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


def write_texts(rows: Path, path: Path) -> Path:
    """Write the texts of labelled rows as plain text, each a document."""
    with lzma.open(rows, "rt", encoding="utf-8") as file:
        texts = [line.split("\t")[0] for line in file][1:]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def prepare(plan: PretrainConfig) -> None:
    """Learn the vocabulary and tokenize the texts, unless that is done."""
    tokenizer = find_tokenizer(plan)
    parts = {
        "train": plan.files, "validation": plan.validation_files, "domain": plan.domain_files
    }  # fmt: skip
    for purpose, files in parts.items():
        open_corpus(files, plan.out / "data" / purpose, tokenizer)
