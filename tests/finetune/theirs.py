"""Transformers' side of a fine-tuning run: the same weights, order, rates; a loss a step."""

import torch
import transformers

from bert.saving import save_pretrained
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from finetune.prepare import prepare
from finetune.run import finetune


def train_theirs(model, feed, config, batches, rates):
    """Train their model; return each step's loss.

    Args:
        model: theirs, with the weights to begin from; its dropout must be 0.
        feed: keyword arguments of its forward pass, labels too, for a list of rows.
        config: a FinetuneConfig, for the optimiser's settings.
        batches: a ShuffledBatches, for the order of the rows.
        rates: the learning rate of each step.
    """
    model.train()
    decayed = [p for n, p in model.named_parameters() if n.endswith("weight") and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (n.endswith("weight") and p.ndim == 2)]
    training = config.training
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        betas=training.betas, eps=training.eps,
    )  # fmt: skip
    losses = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        window = range(step * training.accumulation, (step + 1) * training.accumulation)
        loss = model(**feed([i for index in window for i in batches.chosen(index)])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def both_losses(config, initial, auto_class, make_feed):
    """Run `config`, and the same through transformers; return our steps' log lines, their losses.

    Args:
        config: of a run without dropout.
        initial: a directory for the weights to begin from.
        auto_class: of transformers, such as AutoModelForTokenClassification.
        make_feed: makes `feed` of `train_theirs`, given their tokenizer.
    """
    prepared = prepare(config)
    model = prepared.build_model(choose_hardware(config.training))
    save_pretrained(model, initial, prepared.tokenizer)
    finetune(config)
    steps = list(read_log(config.out / "log.jsonl", "step"))
    feed = make_feed(transformers.AutoTokenizer.from_pretrained(initial))
    rates = [step["learning_rate"] for step in steps]
    theirs = auto_class.from_pretrained(initial)
    return steps, train_theirs(theirs, feed, config, prepared.batches, rates)
