"""What every test stands on: one thread each, no network, fixed seeds, and where the data lie."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Triton's interpreter runs our kernels without a GPU. Triton looks at this when it is imported,
# which other libraries do too. `TRITON_INTERPRET=0 pytest -m gpu` runs them natively.
os.environ.setdefault("TRITON_INTERPRET", "1")
# A worker of pytest-xdist has one core to itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# Examples follow from the test alone, so that a failure in CI is a failure here.
hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """A file of the data collection that lies beside the repository, or a skip that names it."""

    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"data set not here: {name}")
        return path

    return find


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a GPU: none here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
