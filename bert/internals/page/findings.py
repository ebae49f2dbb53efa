"""What the heads of a model say, layer by layer and part by part, as the page's payload."""

from dataclasses import dataclass

import torch

from bert.architectures import Model
from bert.finetuning import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from bert.framing import Encoding
from bert.internals.attribution import ClassLogit, WordLogit, blank, gradient_times_input
from bert.internals.capture import Cache, forward
from bert.internals.lens import lens
from bert.internals.logit_attribution import attribute_logit
from bert.internals.page.payload import Answer, Attributed, Lens, Parts, Patched, rounded
from bert.internals.patching import COMPONENTS, patch
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM
from bert.tokenization import Tokenizer


@dataclass(frozen=True)
class Question:
    """A text that a masked-word model reads, and what is held to be right at each token."""

    model: BertForMaskedLM
    tokenizer: Tokenizer
    batch: PackedBatch
    truth: list[int]
    """At a [MASK] the answer that was given, or the model's likeliest; elsewhere the token."""
    masks: list[int]
    """Where the [MASK]s stand."""

    @staticmethod
    @torch.no_grad()
    def of(
        model: BertForMaskedLM,
        tokenizer: Tokenizer,
        batch: PackedBatch,
        encoded: Encoding,
        answer: str | None,
    ) -> "Question":
        """Find the masks, and what is right there.

        Raises:
            ValueError: an answer that is no token, or no [MASK] for it.
        """
        masks = [place for place, id in enumerate(encoded.ids) if id == tokenizer.mask_id]
        truth = list(encoded.ids)
        likeliest = forward(model, batch)[:, : tokenizer.vocab_size].argmax(-1).tolist()
        for place in masks:
            truth[place] = likeliest[place]
        if answer is not None:
            if not masks:
                raise ValueError("answer: expected a [MASK] in the text for it, got none")
            truth[masks[0]] = token_id(tokenizer, answer, "answer")
        return Question(model, tokenizer, batch, truth, masks)


def token_id(tokenizer: Tokenizer, token: str, name: str) -> int:
    """Find a token, as the vocabulary has it or as the tokenizer would write it.

    Raises:
        ValueError: there is none; the message begins with `name`.
    """
    if (found := tokenizer.token_to_id(token)) is not None:
        return found
    (ids,) = tokenizer.encode_plain([token])
    if len(ids) != 1 or ids[0] == tokenizer.unk_id:
        raise ValueError(f"{name}: expected one token of the vocabulary, got {token!r:.80}")
    return ids[0]


def lens_of(question: Question, top_k: int) -> Lens:
    """Read each layer by the masked-word head."""
    vocab = question.tokenizer.vocab
    read = lens(
        question.model,
        question.batch,
        range(len(question.truth)),
        question.truth,
        top_k,
        len(vocab),
    )
    places = {id: place for place, id in enumerate(sorted(set(read.top_ids.flatten().tolist())))}
    return Lens(
        words=[vocab[id] for id in places],
        guesses=[[[places[i] for i in row] for row in state] for state in read.top_ids.tolist()],
        probabilities=rounded(read.top_probabilities.tolist()),
        truth=[vocab[id] for id in question.truth],
        rank=read.truth_rank.tolist(),
        divergence=rounded(read.kl_to_last.tolist()),
        vocabulary=len(vocab),
    )


def attributed_of(
    model: Model, tokenizer: Tokenizer, batch: PackedBatch, question: Question | None
) -> Attributed | None:
    """Say which tokens the prediction at the first [MASK], or the text's class, hangs on.

    The baseline is the text with [MASK] in the place of each of its tokens.
    """
    baseline = PackedBatch.from_lists(
        [blank(tokenizer, batch.input_ids.tolist())],
        [batch.token_type_ids.tolist()],
        batch.input_ids.device,
    )
    if question is not None and question.masks:
        place = question.masks[0]
        target, name = (
            WordLogit(place, question.truth[place]),
            tokenizer.vocab[question.truth[place]],
        )
        scores = gradient_times_input(question.model, batch, target, baseline)
    elif isinstance(model, BertForSequenceClassification):
        place, label = None, int(forward(model, batch)[0].argmax())
        name = model.config.id2label[label]
        scores = gradient_times_input(model, batch, ClassLogit(label), baseline)
    else:
        return None
    return Attributed(name, place, rounded(scores.tolist()))


