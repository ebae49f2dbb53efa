"""The names of all that can be looked at, or changed, inside a model: the table `HOOKS`.

    embeddings ─> layers.0.input ─> attention ─> feed_forward ─> layers.0.output ─> … ─> heads

A layer's two halves, and the embeddings, end alike: an `output` is added to what came in, the sum
is the `residual`, and its LayerNorm is what goes on. A pattern such as "layers.*.output" names the
same place of each layer: `*` and `?` stand for any characters between two dots.

| here                              | TransformerLens' HookedEncoder           |
| --------------------------------- | ---------------------------------------- |
| attention.query, key, value       | attn.hook_q, hook_k, hook_v              |
| attention.scores, probabilities   | attn.hook_attn_scores, hook_pattern      |
| attention.context, output         | attn.hook_z, hook_attn_out               |
| attention.residual                | hook_resid_mid                           |
| feed_forward.pre_activation, post | mlp.hook_pre, hook_post                  |
| feed_forward.output, residual     | hook_mlp_out, hook_resid_post            |
| input, output                     | hook_resid_pre, hook_normalized_resid_post |

Imports no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert.architectures import Model


@dataclass(frozen=True)
class Hook:
    """A place in the model."""

    name: str
    """With `*` for the layer's number, from 0."""
    axes: str
    """The tensor's, as in `kernels.kernel_set`: packed, without padding."""
    meaning: str
    is_beside: bool = False
    """Whether a fused kernel never makes this tensor, so that REFERENCE's formula makes it, from
    what the kernel is given, beside the run."""


_TOKENS = "tokens hidden"
_HEADS = "tokens heads head_dim"
_SQUARE = "seqs heads max_seqlen max_seqlen"
_WIDE = "tokens intermediate"

HOOKS = (
    Hook("embeddings.word", _TOKENS, "the token's row of the word table", True),
    Hook("embeddings.position", _TOKENS, "its position's row", True),
    Hook("embeddings.token_type", _TOKENS, "its segment's row", True),
    Hook("embeddings.residual", _TOKENS, "the sum of the three", True),
    Hook("embeddings.output", _TOKENS, "the sum's LayerNorm: hidden state 0"),
    Hook("layers.*.input", _TOKENS, "what the layer takes"),
    Hook("layers.*.attention.query", _HEADS, "what a token looks for"),
    Hook("layers.*.attention.key", _HEADS, "what it is found by"),
    Hook("layers.*.attention.value", _HEADS, "what it hands over"),
    Hook("layers.*.attention.scores", _SQUARE, "query·key / √head_dim, float32 at least", True),
    Hook("layers.*.attention.probabilities", _SQUARE, "softmax of the scores over keys", True),
    Hook("layers.*.attention.context", _HEADS, "the values, weighed by the probabilities"),
    Hook("layers.*.attention.output", _TOKENS, "the context, projected, with its bias", True),
    Hook("layers.*.attention.residual", _TOKENS, "input + attention.output"),
    Hook("layers.*.attention.normalised", _TOKENS, "its LayerNorm: what the second half takes"),
    Hook("layers.*.feed_forward.pre_activation", _WIDE, "widened, with its bias", True),
    Hook("layers.*.feed_forward.post_activation", _WIDE, "its GELU"),
    Hook("layers.*.feed_forward.output", _TOKENS, "narrowed, with its bias", True),
    Hook("layers.*.feed_forward.residual", _TOKENS, "attention.normalised + feed_forward.output"),
    Hook("layers.*.output", _TOKENS, "its LayerNorm: hidden state number + 1"),
    Hook("pooler.output", "seqs hidden", "tanh of a linear map of [CLS]"),
    Hook("mlm_head.input", "rows hidden", "the tokens that are predicted: all, or some"),
    Hook("mlm_head.pre_activation", "rows hidden", "a linear map, with its bias", True),
    Hook("mlm_head.post_activation", "rows hidden", "its GELU"),
    Hook("mlm_head.normalised", "rows hidden", "its LayerNorm: what the word table is held to"),
    Hook("mlm_head.logits", "rows vocab", "none where only a loss is computed"),
    Hook("nsp_head.logits", "seqs 2", "class 0: the second segment follows the first"),
    Hook("classifier.logits", "seqs labels", "a classifier's; tokens labels, where it tags"),
    Hook("qa_outputs.logits", "tokens 2", "where an answer starts, and ends"),
)
"""In the order in which they are computed."""

HEADS = ("mlm_head", "nsp_head", "classifier", "qa_outputs")


def hook(name: str) -> Hook:
    """Find a name's row of the table."""
    return next(hook for hook in HOOKS if _matches(name, hook.name))


def hook_names(model: "Model") -> list[str]:
    """List the places that a model has, in the order in which they are computed."""
    trunk = getattr(model, "bert", model)
    parts = {name for name in HEADS if getattr(model, name, None) is not None}
    parts |= {"pooler"} if trunk.pooler is not None else set()
    of_layers = [hook.name for hook in HOOKS if hook.name.startswith("layers")]
    names = [hook.name for hook in HOOKS if hook.name.startswith("embeddings")]
    for index in range(trunk.config.num_hidden_layers):
        names += [name.replace("*", str(index), 1) for name in of_layers]
    return names + [hook.name for hook in HOOKS if hook.name.split(".")[0] in parts]


def expand(patterns: str | Iterable[str] | None, known: Sequence[str]) -> list[str]:
    """List the known names that at least one pattern names; all where `patterns` is None.

    Raises:
        ValueError: a pattern names none.
    """
    if patterns is None:
        return list(known)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found = set()
    for pattern in patterns:
        named = {name for name in known if _matches(name, pattern)}
        if not named:
            near = get_close_matches(pattern, [*known, *(hook.name for hook in HOOKS)], 1)
            hint = f", such as {near[0]!r}" if near else ""
            raise ValueError(
                f"names: expected names of this model's hooks (bert/internals/hooks.py){hint}, "
                f"got {pattern!r}"
            )
        found |= named
    return [name for name in known if name in found]


def _matches(name: str, pattern: str) -> bool:
    """Compare part by part, so that `*` stays between two dots."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
