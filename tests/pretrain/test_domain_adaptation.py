"""Going on from a saved model with texts of another kind, as domain adaptation does."""

from dataclasses import replace

import pytest
import torch

from bert import BertConfig, load_pretrained
from bert.finetuning import BertForSequenceClassification
from bert.model import Bert
from bert.pretraining import BertForMaskedLM, BertForPreTraining
from bert.saving import save_pretrained
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from pretrain.config import PretrainConfig
from pretrain.run import pretrain

WORDS = ["ship", "sea", "storm", "captain", "sail", "the", "a", "saw", ".", "##s"]
TEXT = "\n\n".join("The captain saw the sea.\nA storm saw the ships.\nThe sail saw a sea."
                   for _ in range(12))  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Save a model of some class; give its directory."""
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    shape = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=32,
        id2label={0: "a", 1: "b", 2: "c"}, finetuning_task="classification",
    )  # fmt: skip

    def save(model_class, home="model"):
        torch.manual_seed(1)
        model = model_class(shape)
        save_pretrained(model, tmp_path / home, tokenizer)
        return tmp_path / home

    return save


@pytest.fixture
def adapt(tmp_path):
    """Run `bert pretrain --model … --objective mlm`."""
    (tmp_path / "domain.txt").write_text(TEXT)

    def run(model, steps=1, rate=1e-9):
        return pretrain(
            PretrainConfig(
                files=(tmp_path / "domain.txt",),
                out=tmp_path / f"run{steps}",
                model=str(model),
                objective="mlm",
                max_length=16,
                tokens_per_batch=128,
                dropout=0.0,
                training=TrainingConfig(budget=str(steps), learning_rate=rate, threads=1),
            )
        )

    return run


def bodies(*models):
    return [{n: w for n, w in m.state_dict().items() if "pooler" not in n} for m in models]


@pytest.mark.parametrize(
    ("model_class", "missing"),
    [
        (BertForPreTraining, []),
        (BertForMaskedLM, ["nsp_head"]),
        (Bert, ["mlm_head", "nsp_head"]),
        (BertForSequenceClassification, ["mlm_head", "nsp_head"]),
    ],
)
def test_all_that_was_learned_is_kept(saved, adapt, capsys, model_class, missing):
    directory = saved(model_class)
    result = adapt(directory)
    told = [line for line in capsys.readouterr().err.splitlines() if "is drawn anew" in line]
    assert [line.split("has no ")[1].partition(";")[0] for line in told] == missing
    after = load_pretrained(result.model, BertForPreTraining)
    before = load_pretrained(directory)
    whole = before if isinstance(before, Bert) else before.bert
    first, second = bodies(whole, after.bert)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-6)
    if "mlm_head" not in missing:
        for name, weight in before.mlm_head.state_dict().items():
            torch.testing.assert_close(
                after.mlm_head.state_dict()[name], weight, rtol=0, atol=1e-6
            )
    assert Tokenizer.load(result.model) == Tokenizer.load(directory)
    assert after.config.finetuning_task is None


def test_a_runs_directory_and_one_without_vocab_txt_will_do(saved, adapt, tmp_path):
    directory = saved(BertForMaskedLM, "earlier/model")
    (directory / "vocab.txt").unlink()
    result = adapt(tmp_path / "earlier")
    assert Tokenizer.load(result.model) == Tokenizer.load(directory)


def test_it_learns_the_domain(saved, adapt):
    directory = saved(BertForMaskedLM)
    losses = [adapt(directory, steps, 1e-2).training.loss for steps in (1, 40)]
    assert losses[1] < losses[0] - 0.5


@pytest.mark.errors
def test_a_directory_without_a_tokenizer_is_refused(saved, adapt):
    directory = saved(Bert)
    for name in ("vocab.txt", "tokenizer.json"):
        (directory / name).unlink()
    with pytest.raises(ValueError, match="tokenizer"):
        adapt(directory)


def test_the_options_are_those_of_the_saved_model(saved, adapt):
    directory = saved(BertForMaskedLM)
    before, after = load_pretrained(directory).config, load_pretrained(adapt(directory).model)
    assert replace(after.config, finetuning_task="classification") == replace(
        before, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