def parts_of(question: Question) -> Parts | None:
    """Take the logit at the first [MASK] apart; None where there is none."""
    if not question.masks:
        return None
    place = question.masks[0]
    found = attribute_logit(question.model, question.batch, place, question.truth[place])
    names, shares = zip(*found.ranked(), strict=True)
    return Parts(
        place,
        question.tokenizer.vocab[question.truth[place]],
        rounded(found.logit),
        list(names),
        rounded(list(shares)),
        rounded(found.remainder),
    )


def patched_of(question: Question, other: Encoding, other_answer: str | None) -> Patched:
    """Patch the text's run from the other one's.

    Raises:
        ValueError: no [MASK] at the same place of both, not as many tokens, or the same answer.
    """
    length = len(question.truth)
    place = question.masks[0] if question.masks else -1
    mask = question.tokenizer.mask_id
    if len(other) != length:
        raise ValueError(f"other: expected {length} tokens, as many as text, got {len(other)}")
    if place < 0 or other.ids[place] != mask:
        where = f"at token {place}, as in text" if place >= 0 else "in both texts"
        raise ValueError(f"other: expected a [MASK] {where}, got none")
    device = question.batch.input_ids.device
    batch = PackedBatch.from_lists([other.ids], [other.token_type_ids], device)
    theirs = Question.of(question.model, question.tokenizer, batch, other, other_answer)
    tokens = theirs.truth[place], question.truth[place]
    vocab = question.tokenizer.vocab
    if tokens[0] == tokens[1]:
        raise ValueError(
            "other_answer: expected another token than the text's answer, or the model's guess "
            f"where none is given, got {vocab[tokens[0]]!r} for both"
        )
    found = patch(question.model, question.batch, batch, place, tokens)
    layers = question.model.config.num_hidden_layers
    changes = {name: [[0.0] * length for _ in range(layers)] for name in COMPONENTS}
    for one in found.patches:
        changes[one.component][one.layer][one.position] = one.change
    return Patched(
        tokens=other.tokens,
        place=place,
        first=vocab[tokens[0]],
        second=vocab[tokens[1]],
        here=rounded(found.target),
        there=rounded(found.source),
        changes={name: rounded(rows) for name, rows in changes.items()},
        heads=rounded(found.heads.tolist()),
    )


def answer_of(model: Model, cache: Cache) -> Answer | None:
    """Say what a fine-tuned model answers; None for an encoder or a masked-word model."""
    labels = [label for _, label in sorted(model.config.id2label.items())]
    if isinstance(model, BertForMultipleChoice):
        return Answer("As one choice of several", ["logit"], _plain(cache, "classifier"), "number")
    if isinstance(model, BertForSequenceClassification):
        if model.config.num_labels == 1:
            return Answer("Its rating", labels, _plain(cache, "classifier"), "number")
        logits = cache["classifier.logits"].double()
        is_multi = model.config.problem_type == "multi_label_classification"
        shares = logits.sigmoid() if is_multi else logits.softmax(-1)
        return Answer("Its answer", labels, rounded(shares.tolist()), "text")
    if isinstance(model, BertForTokenClassification):
        shares = cache["classifier.logits"].double().softmax(-1)
        return Answer("Its answer, token by token", labels, rounded(shares.tolist()), "tokens")
    if isinstance(model, BertForQuestionAnswering):
        shares = cache["qa_outputs.logits"].double().softmax(0)
        title = "Where its answer starts and ends"
        return Answer(title, ["starts", "ends"], rounded(shares.tolist()), "tokens")
    return None


def _plain(cache: Cache, head: str) -> list[list[float | None]]:
    return rounded(cache[f"{head}.logits"].double().tolist())
