import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.segment_sum import segment_sum, segment_sum_kernel
from tests.kernels.interpreter import addresses, programs_in


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """Pieces of 4, so that few rows make many."""
    monkeypatch.setattr("kernels.segment_sum.PIECE", 4)


def whole_numbers(*shape):
    """Sums of these are exact in float32, in any order."""
    return torch.randint(-50, 50, shape).float()


def expected(rows, indices, entries, skipped=-1):
    kept = indices != skipped
    return rows.new_zeros(entries, rows.shape[1]).index_add_(0, indices[kept], rows[kept])


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(indices=st.lists(st.integers(0, 5), max_size=40), skipped=st.integers(-1, 5))
def test_every_row_is_added_to_its_index(indices, skipped):
    indices = torch.tensor(indices, dtype=torch.int64)
    rows = whole_numbers(len(indices), 3)
    got = segment_sum(rows, indices, 6, skipped)
    assert torch.equal(got, expected(rows, indices, 6, skipped))


@pytest.mark.parametrize("count", [3, 4, 5, 37])
def test_long_runs(any_order, count):
    """A run that ends before, at and after a piece does, and one of more pieces than a tile."""
    indices = torch.cat((torch.full((count,), 4), torch.tensor([7, 2, 7])))
    indices = indices[torch.randperm(len(indices))]
    rows = whole_numbers(len(indices), 5)
    assert torch.equal(segment_sum(rows, indices, 8), expected(rows, indices, 8))


@pytest.mark.parametrize("columns", [1, 256, 312])
def test_every_width(columns):
    indices = torch.randint(0, 4, (11,))
    rows = whole_numbers(11, columns)
    assert torch.equal(segment_sum(rows, indices, 4), expected(rows, indices, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_in_float32(dtype):
    """In these dtypes 2,048 and 1 are 2,048."""
    rows = torch.tensor([2048.0, *[1.0] * 16, -2048.0]).to(dtype)[:, None]
    got = segment_sum(rows, torch.zeros(18, dtype=torch.int64), 1)
    assert got.dtype == dtype and got.tolist() == [[16.0]]


def test_order_of_programs_changes_no_bit():
    rows, indices = torch.randn(40, 8), torch.randint(0, 3, (40,))
    results = []
    for order in ("forward", "backward", "shuffled"):
        with programs_in(order):
            results.append(segment_sum(rows, indices, 3))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_offsets_pass_32_bits():
    """Row 2²⁴ of 256 columns begins at element 2³², where 32 bits have wrapped to 0."""
    place, columns = 2**24, 256
    one, indices, bounds = (torch.empty(1, dtype=d) for d in (torch.float, torch.long, torch.int))
    with addresses(program=place) as seen:
        segment_sum_kernel[(1,)](
            one, indices, indices, bounds, bounds, one, -1,
            PIECES=False, PIECE=64, COLUMNS=columns, BLOCK_ROWS=1, BLOCK_COLUMNS=columns,
        )  # fmt: skip
    first = one.data_ptr() + 4 * place * columns
    assert seen["store"] == [first, first + 4 * (columns - 1)]
    begin, end = (torch.empty(1, dtype=torch.int) for _ in range(2))
    run = {begin.data_ptr() + 4 * place: place, end.data_ptr() + 4 * place: place + 1}
    with addresses(program=place, given=run) as seen:
        segment_sum_kernel[(1,)](
            one, indices, indices, begin, end, one, -1,
            PIECES=True, PIECE=64, COLUMNS=columns, BLOCK_ROWS=1, BLOCK_COLUMNS=columns,
        )  # fmt: skip
    assert seen["load"][-2:] == [first, first + 4 * (columns - 1)]


def test_operator_keeps_pytorchs_contract():
    for tokens in (0, 9):
        arguments = (torch.ones(tokens, 4), torch.arange(tokens) // 2, 6, 1)
        torch.library.opcheck(segment_sum, arguments)
