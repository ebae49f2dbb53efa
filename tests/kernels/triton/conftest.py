"""The Triton kernels run interpreted here, with every output poisoned before it is written."""

import pytest
import torch

pytest.importorskip("triton")
import triton  # noqa: E402

# tests/conftest.py asks for the interpreter before anything can have imported Triton.
assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before the first import"

from tests.kernels import interpreter  # noqa: E402


@pytest.fixture(autouse=True)
def poison():
    """In this mode PyTorch fills what it allocates with NaN: an element never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=interpreter.ORDERS)
def any_order(request):
    """The programs of each grid, in three orders."""
    with interpreter.programs_in(request.param):
        yield
