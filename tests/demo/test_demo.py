import lzma
from dataclasses import replace
from pathlib import Path

import pytest

from bert import load_pretrained
from bert.cli import main
from demo import recipe
from demo import run as module
from demo.config import DemoConfig
from demo.run import Ledger


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The demo's path on a slice of its data, with a tiny network and 40 steps of training."""
    data = tmp_path / "data"
    for name, lines in (
        ("books/train-00.txt.xz", 400), ("books/train-01.txt.xz", 400),
        ("books/validation.txt.xz", 200), ("mr/train.tsv.xz", 200),
        ("mr/validation.tsv.xz", 60), ("mr/test.tsv.xz", 60),
    ):  # fmt: skip
        with lzma.open(recipe.DATA / name, "rt", encoding="utf-8") as file:
            text = [next(file) for _ in range(lines)]
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(data / name, "wt", encoding="utf-8") as file:
            file.writelines(text)
    monkeypatch.setattr(recipe, "DATA", data)
    shape = replace(recipe.SHAPE, vocab_size=400, hidden_size=32, intermediate_size=64)
    monkeypatch.setattr(recipe, "SHAPE", shape)
    monkeypatch.setattr(recipe, "LABELS", 100)
    monkeypatch.setattr(Ledger, "budget", lambda ledger, part, share: "40")
    return DemoConfig(out=tmp_path / "out")


def test_the_whole_path_ends_in_a_report(small, capsys):
    assert module.run(small) == 0
    report = capsys.readouterr().out
    assert report.endswith((small.out / "report.md").read_text() + "\n")
    for expected in ("precision", "recall", "f1-score", "support"):
        assert report.count(expected) >= 2
    assert "Right on the test set: " in report and report.count("tensors agree") == 3
    assert "DIFFER" not in report and "[MASK]" in report
    assert (small.out / "losses.png").stat().st_size > 10_000
    for name in ("pretrain", "finetune-pretrained", "finetune-scratch"):
        model = load_pretrained(small.out / name / "model")
        assert model.config.hidden_size == 32
    pretrained = load_pretrained(small.out / "pretrain" / "model")
    scratch = load_pretrained(small.out / "finetune-scratch" / "model")
    assert pretrained.config.vocab_size == scratch.config.vocab_size
    # Started again, it finds everything done, and says the same.
    accuracy = next(line for line in report.splitlines() if line.startswith("Right on"))
    assert module.run(small) == 0
    assert accuracy in capsys.readouterr().out


def test_interrupted_it_stops_where_it_was_and_goes_on(small, monkeypatch, capsys):
    """A part that a signal ended leaves no model, and the next start takes it up."""
    whole = module.finetune
    monkeypatch.setattr(module, "finetune", lambda config: replace(whole(config), model=None))
    assert module.run(small) == 0  # the exit code of that part, which was not really stopped
    assert not (small.out / "report.md").exists()
    capsys.readouterr()
    monkeypatch.setattr(module, "finetune", whole)
    assert module.run(small) == 0
    assert (small.out / "report.md").exists()


@pytest.mark.errors
def test_another_budget_in_the_same_directory_is_refused(small):
    settings = {"budget": 360.0, "seed": 0}
    Ledger(small.out / "demo.json", settings).save()
    assert module.Ledger(small.out / "demo.json", settings).before < 1
    with pytest.raises(
        ValueError, match="^out: expected an empty directory for --budget 420s --seed 0, but "
    ):
        module.run(replace(small, budget="7min"))


def test_the_ledger_keeps_to_the_budget_over_all_starts(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    path, settings = tmp_path / "demo.json", {"budget": 360.0, "seed": 0}
    ledger = Ledger(path, settings)
    clock[0] += 40
    first = ledger.budget("pretraining", 0.6)
    assert first == f"{0.6 * (360 - 40 - recipe.RESERVE):.1f}s"
    clock[0] += 100  # interrupted here
    ledger.save()
    clock[0] += 5000  # nobody is waiting
    resumed = Ledger(path, settings)
    assert resumed.spent() == 140 and resumed.budget("pretraining", 0.6) == first
    clock[0] += 80
    assert resumed.budget("finetuning", 0.5) == f"{(360 - 220 - recipe.RESERVE) / 2:.1f}s"
    clock[0] += 200
    assert resumed.budget("more", 1) == f"{module.MINIMUM:.1f}s"  # late, and yet to a report


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "5 potatoes"], "--budget: expected steps such as 500, tokens such as"),
        (["--budget", "500"], "--budget: expected a time such as 90s or 6min, got '500'"),
        (["--budget", "3s"], "--budget: expected 30s or more, got '3s'"),
        (["--out", __file__], f"--out: expected a directory, got the file {__file__}"),
        (["--seed", "-1"], "--seed: expected 0 or more, below 2**63, got -1"),
        (["--bugdet", "6min"], "no option --bugdet; did you mean --budget?"),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, capsys):
    assert main(["demo", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bert demo: error: {message}") and error.count("\n") == 1


def test_embedded_data_are_attributed():
    text = (recipe.DATA / "ATTRIBUTION.md").read_text()
    folders = {path.parent.name for path in Path(recipe.DATA).rglob("*.xz")}
    assert folders == {"books", "mr"} and all(f"## {folder}/" in text for folder in folders)
