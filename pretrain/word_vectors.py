"""Word vectors counted from the text: where the word embedding of a short run can start.

Tokens that stand near each other are counted, the counts become positive pointwise mutual
information with the contexts' distribution smoothed (Levy, Goldberg & Dagan 2015, sections 2 and
3.2), and a truncated singular value decomposition makes vectors of the rows. A run of minutes sees
a rare word too seldom to learn where it belongs; counting sees all of the text in seconds.

With tokens w and c, how often they are neighbours n(w, c), and p(c) ∝ n(c)^¾:

    M(w, c) = max(0, log n(w, c) / (n(w) · p(c))),   M ≈ U S Vᵀ,   vectors = U √S
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.config import VECTOR_WINDOW
from pretrain.corpus import Corpus

SMOOTHING = 0.75
_PIECE = 1 << 22  # tokens counted at a time, which bounds the memory


def count_neighbours(corpus: Corpus, window: int = VECTOR_WINDOW) -> Tensor:
    """Count the tokens that stand at most `window` places from each other in a document.

    Returns:
        A symmetric sparse matrix [vocab, vocab], float32, coalesced.
    """
    vocab = corpus.manifest["vocab_size"]
    ends = np.asarray(corpus.sentence_offsets)[np.asarray(corpus.document_offsets)]
    total = _sparse(np.zeros((2, 0), np.int64), np.zeros(0, np.float32), vocab)
    for begin in range(int(ends[0]), int(ends[-1]), _PIECE):
        stop = min(begin + _PIECE, int(ends[-1]))
        tokens = corpus.tokens[begin : min(stop + window, int(ends[-1]))].astype(np.int64)
        document_end = ends[np.searchsorted(ends, np.arange(begin, stop), "right")]
        place = np.arange(begin, stop)
        keys, weights = [], []
        for distance in range(1, window + 1):
            first = place[place + distance < document_end] - begin
            pairs, times = np.unique(
                tokens[first] * vocab + tokens[first + distance], return_counts=True
            )
            keys.append(pairs)
            weights.append(times.astype(np.float32))
        indices = np.stack(np.divmod(np.concatenate(keys), vocab))
        total = (total + _sparse(indices, np.concatenate(weights), vocab)).coalesce()
    return (total + total.t()).coalesce()


def word_vectors(
    corpora: Sequence[Corpus], width: int, seed: int, window: int = VECTOR_WINDOW
) -> Float[Tensor, "vocab hidden"]:
    """Make a vector for each token of the vocabulary from its neighbours in the text.

    Args:
        corpora: the text. Each weighs the same, whatever its size: so a little text of the kind
            that is wanted can stand beside much of another.
        width: of a vector; at most the vocabulary's size.
        seed: of the randomised decomposition.
        window: tokens on each side that are neighbours.

    Returns:
        float32 with a root mean square of 1 over the tokens that the text has; zeros for others.
    """
    counts = _mean([count_neighbours(corpus, window) for corpus in corpora])
    rows, columns = counts.indices()
    of_token = torch.zeros(counts.shape[0]).index_add(0, rows, counts.values())
    smoothed = of_token**SMOOTHING
    context = smoothed / smoothed.sum()
    information = torch.log(counts.values() / (of_token[rows] * context[columns]))
    positive = information > 0
    matrix = torch.sparse_coo_tensor(
        torch.stack((rows[positive], columns[positive])),
        information[positive],
        counts.shape,
        check_invariants=False,
    )
    left, singular = _largest_singular(matrix, min(width + 16, counts.shape[0]), seed)
    vectors = torch.zeros(counts.shape[0], width)
    kept = min(width, left.shape[1])
    vectors[:, :kept] = left[:, :kept] * singular[:kept].sqrt()
    seen = of_token > 0
    vectors[~seen] = 0
    return vectors / vectors[seen].square().mean().sqrt()


def _mean(counts: Sequence[Tensor]) -> Tensor:
    """Add counts, each as shares of its sum."""
    total = torch.zeros_like(counts[0])
    for count in counts:
        total = total + count / count.values().sum()
    return total.coalesce()


def _largest_singular(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Find left singular vectors and singular values by subspace iteration from a random start.

    (Halko, Martinsson & Tropp 2011, algorithm 4.4.) Rows compressed, since products with a
    matrix in that form run many times as fast as torch.svd_lowrank's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        forward, backward = (m.coalesce().to_sparse_csr() for m in (matrix, matrix.t()))
    generator = torch.Generator().manual_seed(seed % 2**63)
    basis = torch.randn(matrix.shape[1], rank, generator=generator)
    for _ in range(3):
        basis = torch.linalg.qr(forward @ basis).Q
        basis = torch.linalg.qr(backward @ basis).Q
    basis = torch.linalg.qr(forward @ basis).Q
    within, singular, _ = torch.linalg.svd((backward @ basis).T, full_matrices=False)
    return basis @ within, singular


def _sparse(indices: np.ndarray, values: np.ndarray, vocab: int) -> Tensor:
    return torch.sparse_coo_tensor(
        torch.from_numpy(indices), torch.from_numpy(values), (vocab, vocab), check_invariants=False
    )
