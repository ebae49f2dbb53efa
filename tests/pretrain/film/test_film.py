"""`bert pretrain film`: of a run from its first step to its last, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch

from bert import load_pretrained
from bert.cli import main
from bert.internals.drift import drift, matrices
from bert.internals.head_types import head_scores
from bert.packing import PackedBatch
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from pretrain.config import PretrainConfig
from pretrain.film import heads
from pretrain.film.config import FilmConfig
from pretrain.film.heads import described, score_heads, uniform
from pretrain.film.losses import mask_each_once, read_windows, token_losses
from pretrain.film.picture import short_name
from pretrain.film.run import make_film
from pretrain.run import pretrain
from tests.pretrain.test_run import story


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 64 steps, with its snapshots, and text that it never saw."""
    home = tmp_path_factory.mktemp("film")
    (home / "train.txt").write_text(story(20, 0))
    (home / "held_out.txt").write_text(story(4, 1))
    (home / "shape.json").write_text(
        '{"model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1,'
        ' "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,'
        ' "hidden_act": "gelu", "type_vocab_size": 2, "initializer_range": 0.02}'
    )
    pretrain(
        PretrainConfig(
            files=(home / "train.txt",),
            out=home / "run",
            model=str(home / "shape.json"),
            vocab_size=100,
            max_length=24,
            tokens_per_batch=128,
            dropout=0.0,
            snapshots=True,
            training=TrainingConfig(budget="64", learning_rate=2e-2),
        )
    )
    return home


@pytest.fixture
def film_of(trained, tmp_path, capsys):
    """Run the command; return its exit code, what it wrote, and what it said."""

    def run(*argv, home=trained):
        code = main(["pretrain", "film", str(home / "run"), *map(str, argv)])
        written = tmp_path / "film.json"
        said = capsys.readouterr()
        film = json.loads(written.read_text()) if written.exists() else None
        return code, film, said.err

    return run


def test_a_run_is_shown_from_its_first_step_to_its_last(trained, film_of, tmp_path):
    text = trained / "held_out.txt"
    code, film, said = film_of("--text", text, "--tokens", 300, "--out", tmp_path)
    assert code == 0 and "step 64: " in said
    frames = film["frames"]
    assert [frame["step"] for frame in frames] == [0, 1, 2, 4, 8, 16, 32, 64]
    assert film["max_length"] == 24 and film["text"]["name"] == "held_out.txt"
    tokens = [band["tokens"] for band in film["bands"]]
    for frame in frames:
        weighed = sum(n * loss for n, loss in zip(tokens, frame["band_losses"], strict=True))
        assert frame["loss"] == pytest.approx(weighed / sum(tokens))
    assert frames[-1]["loss"] < frames[0]["loss"] - 0.5
    common = film["bands"][0]
    assert common["name"] == "1 % and more" and frames[0]["band_losses"][0] > 4
    assert (tmp_path / "film.png").exists() == bool(pytest.importorskip("matplotlib"))

    levels = film["uniform_head"]
    assert set(levels) == set(frames[0]["heads"]) >= {"next", "previous", "self", "separator"}
    for name, layers in frames[0]["heads"].items():  # drawn small, heads look at all alike
        assert layers == [[pytest.approx(levels[name], abs=0.02)] * 2]
    assert frames[-1]["heads"] != frames[0]["heads"]

    first, last = frames[0]["drift"], frames[-1]["drift"]
    assert set(first["from_first"].values()) == set(first["from_previous"].values()) == {0.0}
    assert set(last["from_last"].values()) == {0.0}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    models = [
        matrices(load_pretrained(trained / "run" / "snapshots" / f"step-{step:08d}"))
        for step in (0, 32, 64)
    ]
    assert last["from_first"][name] == pytest.approx(drift(models[2], models[0])[name])
    assert last["from_previous"][name] == pytest.approx(drift(models[2], models[1])[name])
    assert frames[-2]["drift"]["from_last"][name] == pytest.approx(
        drift(models[1], models[2])[name]
    )
    assert last["from_first"][name] > last["from_previous"][name] > 0


def test_a_frames_loss_is_that_of_its_model(trained):
    config = FilmConfig(trained / "run", trained / "held_out.txt", tokens=100, max_length=16)
    film = make_film(config)
    path = trained / "run" / "snapshots" / "step-00000016"
    tokenizer = Tokenizer.load(path)
    batches = mask_each_once(read_windows(config.text, tokenizer, 16, 100), tokenizer)
    losses = token_losses(load_pretrained(path), batches)
    assert film["frames"][5]["loss"] == pytest.approx(float(losses.mean()), abs=1e-9)
    assert film["max_length"] == 16
    windows = read_windows(config.text, tokenizer, 16, 100)
    model = load_pretrained(path)
    expected = head_scores(model, PackedBatch.from_lists(windows), tokenizer.vocab)
    assert film["frames"][5]["heads"]["next"] == expected.scores["next"].tolist()


