"""What an evaluation reports, against loops over single sequences in float64."""

import json
import math

import pytest
import torch

from bert import BertConfig, BertForPreTraining
from bert.training.distributed import World
from pretrain.batches import PretrainingBatches, held_out_batches
from pretrain.evaluation import (
    PLATEAU,
    evaluate,
    plateau,
    token_characters,
    unigram_log_probabilities,
)
from pretrain.masking import MaskRecipe
from pretrain.objective import PretrainingObjective
from pretrain.preparation import prepare
from tests.pretrain.texts import TOKENIZER, make_documents, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluation")
    documents = [*make_documents(30, seed=2), ["We saw 中 and 文. It ran 中."] * 4]
    text = write_text(directory / "text.txt", documents)
    return prepare([text], directory / "corpus", TOKENIZER, progress=False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, max_position_embeddings=48,
        initializer_range=0.4,
    )  # fmt: skip
    return BertForPreTraining(config).double().eval()


def make(corpus, count=12, **options):
    batches = PretrainingBatches(
        corpus, TOKENIZER, max_length=40, tokens_per_batch=300, seed=3, **options
    )
    return [batches[index] for index in range(count)]


def guesses(model, batches):
    """One by one: shown, label and log probabilities of each masked token, and of each pair."""
    tokens, pairs = [], []
    for batch in batches:
        lengths = batch.packed.sequences.lengths
        rows = batch.packed.input_ids.split(lengths)
        types = batch.packed.token_type_ids.split(lengths)
        label_at = dict(
            zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True)
        )
        start = 0
        for number, (row, kinds) in enumerate(zip(rows, types, strict=True)):
            out = model(row[None], token_type_ids=kinds[None])
            words = out.prediction_logits[0].log_softmax(-1).tolist()
            for place in range(len(row)):
                if start + place in label_at:
                    tokens.append((row[place].item(), label_at[start + place], words[place]))
            if batch.next_sentence_label is not None:
                answer = batch.next_sentence_label[number].item()
                pairs.append((answer, out.seq_relationship_logits[0].log_softmax(-1).tolist()))
            start += len(row)
    return tokens, pairs


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@torch.no_grad()
def test_every_number_is_that_of_a_loop(corpus, model):
    batches = make(corpus, masks=MaskRecipe(0.4))
    unigram = unigram_log_probabilities(torch.from_numpy(corpus.token_counts()))
    found = evaluate(model, batches, unigram, TOKENIZER)
    tokens, pairs = guesses(model, batches)

    def scores(name, rows):
        return {
            f"{name}_loss": mean(-row[label] for label, row in rows),
            f"{name}_accuracy": mean(max(row) == row[label] for label, row in rows),
        }

    by_fate = {"masked": [], "random": [], "kept": []}
    for shown, label, row in tokens:
        is_masked = TOKENIZER.vocab[shown] == "[MASK]"
        fate = "masked" if is_masked else "kept" if shown == label else "random"
        by_fate[fate].append((label, row))
    known = [(label, row) for _, label, row in tokens if label != TOKENIZER.unk_id]
    assert len(known) < len(tokens)  # the text has words that the vocabulary lacks
    text = [TOKENIZER.vocab[label] for label, _ in known]
    characters = sum(len(token.removeprefix("##")) for token in text)
    ones = sum(answer for answer, _ in pairs)
    expected = {
        **scores("mlm", [(label, row) for _, label, row in tokens]),
        "unigram_loss": mean(-unigram[label].item() for _, label, _ in tokens),
        "loss_per_character": sum(-row[label] for label, row in known) / characters,
        "unigram_per_character": sum(-unigram[label].item() for label, _ in known) / characters,
        **{key: value for fate in by_fate for key, value in scores(fate, by_fate[fate]).items()},
        **scores("nsp", pairs),
        "nsp_majority": max(ones, len(pairs) - ones) / len(pairs),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        # Logits are judged in float32.
        assert found[name] == pytest.approx(value, rel=1e-6), name
    assert all(len(rows) > 30 for rows in by_fate.values())


@torch.no_grad()
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_find_the_same_numbers_to_the_bit(corpus, model, size):
    batches = make(corpus, 7, masks=MaskRecipe(0.4))
    unigram = unigram_log_probabilities(torch.from_numpy(corpus.token_counts()))
    heard = []

    class Listening(World):
        """The last process hears those that came before it."""

        def gather(self, value):
            heard.append(json.loads(json.dumps(value)))
            return (heard + heard[-1:] * size)[:size]

    for rank in range(size):
        found = evaluate(model, batches, unigram, TOKENIZER, world=Listening(rank, size))
    assert [len(of_one) for of_one in heard] == [len(batches[r::size]) for r in range(size)]
    assert found == evaluate(model, batches, unigram, TOKENIZER)


@torch.no_grad()
def test_it_is_the_loss_that_is_trained_on(corpus, model):
    for options, tasks in (
        ({}, ("mlm", "nsp")),
        ({"task": None}, ("mlm",)),
        ({"masks": None}, ("nsp",)),
        ({"task": "sop"}, ("mlm", "sop")),
    ):
        batch = make(corpus, 1, **options)[0]
        objective = PretrainingObjective(model, tasks)
        sums, counts = objective(batch, torch.tensor(0)), objective.counts(batch)
        assert tuple(sums) == tuple(counts) == tasks
        unigram = torch.zeros(TOKENIZER.vocab_size).double()
        found = evaluate(model, [batch], unigram, TOKENIZER, options.get("task", "nsp"))
        for task in tasks:
            assert found[f"{task}_loss"] == pytest.approx(
                sums[task].item() / counts[task], rel=1e-5
            )
        others = {"mlm", "nsp", "sop"} - set(tasks)
        assert not [name for name in found if name.split("_")[0] in others]
        assert ("unigram_loss" in found) == ("mlm" in tasks)


def test_a_loss_that_is_not_trained_on_reaches_no_head(corpus):
    config = BertConfig(
        vocab_size=TOKENIZER.vocab_size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=16, max_position_embeddings=48,
    )  # fmt: skip
    for options, tasks, untouched in (
        ({"task": None}, ("mlm",), ("nsp_head", "bert.pooler")),
        ({"masks": None}, ("nsp",), ("mlm_head",)),
    ):
        model = BertForPreTraining(config)
        batch = make(corpus, 1, **options)[0]
        sum(PretrainingObjective(model, tasks)(batch, torch.tensor(0)).values()).backward()
        idle = {name for name, p in model.named_parameters() if p.grad is None}
        assert idle == {name for name, _ in model.named_parameters() if name.startswith(untouched)}


def test_the_unigram_baseline_is_that_of_the_definition():
    counts = torch.tensor([0, 3, 1])
    expected = torch.tensor([1 / 7, 4 / 7, 2 / 7], dtype=torch.float64).log()
    torch.testing.assert_close(unigram_log_probabilities(counts), expected)


def test_characters_are_those_of_the_text():
    counts = dict(zip(TOKENIZER.vocab, token_characters(TOKENIZER).tolist(), strict=True))
    assert [counts[token] for token in ("the", "##b", "b", ".", "[UNK]", "[MASK]")] == [
        3, 1, 1, 1, 0, 0,
    ]  # fmt: skip


def test_a_user_is_told_while_nothing_is_learned_of_context():
    (line,) = plateau({"masked_loss": 6.95 - PLATEAU / 2, "unigram_loss": 6.95})
    assert line.startswith("still on the unigram plateau: words under [MASK] cost 6.900 nats, and")
    assert plateau({"masked_loss": 9.0, "unigram_loss": 6.95})
    assert not plateau({"masked_loss": 6.95 - 1.01 * PLATEAU, "unigram_loss": 6.95})
    assert not plateau({"nsp_loss": 0.7})
    # A model that only repeats what it is shown.
    assert plateau({"mlm_loss": 6.5, "masked_loss": 6.95, "kept_loss": 2.0, "unigram_loss": 6.95})


@torch.no_grad()
def test_a_fate_that_no_token_has_is_left_out(corpus, model):
    batch = held_out_batches(
        corpus, TOKENIZER, max_length=8, tokens_per_batch=8, tokens=1, task=None
    )
    found = evaluate(model, batch, torch.zeros(TOKENIZER.vocab_size).double(), TOKENIZER, None)
    fates = [name for name in ("masked", "random", "kept") if f"{name}_loss" in found]
    assert len(fates) == 1 == len(batch[0].masked_labels)
    assert all(math.isfinite(value) for value in found.values())
