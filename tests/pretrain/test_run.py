import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bert import BertConfig, BertForPreTraining, load_pretrained
from bert.cli import main
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from bert.training.log import read_log
from kernels import TORCH
from pretrain.config import PretrainConfig
from pretrain.corpus import Corpus
from pretrain.run import dry_run, pretrain, run
from pretrain.word_vectors import word_vectors

SUBJECTS = ["the cat", "a dog", "my friend", "the old man", "every child"]
VERBS = ["sees", "likes", "follows", "forgets", "draws"]
OBJECTS = ["a red house", "the river", "some bread", "an idea", "the long road"]


def story(documents, seed):
    generator = torch.Generator().manual_seed(seed)

    def sentence():
        kind = int(torch.randint(len(SUBJECTS), (), generator=generator))
        return f"{SUBJECTS[kind]} {VERBS[kind]} {OBJECTS[kind]}.".capitalize()

    return "\n\n".join(
        "\n".join(f"{sentence()} {sentence()}" for _ in range(6)) for _ in range(documents)
    )


@pytest.fixture
def config(tmp_path):
    (tmp_path / "train.txt").write_text(story(40, 0))
    (tmp_path / "held_out.txt").write_text(story(6, 1))
    shape = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    (tmp_path / "shape.json").write_text(json.dumps(shape.to_dict()))
    return PretrainConfig(
        files=(tmp_path / "train.txt",),
        validation_files=(tmp_path / "held_out.txt",),
        out=tmp_path / "run",
        model=str(tmp_path / "shape.json"),
        vocab_size=100,
        max_length=32,
        tokens_per_batch=256,
        dropout=0.0,
        initializer_range=0.1,
        training=TrainingConfig(
            budget="120", learning_rate=1e-2, evaluate_every="60", checkpoint_every="50"
        ),
    )


def weights(run_dir):
    return safetensors.torch.load_file(run_dir / "model" / "model.safetensors")


def test_it_learns_saves_and_is_the_same_each_time(config, tmp_path):
    result = pretrain(config)
    judged = result.training.evaluation
    assert judged["mlm_loss"] < judged["unigram_loss"] - 0.5
    assert judged["mlm_accuracy"] > 0.2
    assert 0.5 <= judged["nsp_majority"] <= 1
    again = pretrain(replace(config, out=tmp_path / "again"))
    first, second = weights(result.run_dir), weights(again.run_dir)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    model = load_pretrained(result.model)
    assert isinstance(model, BertForPreTraining)
    assert model.config.vocab_size == Tokenizer.load(result.model).vocab_size
    card = (result.model / "README.md").read_text()
    assert "bert pretrain" in card and "mlm_loss" in card
    losses = [line["losses"]["mlm"] for line in read_log(result.run_dir / "log.jsonl", "step")]
    assert len(losses) == 120
    assert (result.run_dir / "loss.png").stat().st_size > 10_000


def test_a_stopped_run_goes_on_to_the_same_end(config, tmp_path):
    whole = pretrain(config)
    halves = replace(config, out=tmp_path / "halves")
    pretrain(replace(halves, training=replace(config.training, budget="70")))
    # The budget shapes the learning rate, so the steps up to 70 differ; from a checkpoint of the
    # whole run they don't.
    taken = whole.run_dir / "checkpoints"
    assert sorted(p.name for p in taken.iterdir()) == ["step-00000100", "step-00000120"]
    other = replace(config, out=tmp_path / "other", resume=str(taken / "step-00000100"))
    resumed = pretrain(other)
    first, second = weights(whole.run_dir), weights(resumed.run_dir)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_going_on_from_a_saved_model(config, tmp_path):
    first = pretrain(replace(config, training=replace(config.training, budget="5")))
    more = replace(
        config, model=str(first.model), out=tmp_path / "more", initializer_range=None,
        training=replace(config.training, budget="1", learning_rate=1e-9),
    )  # fmt: skip
    second = pretrain(more)
    before, after = weights(first.run_dir), weights(second.run_dir)
    for name in before:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-6)
    assert Tokenizer.load(first.model) == Tokenizer.load(second.model)


def test_a_drawn_model_has_a_row_for_each_word_unless_its_file_says_more(config, tmp_path):
    words = [f"w{i}" for i in range(120)]
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    tokenizer.save(tmp_path / "tokenizer")
    given = replace(config, tokenizer=tmp_path / "tokenizer", dry_run=True)

    def parameters(settings):
        return int(dry_run(settings).split("parameters: ")[1].split()[0].replace(",", ""))

    tiny = replace(given, model="tiny", initializer_range=None)
    preset = replace(BertConfig.preset("tiny"), vocab_size=tokenizer.vocab_size)
    assert parameters(tiny) == preset.parameter_count()
    roomy = BertConfig.load(Path(config.model))
    assert parameters(given) == roomy.parameter_count()  # of 100 words