def test_sequences_are_no_longer_than_the_model_can_take(trained):
    config = FilmConfig(trained / "run", trained / "held_out.txt", tokens=40, max_length=500)
    assert make_film(config)["max_length"] == 32


def test_short_names():
    names = ("embeddings.word_embeddings", "encoder.layer.11.attention.self.key",
             "encoder.layer.0.attention.output.dense", "encoder.layer.3.intermediate.dense",
             "encoder.layer.3.output.dense", "pooler.dense")  # fmt: skip
    assert [short_name(f"bert.{name}.weight") for name in names] == [
        "words", "11 key", "0 attention output", "3 up", "3 down", "pooler",
    ]  # fmt: skip
    assert short_name("cls.predictions.transform.dense.weight") == "masked-word head"


@pytest.mark.errors
def test_what_it_refuses(trained, film_of, tmp_path):
    text = ("--text", trained / "held_out.txt")
    home = tmp_path / "other"
    (home / "run" / "snapshots").mkdir(parents=True)

    def refused(*argv, home=trained):
        code, film, said = film_of(*argv, "--out", tmp_path, home=home)
        assert code == 2 and film is None and said.count("\n") == 1
        return said

    assert "RUN: expected a run of bert pretrain that kept snapshots, got none in" in refused(
        *text, home=home
    )
    assert "none.txt: expected a text file, got none" in refused("--text", tmp_path / "none.txt")
    assert "--tokens: expected 1 or more, got 0" in refused(*text, "--tokens", 0)
    assert "--max-length: expected 3 or more" in refused(*text, "--max-length", 2)
    assert "--data: expected the prepared text of the run, got none in" in refused(
        *text, "--data", tmp_path / "nothing"
    )
    (tmp_path / "film.json").write_text("{}")
    code, _, said = film_of(*text, "--out", tmp_path)
    assert code == 2 and "--out: expected no film, got" in said
    assert film_of(*text, "--out", tmp_path, "--tokens", 50, "--overwrite")[0] == 0


@pytest.mark.errors
def test_a_damaged_snapshot_is_named(trained, film_of, tmp_path):
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    weights = tmp_path / "run" / "snapshots" / "step-00000004" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, film, said = film_of(
        "--text", trained / "held_out.txt", "--out", tmp_path, home=tmp_path
    )
    assert code == 2 and film is None and "step-00000004/model.safetensors: its SHA-256" in said


@pytest.mark.errors
def test_a_run_that_was_given_its_data(trained, tmp_path):
    import shutil

    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "data" / "train").rename(tmp_path / "data")
    config = FilmConfig(tmp_path / "run", trained / "held_out.txt", tokens=30)
    with pytest.raises(ValueError, match=r"data: expected .* \(a run that was given --data has"):
        make_film(config)
    film = make_film(replace(config, data=tmp_path / "data"))
    assert len(film["frames"]) == 8 and torch.tensor(film["frames"][0]["loss"]).isfinite()


def test_heads_are_looked_at_on_the_first_sequences(trained, monkeypatch):
    monkeypatch.setattr(heads, "TOKENS", 20)
    path = trained / "run" / "snapshots" / "step-00000064"
    model, tokenizer = load_pretrained(path), Tokenizer.load(path)
    windows = read_windows(trained / "held_out.txt", tokenizer, 9, 60)
    few = score_heads(model, windows, tokenizer)
    assert few.queries["self"] == 14  # two of 9 tokens, whose frames are no queries
    assert score_heads(model, [windows[0] * 3], tokenizer).queries["self"] == 21
    monkeypatch.setattr(heads, "TOKENS", 10_000)
    assert score_heads(model, windows, tokenizer).queries["self"] == 60


def test_a_type_that_no_query_could_show_is_left_out(trained):
    path = trained / "run" / "snapshots" / "step-00000064"
    model, tokenizer = load_pretrained(path), Tokenizer.load(path)
    one = tokenizer.token_to_id("the") or 0
    scores = score_heads(model, [[tokenizer.cls_id, one, tokenizer.sep_id]], tokenizer)
    assert "repeated" not in described(scores) and "repeated" not in uniform(scores)
    assert described(scores).keys() == uniform(scores).keys() >= {"self", "next"}
