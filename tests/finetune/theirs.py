"""Transformers' side of a fine-tuning run: the same weights, order, rates; a loss a step."""

import torch
import transformers

from bert.saving import save_pretrained
from bert.training.hardware import choose_hardware
from bert.training.log import read_log
from finetune.prepare import prepare
from finetune.run import finetune


def train_theirs(model, feed, config, batches, rates, loss_of=None, share=lambda name: 1.0):
    """Train their model; return each step's loss.

    Args:
        model: theirs, with the weights to begin from; its dropout must be 0.
        feed: keyword arguments of its forward pass, labels too, for a list of rows.
        config: a FinetuneConfig, for the optimiser's settings.
        batches: a ShuffledBatches, for the order of the rows.
        rates: the learning rate of each step.
        loss_of: the loss of logits and labels; None: the model's own.
        share: what a parameter has of the learning rate, by its name; 0: it is frozen.
    """
    model.train()
    training = config.training
    groups = []
    for name, parameter in model.named_parameters():
        if share(name) == 0:
            parameter.requires_grad_(False)
            continue
        is_decayed = name.endswith("weight") and parameter.ndim == 2
        decay = training.weight_decay if is_decayed else 0.0
        groups.append({"params": [parameter], "weight_decay": decay, "share": share(name)})
    optimizer = torch.optim.AdamW(groups, betas=training.betas, eps=training.eps)
    losses = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        window = range(step * training.accumulation, (step + 1) * training.accumulation)
        inputs = feed([i for index in window for i in batches.chosen(index)])
        output = model(**inputs)
        loss = output.loss if loss_of is None else loss_of(output.logits, inputs["labels"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def both_losses(config, initial, auto_class, make_feed, **theirs):
    """Run `config`, and the same through transformers; return our steps' log lines, their losses.

    Args:
        config: of a run without dropout.
        initial: a directory for the weights to begin from.
        auto_class: of transformers, such as AutoModelForTokenClassification.
        make_feed: makes `feed` of `train_theirs`, given their tokenizer.
        theirs: further arguments of `train_theirs`.
    """
    prepared = prepare(config)
    model = prepared.build_model(choose_hardware(config.training))
    save_pretrained(model, initial, prepared.tokenizer)
    finetune(config)
    steps = list(read_log(config.out / "log.jsonl", "step"))
    feed = make_feed(transformers.AutoTokenizer.from_pretrained(initial))
    rates = [step["learning_rate"] for step in steps]
    model = auto_class.from_pretrained(initial)
    return steps, train_theirs(model, feed, config, prepared.batches, rates, **theirs)
