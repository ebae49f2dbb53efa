"""Shards made by a Ray cluster, in place of processes of this machine.

    prepare(files, out, tokenizer, workers=partial(ray_workers, address="auto"))

This process still reads the files and puts the corpus together; the cluster tokenizes. Its
machines must see the directory of `out` under the same path, and have this package.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from bert.tokenization import Tokenizer
from pretrain.shard_workers import ShardExecutor
from pretrain.shards import prepare_shard


@contextmanager
def ray_workers(
    place: Path, tokenizer: Tokenizer, max_sentence_tokens: int, **ray_options: Any
) -> Iterator[ShardExecutor]:
    """Connect to a Ray cluster, or start one here, and give what makes shards on it.

    Args:
        place: where shards are made; all machines must see it.
        tokenizer: sent to the cluster once.
        max_sentence_tokens: see `prepare_shard`.
        ray_options: of `ray.init`: an `address`, or `num_cpus` of a cluster on this machine alone.

    Raises:
        ModuleNotFoundError: Ray is not installed.
    """
    try:
        ray = import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ray is missing; install the extra ray: pip install -e .[ray]", name="ray"
        ) from error
    ray.init(**ray_options)
    try:
        yield _Cluster(ray, tokenizer, max_sentence_tokens)
    finally:
        ray.shutdown()


class _Cluster:
    def __init__(self, ray: Any, tokenizer: Tokenizer, max_sentence_tokens: int) -> None:
        self.at_once = int(ray.cluster_resources()["CPU"])
        self._prepare_shard = ray.remote(prepare_shard)
        self._rest = ray.put(tokenizer), max_sentence_tokens

    def submit(self, text: Path, directory: Path) -> Future[Any]:
        # Absolute: the cluster's processes have working directories of their own.
        task = self._prepare_shard.remote(text.absolute(), directory.absolute(), *self._rest)
        return task.future()
