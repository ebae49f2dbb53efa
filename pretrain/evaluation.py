"""How a pretrained model is judged on held-out text, beside what knows nothing of context.

Two baselines: the unigram loss, which is that of always saying how frequent each token is, and the
majority of the pairs' labels. A run first learns the frequencies, which takes it to the unigram
loss; it can stay there for long.

A masked token has one of three fates (Devlin et al. 2018, A.1), and they are judged apart as well:
"masked" shows [MASK], "random" another token, "kept" the token itself. Whoever repeats what is
shown is right about the kept ones, and this is learned before anything about context: it alone can
take the mean loss some tenths of a nat below the unigram loss. So whether a run has left that
plateau is read off the tokens that show [MASK].
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from pretrain.batches import PretrainingBatch
from pretrain.masking import MaskingVocabulary
from pretrain.pairs import PairTask

PLATEAU = 0.1
"""Nats below the unigram loss at which the tokens that show [MASK] have left its plateau."""

# Rows of logits that an evaluation holds at a time.
ROWS = 512


def unigram_log_probabilities(counts: Int64[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """Turn how often each token occurs in the training text into log probabilities.

    Each count is raised by one, so that no token is impossible.
    """
    raised = counts.double() + 1
    return (raised / raised.sum()).log()


def token_characters(tokenizer: Tokenizer) -> Int64[Tensor, " vocab"]:
    """Count the characters of text that each token stands for: "##ing" for 3, special ones for 0.

    They are those of the normalised text (lower case, no accents, where the tokenizer is so).
    """
    is_continuation = torch.from_numpy(MaskingVocabulary.of(tokenizer).is_continuation)
    characters = torch.tensor([len(token) for token in tokenizer.vocab]) - 2 * is_continuation
    characters[list(tokenizer.special_ids)] = 0
    return characters


def evaluate(
    model: BertForPreTraining,
    batches: Iterable[PretrainingBatch],
    unigram: Float[Tensor, " vocab"],
    tokenizer: Tokenizer,
    pair_task: PairTask | None = "nsp",
) -> dict[str, float]:
    """Judge a model in evaluation mode on held-out batches.

    Args:
        model: the model.
        batches: at least one.
        unigram: see `unigram_log_probabilities`.
        tokenizer: the one of the batches.
        pair_task: what their pairs ask.

    Returns:
        Where tokens are masked: `mlm_loss`, in nats a masked token, `mlm_accuracy`, and beside
        them `unigram_loss`, on the same tokens; `loss_per_character` and `unigram_per_character`,
        nats by the characters of the masked tokens, which compares vocabularies ([UNK] is left
        out of both sums, for its text is unknown); `masked_loss`, `masked_accuracy` and so on
        of the three fates that occur. One random token in a vocabulary's size is the right one by
        chance, and counts as kept. Where there are pairs: `nsp_loss`, `nsp_accuracy` and
        `nsp_majority`, or the same of `sop`.
    """
    device = model.bert.embeddings.word.weight.device
    tokens, pairs, shown = _Judged(), _Judged(), []
    for batch in batches:
        batch = batch.to(device)
        encoded = model.bert.encode(batch.packed)
        masked = encoded.last_hidden_state.index_select(0, batch.masked_positions)
        for start in range(0, len(masked), ROWS):
            rows = slice(start, start + ROWS)
            logits = model.mlm_head(masked[rows], model.bert.embeddings.word.weight)
            tokens.add(logits, batch.masked_labels[rows])
        shown.append(batch.packed.input_ids.index_select(0, batch.masked_positions).cpu())
        if batch.next_sentence_label is not None:
            assert encoded.pooled is not None
            pairs.add(model.nsp_head(encoded.pooled), batch.next_sentence_label)
    results = {}
    if tokens.labels:
        results |= tokens.results("mlm")
        results |= _beside(tokens, unigram, token_characters(tokenizer))
        results |= _by_fate(tokens, torch.cat(shown), tokenizer.mask_id)
    if pairs.labels:
        is_one = torch.cat(pairs.labels).double().mean().item()
        results |= pairs.results(str(pair_task))
        results[f"{pair_task}_majority"] = max(is_one, 1 - is_one)
    return results


def plateau(results: Mapping[str, float]) -> list[str]:
    """Tell a user, in one line, that nothing is learned of context so far; else in none."""
    loss, floor = results.get("masked_loss"), results.get("unigram_loss")
    if loss is None or floor is None or loss <= floor - PLATEAU:
        return []
    return [
        f"still on the unigram plateau: words under [MASK] cost {loss:.3f} nats, and {floor:.3f} "
        f"by frequency alone; less than {PLATEAU} was gained from context so far"
    ]


@dataclass
class _Judged:
    """The loss of each guess, whether it was right, and the answer; on the CPU."""

    losses: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]) -> None:
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self.losses.append(losses.double().cpu())
        self.right.append((logits.argmax(-1) == labels).cpu())
        self.labels.append(labels.cpu())

    def results(self, name: str, of: Bool[Tensor, " rows"] | None = None) -> dict[str, float]:
        """Return the mean loss and the accuracy, of some rows or of all; nothing of none."""
        losses, right = torch.cat(self.losses), torch.cat(self.right)
        if of is not None:
            losses, right = losses[of], right[of]
        if not len(losses):
            return {}
        return {
            f"{name}_loss": losses.mean().item(),
            f"{name}_accuracy": right.double().mean().item(),
        }


def _beside(
    tokens: _Judged, unigram: Float[Tensor, " vocab"], characters: Int64[Tensor, " vocab"]
) -> dict[str, float]:
    """Return the unigram loss, and both losses by characters where any are known."""
    labels = torch.cat(tokens.labels)
    by_frequency, length = -unigram[labels], characters[labels]
    results = {"unigram_loss": by_frequency.mean().item()}
    is_known = length > 0
    if is_known.any():
        total = length.sum().item()
        losses = torch.cat(tokens.losses)
        results["loss_per_character"] = losses[is_known].sum().item() / total
        results["unigram_per_character"] = by_frequency[is_known].sum().item() / total
    return results


def _by_fate(tokens: _Judged, shown: Int64[Tensor, " masked"], mask_id: int) -> dict[str, float]:
    """Judge the masked tokens by what the model was shown in their place."""
    is_kept = shown == torch.cat(tokens.labels)
    is_masked = shown == mask_id
    return {
        **tokens.results("masked", is_masked),
        **tokens.results("random", ~is_masked & ~is_kept),
        **tokens.results("kept", is_kept),
    }
