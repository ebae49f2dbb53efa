"""A Ray cluster of two processes makes the same shards as this process does."""

import os
import sys
from functools import partial

import pytest

from pretrain.preparation import prepare
from pretrain.ray_workers import ray_workers
from tests.conftest import ROOT
from tests.pretrain.texts import TOKENIZER, contents, make_documents, write_text


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_bytes(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray: pip install -e .[ray]")
    monkeypatch.setattr("pretrain.shard_texts.SHARD", 20_000)
    # The cluster's processes find this package, and whatever lies on our path.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    # A starting node may take long on a machine that has other things to do.
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token to the home directory
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    text = write_text(tmp_path / "text.txt", make_documents(2000))
    expected = prepare([text], tmp_path / "here", TOKENIZER, progress=False)
    here = {"num_cpus": 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    cluster = partial(ray_workers, **here)
    corpus = prepare([text], tmp_path / "there", TOKENIZER, workers=cluster, progress=False)
    assert contents(corpus.directory) == contents(expected.directory)


@pytest.mark.errors
def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match="ray is missing; install the extra ray: pip"):
        with ray_workers(tmp_path, TOKENIZER, 128):
            pass