@pytest.mark.errors
def test_a_vocabulary_that_the_model_has_no_room_for_is_refused(config, tmp_path):
    first = pretrain(replace(config, training=replace(config.training, budget="1")))
    more = replace(config, model=str(first.model), out=tmp_path / "more", initializer_range=None)
    assert f"{load_pretrained(first.model).config.parameter_count():,}" in dry_run(more)
    words = [f"w{i}" for i in range(120)]
    Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]).save(tmp_path / "large")
    for model in (config.model, str(first.model)):
        with pytest.raises(ValueError, match="^tokenizer: expected at most the model's vocab_siz"):
            pretrain(replace(more, model=model, tokenizer=tmp_path / "large"))
    for name in ("vocab.txt", "tokenizer.json"):
        (first.model / name).unlink()
    with pytest.raises(ValueError, match="model: expected vocab.txt"):  # none is learned for it
        pretrain(more)


def test_it_runs_on_the_kernels_that_it_names(config, tmp_path, monkeypatch, capsys):
    """Drawn or taken from a saved model."""
    rows = []

    def counted(x, *rest):
        rows.append(len(x))
        return TORCH.layer_norm(x, *rest)

    mine = replace(TORCH, name="MINE", layer_norm=counted)
    monkeypatch.setattr("bert.training.hardware.choose", lambda name, device: mine)
    short = replace(config, training=replace(config.training, budget="1"))
    first = pretrain(short)
    seen = len(rows)
    pretrain(replace(short, model=str(first.model), out=tmp_path / "more", initializer_range=None))
    assert 0 < seen < len(rows)
    assert capsys.readouterr().err.count("kernels MINE;") == 2


def test_word_vectors_and_frequencies_start_the_model(config):
    started = replace(
        config,
        word_vectors=True,
        training=replace(config.training, budget="1", learning_rate=1e-9, weight_decay=0.0),
    )
    result = pretrain(started)
    model = load_pretrained(result.model)
    word = model.bert.embeddings.word.weight.detach()
    assert word[0].abs().max() < 1e-6  # [PAD]: one step at a rate of 1e-9
    assert word.square().mean().sqrt() == pytest.approx(0.1, rel=0.05)
    bias = model.mlm_head.bias.detach()
    the = Tokenizer.load(result.model).token_to_id("the")
    assert bias.argmax() in (the, Tokenizer.load(result.model).token_to_id("."))
    assert bias.exp().sum() == pytest.approx(1, abs=1e-3)


def test_a_window_of_its_own_makes_the_vectors(config):
    quiet = replace(config.training, budget="1", learning_rate=1e-9, weight_decay=0.0)
    result = pretrain(replace(config, word_vectors=True, vector_window=2, training=quiet))
    corpus = Corpus.open(result.run_dir / "data" / "train")
    expected = 0.1 * word_vectors([corpus], 32, config.seed, window=2)
    seen = (expected != 0).all(1)
    got = load_pretrained(result.model).bert.embeddings.word.weight.detach()[seen]
    torch.testing.assert_close(got, expected[seen], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="^vector_window: expected 2, as step"):
        pretrain(replace(config, word_vectors=True, training=quiet))


def test_a_local_start_is_in_the_weights_and_is_ahead(config, tmp_path):
    """After as many steps on the same pairs, by what it says of words that are hidden."""
    short = replace(config, training=replace(config.training, budget="40", evaluate_every=None))
    results = [
        pretrain(replace(short, out=tmp_path / name, local_start=is_local))
        for name, is_local in (("drawn", False), ("local", True))
    ]
    drawn, local = (result.training.evaluation["masked_loss"] for result in results)
    assert local < drawn - 0.1
    with pytest.raises(ValueError, match="^local_start: expected"):
        pretrain(replace(short, out=tmp_path / "local"))


