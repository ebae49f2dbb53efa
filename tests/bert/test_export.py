"""`bert export`: from a run, a checkpoint, or a model of any layout to one clean directory."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    Tokenizer,
    load_pretrained,
    save_pretrained,
)
from bert import export as module
from bert.cli import main
from bert.export import export
from bert.training.config import TrainingConfig
from bert.training.hardware import choose_hardware
from bert.training.objective import Objective
from bert.training.optimizer import build_optimizer
from bert.training.state import Identity, TrainingState, save_checkpoint

FILES = {
    "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "vocab.txt",
}  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    initializer_range=0.3,
).with_labels(["bad", "good", "odd"])


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([*SPECIAL, *"abcdefghijklmnop", *("##" + c for c in "abcdefghijklmnop")])


@pytest.fixture
def model_dir(tmp_path, tokenizer):
    path = tmp_path / "source"
    save_pretrained(BertForPreTraining(CONFIG), path, tokenizer, "# My card\n")
    return path


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- models ----------------------------------------------------------------------------------


def as_pickle(path, weights):
    torch.save(weights, path / "pytorch_model.bin")


def as_legacy(path, weights):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )

    torch.save({old(name): weight for name, weight in weights.items()}, path / "pytorch_model.bin")


def as_shards(path, weights):
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        shard = {name: weights[name] for name in part}
        safetensors.torch.save_file(shard, path / file)
        index |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
    )


@pytest.mark.parametrize("layout", [None, as_pickle, as_legacy, as_shards])
def test_every_layout_becomes_one_file(layout, model_dir, tmp_path, tokenizer, capsys):
    expected = load_pretrained(model_dir)
    if layout is not None:
        file = model_dir / "model.safetensors"
        layout(model_dir, safetensors.torch.load_file(file))
        file.unlink()
    out = tmp_path / "deep" / "out"
    assert main(["export", str(model_dir), str(out)]) == 0
    assert {file.name for file in out.iterdir()} == FILES
    assert_same(load_pretrained(out), expected)
    assert BertConfig.load(out) == CONFIG
    assert Tokenizer.load(out) == tokenizer
    assert (out / "README.md").read_text() == "# My card\n"
    count = sum(weight.numel() for weight in expected.parameters())
    assert capsys.readouterr() == (
        f"{out}: BertForPreTraining, {count:,} parameters in float32, read back bit for bit\n",
        "",
    )


@pytest.mark.parametrize(
    "kind",
    [
        Bert,
        lambda config: Bert(config, pooler=False),
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForMultipleChoice,
        BertForQuestionAnswering,
    ],
)
def test_every_class_and_a_card_where_there_was_none(kind, tmp_path):
    model = kind(CONFIG).eval()
    save_pretrained(model, tmp_path / "source")
    with pytest.warns(UserWarning, match="source: no tokenizer lies with it, so none is written"):
        exported = export(tmp_path / "source", tmp_path / "out")
    assert_same(exported, model)
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES & {
        "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# {type(model).__name__.replace('Bert', 'BertModel', type(model) is Bert)}\n" in card
    assert "2 layers of width 16" in card and "Converted from `source`." in card


def test_transformers_loads_it_and_agrees(model_dir, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "tiny"  # the name of a preset too
    assert main(["export", str(model_dir), str(out), "--check"]) == 0
    printed = capsys.readouterr().out
    assert "cls.seq_relationship" in printed and printed.endswith(", 0 over tolerance\n")
    _, info = transformers.BertForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert transformers.AutoTokenizer.from_pretrained(out).model_max_length == 12


def test_a_difference_from_transformers_fails(model_dir, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from bert import comparison

    load = comparison.load_theirs

    def changed(*args):
        model = load(*args)
        model.bert.encoder.layer[1].output.dense.weight.data *= 1.01
        return model

    monkeypatch.setattr(comparison, "load_theirs", changed)
    assert main(["export", str(model_dir), str(tmp_path / "out"), "--check"]) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype(dtype, model_dir, tmp_path, capsys):
    out, kind = tmp_path / "out", getattr(torch, dtype)
    assert main(["export", str(model_dir), str(out), "--dtype", dtype]) == 0
    assert f" in {dtype}, read back bit for bit" in capsys.readouterr().out
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {kind}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    expected = load_pretrained(model_dir).to(kind)
    assert_same(load_pretrained(out, dtype=kind), expected)


def test_float64_is_kept_and_16_bits_are_not(tmp_path):
    for dtype, kept in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        save_pretrained(Bert(CONFIG).to(dtype), tmp_path / str(dtype))
        with pytest.warns(UserWarning, match="no tokenizer"):
            model = export(tmp_path / str(dtype), tmp_path / "out", overwrite=True)
        assert model.embeddings.word.weight.dtype == kept


def test_a_weight_that_the_dtype_cannot_hold(tmp_path, tokenizer):
    model = BertForMaskedLM(CONFIG)
    model.mlm_head.bias.data[3] = 1e5
    save_pretrained(model, tmp_path / "source", tokenizer)
    with pytest.raises(ValueError, match=r"^dtype: expected one that can hold mlm_head\.bias"):
        export(tmp_path / "source", tmp_path / "out", torch.float16)
    assert not (tmp_path / "out").exists()
    export(tmp_path / "source", tmp_path / "out", torch.bfloat16)


def test_what_is_there_is_not_overwritten_unasked(model_dir, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    export(model_dir, out)  # an empty directory is free
    (out / "pytorch_model_of_mine.bin").write_text("mine")
    stale = ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model-1-of-2.bin",
             "model-00001-of-00002.safetensors", "pytorch_model.bin.index.json"]  # fmt: skip
    for name in stale:
        (out / name).write_text("of another model")
    before = (out / "model.safetensors").read_bytes()
    save_pretrained(BertForPreTraining(CONFIG), model_dir)
    assert main(["export", str(model_dir), str(out)]) == 2
    assert capsys.readouterr().err == (
        f"bert export: error: OUT: expected a new or empty directory, got {out}; "
        "--overwrite replaces the model in it\n"
    )
    assert (out / "model.safetensors").read_bytes() == before
    assert main(["export", str(model_dir), str(out), "--overwrite"]) == 0
    assert {file.name for file in out.iterdir()} == FILES | {"pytorch_model_of_mine.bin"}
    assert_same(load_pretrained(out), load_pretrained(model_dir))


def test_what_was_written_is_read_back(model_dir, tmp_path, monkeypatch, capsys):
    from bert import saving

    def damaged(model, directory, *rest):
        save_pretrained(model, directory, *rest)
        file = directory / "model.safetensors"
        weights = safetensors.torch.load_file(file)
        weights["cls.seq_relationship.bias"][1] += 1e-7
        safetensors.torch.save_file(weights, file)

    monkeypatch.setattr(saving, "save_pretrained", damaged)
    assert main(["export", str(model_dir), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"bert export: error: {tmp_path / 'out'}: read back, nsp_head.dense.bias differs\n"
    )


def test_a_configuration_that_comes_back_changed(model_dir, tmp_path, monkeypatch):
    from bert import saving

    def damaged(model, directory, *rest):
        save_pretrained(model, directory, *rest)
        values = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**values, "layer_norm_eps": 1e-6}))

    monkeypatch.setattr(saving, "save_pretrained", damaged)
    with pytest.raises(OSError, match=r"read back, config\.json differs"):
        export(model_dir, tmp_path / "out")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["{}", "{}"], "OUT: expected another directory than the source, got {}"),
        (["{}/nosuch", "x"], "SOURCE: expected a model's directory (with config.json), a "),
        (["{}/vocab.txt", "x"], "SOURCE: expected a model's directory (with config.json), a "),
        (["{}"], "OUT: expected a path, got nothing"),
        (["{}", "x", "--dtype", "float61"], "--dtype: expected one of float32, float16, bfloat16"),
        (["{}", "x", "--tokenizer", "{}/nosuch"], "{}/nosuch: "),
        (["{}", "{}/vocab.txt"], "{}/vocab.txt: expected a directory, got a file"),
    ],
)
def test_mistakes(argv, line, model_dir, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *(word.format(model_dir) for word in argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"bert export: error: {line.format(model_dir)}")


def test_a_given_tokenizer_and_one_that_is_too_large(model_dir, tmp_path, tokenizer):
    other = Tokenizer([*SPECIAL, *"xyz"])
    other.save(tmp_path / "other")
    export(model_dir, tmp_path / "out", tokenizer=tmp_path / "other")
    assert Tokenizer.load(tmp_path / "out") == other
    Tokenizer([*SPECIAL, *map(chr, range(0x3B1, 0x3B1 + 36))]).save(tmp_path / "large")
    with pytest.raises(ValueError, match="^tokenizer: expected at most the model's 40 tokens"):
        export(model_dir, tmp_path / "out2", tokenizer=tmp_path / "large")


# --- runs ------------------------------------------------------------------------------------


class Holds(Objective):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def counts(self, batch):
        return {}

    def forward(self, batch, dropout_seed):
        return {}


def checkpoint(run, model, step, /, **identity):
    """Leave a checkpoint as the training loop does."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    hardware = choose_hardware(TrainingConfig(device="cpu"))
    objective = Holds(model)
    return save_checkpoint(
        run / "checkpoints",
        TrainingState(step=step, tokens=1000 * step, saved_step=step),
        Identity.of({"model": model.config.to_dict()} | identity, hardware),
        objective,
        build_optimizer(objective, TrainingConfig()),
    )


