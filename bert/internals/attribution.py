"""Which tokens a prediction hangs on: integrated gradients, and gradient × input.

Both ask how a logit F would move with the tokens' word vectors x; positions and segments stay.

    gradient × input       Σ (x − x′) · ∂F/∂x at x: as if F were the straight line that it is at x
    integrated gradients   Σ (x − x′) · ∫₀¹ ∂F/∂x (x′ + a (x − x′)) da, from a baseline x′ that
                           says nothing (Sundararajan et al. 2017, section 3)

Each is summed over a vector's dimensions: a number for each token, in logits. Those of integrated
gradients add up to F(x) − F(x′); by how much the sum misses, because the integral is a sum of a
few terms, is the delta.

The embedding kernel looks rows up in a table. Here the table is the vectors themselves, and the
ids count its rows: so that the gradient of the "table" is the vectors' own, on any backend.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bert.finetuning import BertForSequenceClassification, BertForTokenClassification
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM
from bert.tokenization import Tokenizer
from kernels import PackedSequences
from kernels.kernel_set import EmbeddingIndices, EmbeddingTables

TOKENS = 4096
"""Tokens of a forward pass, about: this many of the path's points times a text's length."""


@dataclass(frozen=True)
class WordLogit:
    """The logit of a word of the vocabulary at a position of the text."""

    position: int
    """Of the token that is predicted, which usually is [MASK]; 0 is [CLS]."""
    token_id: int


@dataclass(frozen=True)
class ClassLogit:
    """A classifier's logit of one class: of the text, or of one of its tokens."""

    label: int
    position: int | None = None
    """None: of the text."""


Explained = BertForMaskedLM | BertForSequenceClassification | BertForTokenClassification
_Logit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class IntegratedGradients:
    """What each token adds to a logit, compared with a baseline."""

    scores: Float[Tensor, " tokens"]
    logit: float
    """Of the text."""
    baseline_logit: float
    delta: float
    """The sum of the scores, less the difference of the logits: more steps bring it to 0."""