def test_domain_text_is_in_the_vocabulary_and_the_vectors_and_in_no_pair(config, tmp_path):
    """Its words have a token and a vector; what is trained on stays as it was."""
    text = tmp_path / "domain.txt"
    text.write_text("\n\n".join(["zyzzy quuxing zyzzy quuxing zyzzy"] * 40))
    plain = replace(
        config,
        word_vectors=True,
        vocab_size=config.vocab_size + 10,
        training=replace(config.training, budget="1", learning_rate=1e-9, weight_decay=0.0),
    )
    result = pretrain(replace(plain, out=tmp_path / "more", domain_files=(text,)))
    tokenizer = Tokenizer.load(result.model)
    word = load_pretrained(result.model).bert.embeddings.word.weight.detach()
    new = tokenizer.token_to_id("zyzzy")
    assert new is not None and word[new].square().mean() > 1e-4
    corpus = Corpus.open(result.run_dir / "data" / "train")
    assert corpus.token_counts()[new] == 0
    with pytest.raises(ValueError, match="^corpora: expected"):  # the domain is part of a run
        pretrain(replace(plain, out=tmp_path / "more"))


def test_dry_run_writes_nothing(config, capsys):
    assert run(replace(config, dry_run=True)) == 0
    out = capsys.readouterr().out
    assert "parameters: " in out and "memory: " in out and "time: 120 steps" in out
    assert json.loads(out[: out.rindex("}") + 1])["tokens_per_batch"] == 256
    assert not config.out.exists()


@pytest.mark.errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.txt", "--out", "o"], "no.txt: expected a text file, got none"),
        (["t.txt", "--out", "o", "--model", "tinny"], "--model: expected a preset, a config.json"),
        (["t.txt", "--out", "o", "--max-length", "600"], "--max-length: expected at most the "),
        (
            ["t.txt", "--out", "o", "--tokens-per-batch", "9"],
            "--tokens-per-batch: expected max_le",
        ),
        (["t.txt", "--out", "o", "--mask-rate", "2"], "--mask-rate: expected a share between 0 "),
        (["t.txt", "--out", "o", "--tokenizer", "nowhere"], "nowhere"),
        (["--out", "o"], "FILES: expected at least one text file"),
        (["t.txt"], "--out: expected"),
        (["t.txt", "--out", "t.txt"], "--out: expected a directory, got the file t.txt"),
        (["t.txt", "--out", "o", "--mask-rat", "0.2"], "no option --mask-rat; did you mean "),
    ],
)
def test_a_users_mistake_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(story(3, 0))
    assert main(["pretrain", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bert pretrain: error: ") and message in error


@pytest.mark.errors
def test_changed_files_are_refused(config):
    short = replace(config, training=replace(config.training, budget="1"))
    pretrain(short)
    config.files[0].write_text(story(40, 5))
    with pytest.raises(ValueError, match="^files: expected those that .* was prepared from"):
        pretrain(replace(short, training=replace(config.training, budget="2")))
    fresh = pretrain(replace(short, resume="none", overwrite=True))
    assert fresh.training.step == 1


def test_interrupted_it_goes_on(config, tmp_path):
    arguments = [
        sys.executable, "-m", "pretrain", str(config.files[0]), "--out", str(config.out),
        "--model", config.model, "--vocab-size", "100", "--max-length", "32",
        "--tokens-per-batch", "256", "--training.budget", "100000",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        arguments, cwd=root, stderr=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("training from step 0"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130, rest
    assert "the same command goes on from there" in rest and "Traceback" not in rest
    steps = len(list((config.out / "checkpoints").iterdir()))
    assert steps <= 1 and not (config.out / "model").exists()


def test_a_run_in_phases_trains_on_the_pairs_of_each(config):
    """Half of the run on short pairs in small micro-batches, then on long ones in larger."""
    shares = ("16:64:0.5", "32:128:0.25", "32:256:0.25")
    run = replace(config, phases=shares)
    run = replace(run, training=replace(config.training, budget="8", evaluate_every=None))
    pretrain(run)
    records = list(read_log(config.out / "log.jsonl", "step"))
    tokens = [record["tokens"] for record in records]
    sizes = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    assert max(sizes[:4]) <= 64 < min(sizes[4:6]) <= max(sizes[4:6]) <= 128 < min(sizes[6:])
    described = json.loads((config.out / "run.json").read_text())
    assert described["identity"]["phases"] == [*shares]
    longer = replace(run.training, budget="9")
    with pytest.raises(ValueError, match="^phases: expected .* got nothing"):
        pretrain(replace(run, phases=(), training=longer))


def test_float16_learns_too(config):
    result = pretrain(replace(config, training=replace(config.training, precision="float16")))
    judged = result.training.evaluation
    assert judged["mlm_loss"] < judged["unigram_loss"] - 0.5