@pytest.fixture
def run_dir(tmp_path, tokenizer):
    """A run that was interrupted: a tokenizer and two checkpoints; the models of these."""
    run = tmp_path / "run"
    tokenizer.save(run / "tokenizer")
    models = [BertForPreTraining(CONFIG), BertForPreTraining(CONFIG)]
    for step, model in zip((5, 10), models, strict=True):
        checkpoint(run, model, step)
    return run, models


def test_a_run_gives_its_newest_checkpoint(run_dir, tmp_path, tokenizer):
    run, (_, newest) = run_dir
    exported = export(run, tmp_path / "out")
    assert type(exported) is BertForPreTraining and not exported.training
    assert_same(load_pretrained(tmp_path / "out"), newest)
    assert Tokenizer.load(tmp_path / "out") == tokenizer
    assert BertConfig.load(tmp_path / "out") == CONFIG
    assert "Step 10 of a run, 10,000 tokens." in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_is_named(run_dir, tmp_path, tokenizer, monkeypatch):
    run, (older, _) = run_dir
    export(run / "checkpoints" / "step-00000005", tmp_path / "out")
    assert_same(load_pretrained(tmp_path / "out"), older)
    monkeypatch.chdir(run / "checkpoints")
    export(module.Path("step-00000005"), tmp_path / "out2")
    assert Tokenizer.load(tmp_path / "out2") == tokenizer


