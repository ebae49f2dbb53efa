import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bert.training.gradients import add_gradients, dropout_seed
from bert.training.hardware import Hardware
from tests.bert.training.toy import SAMPLES, ToyBatches, ToyObjective

CPU = Hardware(torch.device("cpu"), "float32", "")


def one_big_batch(objective, batches, ids):
    """The step's loss by its definition: each loss's mean over all samples, summed."""
    losses = objective(batches.batch(ids), torch.tensor(0))
    odd = sum(i % 2 for i in ids)
    loss = losses["label"] / len(ids) + (losses["odd"] / odd if odd else 0.0)
    names, parameters = zip(*objective.named_parameters(), strict=True)
    return loss, dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@pytest.mark.parametrize(
    "split",
    [
        [10],
        [5, 5],
        [7, 3],
        [3, 3, 3, 1],
        [1, 2, 3, 4],
        [1] * 10,
    ],
)
@pytest.mark.parametrize("order", [range(SAMPLES), (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)])
def test_accumulation_gives_the_gradient_of_one_big_batch(split, order):
    ids, batches = list(order), ToyBatches(dtype=torch.float64)
    objective = ToyObjective(torch.float64, dropout=False)
    loss, expected = one_big_batch(objective, batches, ids)
    starts = [sum(split[:i]) for i in range(len(split))]
    parts = [ids[a : a + n] for a, n in zip(starts, split, strict=True)]
    window = list(enumerate(map(batches.batch, parts)))
    losses = add_gradients(objective, window, seed=0, hardware=CPU)
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12)
    assert losses.total == pytest.approx(loss.item(), abs=1e-12)
    assert sum(losses.parts.values()) == pytest.approx(loss.item(), abs=1e-12)


def test_a_loss_without_terms_in_the_whole_window_is_left_out():
    batches = ToyBatches(dtype=torch.float64)
    objective = ToyObjective(torch.float64, dropout=False)
    loss, expected = one_big_batch(objective, batches, [0, 2, 4])
    window = [(0, batches.batch([0, 2])), (1, batches.batch([4]))]
    losses = add_gradients(objective, window, seed=0, hardware=CPU)
    assert losses.means.keys() == {"label"} and losses.total == pytest.approx(loss.item())
    for name, parameter in objective.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-12)


def test_a_micro_batch_without_terms_is_not_run():
    batches, objective = ToyBatches(), ToyObjective()
    losses = add_gradients(
        objective, [(0, batches.batch([])), (1, batches.batch([3]))], seed=0, hardware=CPU
    )
    assert objective.seen == [(3,)] and losses.parts.keys() == {1}


def test_each_micro_batch_has_its_own_dropout_whatever_the_window():
    batches, gradients = ToyBatches(), []
    for windows in ([[0, 1, 2]], [[0], [1], [2]]):
        objective = ToyObjective()
        seeds = []
        objective.dropout.register_forward_pre_hook(lambda _, args: seeds.append(int(args[1])))  # noqa: B023
        for window in windows:
            add_gradients(objective, [(i, batches[i]) for i in window], seed=5, hardware=CPU)
        gradients.append(seeds)
    assert gradients[0] == gradients[1] == [dropout_seed(5, i) for i in range(3)]


def test_stock_dropout_is_replayed_too_and_nothing_else_moves_it():
    results = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        objective = ToyObjective()
        objective.dropout = None
        objective.stock_dropout = nn.Dropout(0.5)
        add_gradients(objective, [(4, ToyBatches()[4])], seed=0, hardware=CPU)
        results.append(objective.output.weight.grad)
    assert torch.equal(*results)


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_dropout_seeds_fit_an_int64(seed, index):
    assert 0 <= dropout_seed(seed, index) < 2**63


def test_dropout_seeds_differ_by_seed_and_index():
    seeds = {dropout_seed(seed, index) for seed in range(50) for index in range(2000)}
    assert len(seeds) == 100_000
    # The published stream of SplitMix64 from state 0 begins with this number.
    assert dropout_seed(0, 0) == 0xE220A8397B1DCDAF >> 1


@pytest.mark.errors
def test_losses_that_were_not_counted_are_refused():
    class Wrong(ToyObjective):
        def counts(self, batch):
            return {"label": 1}

    with pytest.raises(ValueError, match=r"^objective: expected the losses \['label'\]"):
        add_gradients(Wrong(), [(0, ToyBatches()[0])], seed=0, hardware=CPU)
