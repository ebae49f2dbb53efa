"""The Triton kernels run interpreted here, with every output poisoned before it is written.

`TRITON_INTERPRET=0 pytest -m gpu` runs test_on_gpu.py natively; the others need the interpreter.
"""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
import triton  # noqa: E402

# tests/conftest.py asks for the interpreter before anything can have imported Triton.
INTERPRETED = triton.knobs.runtime.interpret

from tests.kernels import interpreter  # noqa: E402


@pytest.fixture(autouse=True)
def poison():
    """In this mode PyTorch fills what it allocates with NaN: an element never written shows."""
    torch.use_deterministic_algorithms(True, warn_only=not INTERPRETED)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=interpreter.ORDERS)
def any_order(request):
    """The programs of each grid, in three orders."""
    with interpreter.programs_in(request.param):
        yield


def pytest_collection_modifyitems(items):
    """Skip what runs on the other side only: this is asked of the whole session's tests."""
    for item in items:
        if Path(item.path).parent != Path(__file__).parent:
            continue
        if not INTERPRETED and "gpu" not in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs the interpreter: TRITON_INTERPRET=0"))
        if INTERPRETED and "gpu" in item.keywords and torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs kernels that are not interpreted"))