def test_a_finished_run_gives_its_model(run_dir, tmp_path, tokenizer):
    run, _ = run_dir
    final = BertForPreTraining(CONFIG).eval()
    save_pretrained(final, run / "model", tokenizer, "final\n")
    export(run, tmp_path / "out")
    assert_same(load_pretrained(tmp_path / "out"), final)
    assert (tmp_path / "out" / "README.md").read_text() == "final\n"
    with pytest.raises(ValueError, match="^out: expected another directory than the source"):
        export(run, run / "model", overwrite=True)


def flip(path):
    content = bytearray((path / "parameters.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "parameters.safetensors").write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_but_not_if_named(run_dir, tmp_path, capsys):
    run, (older, _) = run_dir
    newest = run / "checkpoints" / "step-00000010"
    flip(newest)
    assert main(["export", str(newest), str(tmp_path / "out")]) == 2
    assert "SHA-256" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert err.startswith("bert export: warning: passed over: ") and err.count("\n") == 1
    assert_same(load_pretrained(tmp_path / "out"), older)
    flip(run / "checkpoints" / "step-00000005")
    assert main(["export", str(run), str(tmp_path / "out2")]) == 2
    assert "SOURCE: expected a model's directory" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "kind",
    [
        Bert,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
    ],
)
def test_a_checkpoint_of_any_class(kind, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "words")
    path = checkpoint(tmp_path / "run", kind(CONFIG), 3)
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"finetune": {"tokenizer": None, "model": str(tmp_path / "words")}})
    )
    exported = export(path, tmp_path / "out")
    assert type(exported) is kind
    assert Tokenizer.load(tmp_path / "out") == tokenizer


def test_a_checkpoint_of_a_class_that_its_heads_do_not_tell(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "run" / "tokenizer")
    model = BertForMultipleChoice(CONFIG)
    described = CONFIG.to_dict("BertForMultipleChoice")
    path = checkpoint(tmp_path / "run", model, 3, model=described)
    exported = export(path, tmp_path / "out")
    assert type(exported) is BertForMultipleChoice
    assert_same(exported, model)


def test_untied_weights_stay_untied(tmp_path, tokenizer):
    from dataclasses import replace

    model = BertForPreTraining(replace(CONFIG, tie_word_embeddings=False)).eval()
    tokenizer.save(tmp_path / "run" / "tokenizer")
    checkpoint(tmp_path / "run", model, 1)
    assert_same(export(tmp_path / "run", tmp_path / "out"), model)


@pytest.mark.parametrize(
    ("identity", "error"),
    [
        ({"model": None}, "expected the checkpoint of a BERT, got another model's"),
        ({"model": {"hidden_size": -1}}, "hidden_size: expected a positive integer"),
        ({"model": {**CONFIG.to_dict(), "num_hidden_layers": 3}}, "layers.2"),
    ],
)
def test_a_checkpoint_of_something_else(identity, error, tmp_path):
    checkpoint(tmp_path / "run", BertForPreTraining(CONFIG), 1, **identity)
    with pytest.raises(ValueError, match=error):
        export(tmp_path / "run", tmp_path / "out")


def test_no_run_json_and_no_tokenizer(run_dir, tmp_path, capsys):
    run, _ = run_dir
    shutil.rmtree(run / "tokenizer")
    (run / "run.json").write_text("{")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"bert export: error: {run}/run.json: expected JSON")
    (run / "run.json").unlink()
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    assert "no tokenizer lies with it" in capsys.readouterr().err