def integrated_gradients(
    model: Explained,
    text: PackedBatch,
    baseline: PackedBatch,
    target: WordLogit | ClassLogit,
    steps: int = 50,
) -> IntegratedGradients:
    """Attribute a logit to the tokens of a text (Sundararajan et al. 2017), by captum.

    Args:
        model: in evaluation mode, on any backend.
        text: one sequence.
        baseline: the same sequence where nothing is said, see `blank`. Where its token is the
            text's, as at a [MASK], the score is 0.
        target: a `WordLogit` of a model for masked words, a `ClassLogit` of a classifier.
        steps: points of the path, those of Gauss and Legendre.

    Raises:
        ValueError: the model, the texts and the target don't fit together.
        ModuleNotFoundError: captum is not installed.
    """
    captum = _require_captum()
    logit = _logit_of_vectors(model, text, target)
    _check_baseline(text, baseline)
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    word = model.bert.embeddings.word.weight.detach()
    ends = word[text.input_ids][None], word[baseline.input_ids][None]
    attributions, delta = captum.IntegratedGradients(logit).attribute(
        *ends,
        n_steps=steps,
        internal_batch_size=max(TOKENS // text.sequences.tokens, 1),
        return_convergence_delta=True,
    )
    with torch.no_grad():
        values = [float(logit(vectors)) for vectors in ends]
    scores = attributions[0].sum(-1).detach()
    return IntegratedGradients(scores, values[0], values[1], float(delta))


def gradient_times_input(
    model: Explained,
    text: PackedBatch,
    target: WordLogit | ClassLogit,
    baseline: PackedBatch | None = None,
) -> Float[Tensor, " tokens"]:
    """Multiply each token's word vector with the gradient of a logit (Shrikumar et al. 2016).

    One backward pass; what it says holds near the text alone. In a BERT it needs the baseline:
    the LayerNorm of the embeddings doesn't see how long a sum of word, position and segment is,
    so that the gradient times the whole sum is 0, whatever the token does to the logit. Without a
    baseline the word's share is no more than what position and segment have with the other sign.

    Args:
        model: see `integrated_gradients`, for the next two as well.
        text: one sequence.
        target: what is explained.
        baseline: its vectors are taken away first; None: nothing is.

    Raises:
        ValueError: as `integrated_gradients`.
    """
    logit = _logit_of_vectors(model, text, target)
    word = model.bert.embeddings.word.weight.detach()
    vectors = word[text.input_ids][None].requires_grad_()
    (gradient,) = torch.autograd.grad(logit(vectors).sum(), vectors)
    way = vectors.detach()
    if baseline is not None:
        _check_baseline(text, baseline)
        way = way - word[baseline.input_ids]
    return (gradient * way).sum(-1)[0]


def blank(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Make a baseline's ids: [MASK] in the place of each token that isn't a special one.

    To BERT a [MASK] is a word that it isn't told, which it met in training; a vector of zeros, or
    [PAD], is none that it ever saw.
    """
    special = set(tokenizer.special_ids) - {tokenizer.unk_id}
    return [id if id in special else tokenizer.mask_id for id in ids]


def _logit_of_vectors(model: Explained, text: PackedBatch, target: Any) -> _Logit:
    """Make the function that turns word vectors, [copies, tokens, hidden], into logits, [copies].

    Raises:
        ValueError: see `integrated_gradients`.
    """
    if model.training:
        raise ValueError("model: expected evaluation mode (model.eval()), got training mode")
    if len(text.sequences.lengths) != 1 or not text.sequences.tokens:
        raise ValueError(
            f"text: expected one sequence of a token or more, got lengths "
            f"{list(text.sequences.lengths)}"
        )
    model.bert.check(text)
    read = _reader(model, text.sequences.tokens, target)
    trunk, tokens = model.bert, text.sequences.tokens

    def logit(vectors: Tensor) -> Tensor:
        copies, tables = len(vectors), trunk.embeddings
        sequences = PackedSequences.from_lengths([tokens] * copies, vectors.device)
        embedded = trunk.kernels.embedding_layer_norm(
            EmbeddingIndices(
                torch.arange(copies * tokens, device=vectors.device),
                text.position_ids.repeat(copies),
                text.token_type_ids.repeat(copies),
            ),
            EmbeddingTables(
                vectors.flatten(0, 1), tables.position.weight, tables.token_type.weight
            ),
            tables.norm.weight,
            tables.norm.bias,
            tables.norm.eps,
            -1,
            None,
        )
        return read(trunk.encoder(embedded, sequences, None)[-1], sequences)

    return logit


def _reader(
    model: Explained, tokens: int, target: WordLogit | ClassLogit
) -> Callable[[Tensor, PackedSequences], Tensor]:
    """Make the function that reads each copy's logit off the last hidden states."""
    is_of_words = isinstance(model, BertForMaskedLM)
    if is_of_words != isinstance(target, WordLogit):
        wanted = "WordLogit" if is_of_words else "ClassLogit"
        raise ValueError(f"target: expected a {wanted} of {type(model).__name__}, got {target}")
    is_of_text = isinstance(model, BertForSequenceClassification)
    if is_of_text != (target.position is None):
        wanted = "none, for a class of the text" if is_of_text else "a token's"
        raise ValueError(f"position: expected {wanted}, got {target.position}")
    position = target.position or 0
    _check_below("position", position, tokens)
    if isinstance(target, WordLogit):
        assert isinstance(model, BertForMaskedLM)
        _check_below("token_id", target.token_id, model.config.vocab_size)
        head, id = model.mlm_head, target.token_id
        row = head.output_weight(model.bert.embeddings.word.weight)[id]
        return lambda hidden, _: head.transform(hidden[position::tokens]) @ row + head.bias[id]
    assert not isinstance(model, BertForMaskedLM)
    label, classifier = target.label, model.classifier
    _check_below("label", label, model.config.num_labels)
    if isinstance(model, BertForTokenClassification):
        return lambda hidden, _: classifier(hidden[position::tokens])[:, label]
    pooler = model.bert.pooler
    assert pooler is not None
    return lambda hidden, sequences: classifier(pooler(hidden, sequences))[:, label]


def _check_baseline(text: PackedBatch, baseline: PackedBatch) -> None:
    if baseline.sequences.lengths != text.sequences.lengths:
        raise ValueError(
            f"baseline: expected one sequence of {text.sequences.tokens} tokens, as the text's, "
            f"got {list(baseline.sequences.lengths)}"
        )


def _check_below(name: str, value: int, limit: int) -> None:
    if not 0 <= value < limit:
        raise ValueError(f"{name}: expected 0 to {limit - 1}, got {value}")


def _require_captum() -> Any:
    try:
        import captum.attr
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "captum":
            raise
        raise ModuleNotFoundError(
            "captum is missing; install the extra internals: pip install -e .[internals]",
            name="captum",
        ) from None
    return captum.attr
