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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from bert.training.distributed import ALONE, World
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
    batches: Sequence[PretrainingBatch],
    unigram: Float[Tensor, " vocab"],
    tokenizer: Tokenizer,
    pair_task: PairTask | None = "nsp",
    world: World = ALONE,
) -> dict[str, float]:
    """Judge a model in evaluation mode on held-out batches.

    Args:
        model: the model.
        batches: at least one.
        unigram: see `unigram_log_probabilities`.
        tokenizer: the one of the batches.
        pair_task: what their pairs ask.
        world: the processes that share the batches; all call this, and get the same.

    Returns:
        Where tokens are masked: `mlm_loss`, in nats a masked token, `mlm_accuracy`, and beside
        them `unigram_loss`, on the same tokens; `loss_per_character` and `unigram_per_character`,
        nats by the characters of the masked tokens, which compares vocabularies ([UNK] is left
        out of both sums, for its text is unknown); `masked_loss`, `masked_accuracy` and so on
        of the three fates that occur. One random token in a vocabulary's size is the right one by
        chance, and counts as kept. Where there are pairs: `nsp_loss`, `nsp_accuracy` and
        `nsp_majority`, or the same of `sop`.
    """
    everyones = world.gather([_judge(model, batch) for batch in batches[world.rank :: world.size]])
    tokens, pairs = _Judged(), _Judged()
    for index in range(len(batches)):  # in their order, for sums of the same rounding
        of_tokens, of_pairs = everyones[index % world.size][index // world.size]
        tokens.extend(of_tokens)
        pairs.extend(of_pairs)
    results = {}
    if tokens.labels:
        results |= tokens.results("mlm")
        results |= _beside(tokens, unigram, token_characters(tokenizer))
        results |= _by_fate(tokens, tokenizer.mask_id)
    if pairs.labels:
        is_one = torch.tensor(pairs.labels).double().mean().item()
        results |= pairs.results(str(pair_task))
        results[f"{pair_task}_majority"] = max(is_one, 1 - is_one)
    return results


def _judge(model: BertForPreTraining, batch: PretrainingBatch) -> list[dict[str, list]]:
    """Judge what the model says of a batch's masked tokens, and of its pairs."""
    batch = batch.to(model.bert.embeddings.word.weight.device)
    encoded = model.bert.encode(batch.packed)
    masked = encoded.last_hidden_state.index_select(0, batch.masked_positions)
    tokens, pairs = _Judged(), _Judged()
    for start in range(0, len(masked), ROWS):
        rows = slice(start, start + ROWS)
        logits = model.mlm_head(masked[rows], model.bert.embeddings.word.weight)
        tokens.add(logits, batch.masked_labels[rows])
    tokens.shown = batch.packed.input_ids.index_select(0, batch.masked_positions).tolist()
    if batch.next_sentence_label is not None:
        assert encoded.pooled is not None
        pairs.add(model.nsp_head(encoded.pooled), batch.next_sentence_label)
    return [asdict(tokens), asdict(pairs)]


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
    """The loss of each guess, whether it was right, the answer, and what a token was shown as."""

    losses: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def add(self, logits: Float[Tensor, "rows classes"], labels: Int64[Tensor, " rows"]) -> None:
        losses = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
        self.losses += losses.double().tolist()
        self.right += (logits.argmax(-1) == labels).tolist()
        self.labels += labels.tolist()

    def extend(self, more: Mapping[str, list]) -> None:
        for name, values in more.items():
            getattr(self, name).extend(values)

    def results(self, name: str, of: Bool[Tensor, " rows"] | None = None) -> dict[str, float]:
        """Return the mean loss and the accuracy, of some rows or of all; nothing of none."""
        losses = torch.tensor(self.losses, dtype=torch.float64)
        right = torch.tensor(self.right)
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
    labels = torch.tensor(tokens.labels)
    by_frequency, length = -unigram[labels], characters[labels]
    results = {"unigram_loss": by_frequency.mean().item()}
    is_known = length > 0
    if is_known.any():
        total = length.sum().item()
        losses = torch.tensor(tokens.losses, dtype=torch.float64)
        results["loss_per_character"] = losses[is_known].sum().item() / total
        results["unigram_per_character"] = by_frequency[is_known].sum().item() / total
    return results


def _by_fate(tokens: _Judged, mask_id: int) -> dict[str, float]:
    """Judge the masked tokens by what the model was shown in their place."""
    shown = torch.tensor(tokens.shown)
    is_kept = shown == torch.tensor(tokens.labels)
    is_masked = shown == mask_id
    return {
        **tokens.results("masked", is_masked),
        **tokens.results("random", ~is_masked & ~is_kept),
        **tokens.results("kept", is_kept),
    }
