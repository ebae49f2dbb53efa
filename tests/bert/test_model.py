"""Properties of the model that hold whatever its weights are; the numbers are test_parity's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PackedBatch,
)
from bert.packing import pack, unpack
from kernels import REFERENCE, TORCH

CONFIG = BertConfig(
    vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
    intermediate_size=40, max_position_embeddings=16,
).with_labels(["a", "b", "c"])  # fmt: skip


def model_of(model_class=Bert, kernels=TORCH, **options):
    torch.manual_seed(1)
    model = model_class(CONFIG, kernels, **options).double()
    with torch.no_grad():  # biases and norms start at constants, which would hide their absence
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ids(*shape):
    return torch.randint(1, 50, shape)


def test_padding_changes_nothing_and_packed_equals_padded():
    model = model_of().eval()
    rows = [ids(5), ids(1), ids(9)]
    padded, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, 1
    together = model(padded, mask)
    packed = model.encode(PackedBatch.from_lists([r.tolist() for r in rows]))
    for i, row in enumerate(rows):
        alone = model(row[None])
        end = len(row)
        torch.testing.assert_close(together.last_hidden_state[i, :end], alone.last_hidden_state[0])
        torch.testing.assert_close(together.pooler_output[i], alone.pooler_output[0])
        assert (together.last_hidden_state[i, end:] == 0).all()
    torch.testing.assert_close(packed.last_hidden_state, together.last_hidden_state[mask == 1])
    # What stands under the padding is never read.
    padded[mask == 0] = 7
    assert torch.equal(model(padded, mask).last_hidden_state, together.last_hidden_state)


def test_all_padding_gives_zeros_and_finite_gradients():
    model = model_of()
    out = model(ids(2, 4), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]]))
    assert (out.pooler_output[0] == 0).all() and (out.last_hidden_state[0] == 0).all()
    assert (out.pooler_output[1] != 0).any()
    out.pooler_output.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model(ids(2, 0)).last_hidden_state.shape == (2, 0, 24)


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**30))
def test_unpack_undoes_pack(batch, seq, seed):
    generator = torch.Generator().manual_seed(seed)
    padded = torch.randint(1, 50, (batch, seq), generator=generator)
    mask = torch.randint(0, 2, (batch, seq), generator=generator)
    packed, kept = pack(padded, mask, padded % 2)
    assert packed.sequences.lengths == tuple(mask.sum(1).tolist())
    back = unpack(packed.input_ids[:, None].double(), kept, batch, seq).squeeze(-1)
    assert torch.equal(back.long(), padded * mask)
    assert torch.equal(packed.token_type_ids, packed.input_ids % 2)
    expected = torch.arange(seq).expand(batch, seq)[mask == 1]
    assert torch.equal(packed.position_ids, expected)


def test_hidden_states_and_attentions_on_request():
    model = model_of().eval()
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    out = model(ids(3, 5), mask, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    for attention in out.attentions:
        assert attention.shape == (3, 3, 5, 5)
        rows = attention.sum(-1)  # one where the query is a token, zero where it is padding
        torch.testing.assert_close(rows, mask[:, None].expand(3, 3, 5).double())
        assert (attention * (1 - mask)[:, None, None, :] == 0).all()
    plain = model(ids(3, 5), mask)
    assert plain.hidden_states is None and plain.attentions is None
    # They are the probabilities that the layer used: with them, its context comes out again.
    layer, hidden = model.encoder.layers[0].attention, out.hidden_states[0][1, 1:]
    _, _, value = layer.split_heads(hidden)
    context = torch.einsum("hij,jhd->ihd", out.attentions[0][1, :, 1:, 1:], value)
    sequences = PackedBatch.from_lists([[1] * 4]).sequences
    query, key, _ = layer.split_heads(hidden)
    torch.testing.assert_close(context, TORCH.attention(query, key, value, sequences))


@pytest.mark.parametrize("kernels", [TORCH, REFERENCE], ids=str)
def test_gradient_checkpointing_changes_no_gradient(kernels):
    batch = PackedBatch.from_lists([ids(7).tolist(), ids(4).tolist()])
    seed = torch.tensor(99)
    gradients = []
    for on in (False, True):
        model = model_of(kernels=kernels).train()
        model.gradient_checkpointing = on
        assert model.gradient_checkpointing is on
        model.encode(batch, seed).last_hidden_state.square().sum().backward()
        gradients.append([p.grad for p in model.encoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_follows_from_the_seed_and_from_nothing_else():
    model, batch = model_of().train(), PackedBatch.from_lists([ids(9).tolist()])

    def out(seed=None):
        return model.encode(batch, seed).last_hidden_state

    assert torch.equal(out(torch.tensor(3)), out(torch.tensor(3)))
    assert not torch.equal(out(torch.tensor(3)), out(torch.tensor(4)))
    assert not torch.equal(out(), out())
    torch.manual_seed(5)
    first = out()
    torch.manual_seed(5)
    assert torch.equal(first, out())
    model.eval()
    assert torch.equal(out(torch.tensor(3)), out())


def test_every_place_that_drops_has_a_stream_of_its_own():
    """Equal activations at two places must not get equal masks."""
    model = model_of(BertForSequenceClassification)
    streams = [0]
    for layer in model.bert.encoder.layers:
        first = layer.attention.first_stream
        streams += [first, first + 1, layer.feed_forward.stream]
    streams.append(model.bert.head_dropout(torch.tensor(1)).stream)
    assert streams == list(range(len(streams)))


def test_masked_positions_alone_give_the_loss_of_all_logits():
    model = model_of(BertForPreTraining).eval()
    tokens, mask = ids(3, 8), torch.ones(3, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    labels = torch.full((3, 8), -100)
    labels[0, 2], labels[1, 1], labels[2, 7], labels[1, 6] = 4, 9, 30, 8  # the last is padding
    nsp = torch.tensor([0, 1, 1])
    out = model(tokens, mask, None, labels, nsp)
    logits = model(tokens, mask)
    assert logits.prediction_logits.shape == (3, 8, 50) and out.prediction_logits is None
    visible = labels.masked_fill(mask == 0, -100)
    expected = torch.nn.functional.cross_entropy(
        logits.prediction_logits.flatten(0, 1), visible.flatten()
    ) + torch.nn.functional.cross_entropy(logits.seq_relationship_logits, nsp)
    torch.testing.assert_close(out.loss, expected)
    batch, kept = pack(tokens, mask)
    packed = visible.flatten()[kept]
    where = (packed != -100).nonzero().squeeze(1)
    sums = model.losses(batch, where, packed[where], nsp)
    torch.testing.assert_close(sums["mlm"] / 3 + sums["nsp"] / 3, expected)
    masked_lm = model_of(BertForMaskedLM).eval()
    assert masked_lm(tokens, labels=torch.full((3, 8), -100)).loss == 0


def test_the_decoder_is_the_word_embedding_unless_untied():
    tied = BertForMaskedLM(CONFIG)
    assert tied.mlm_head.output_weight(tied.bert.embeddings.word.weight) is (
        tied.bert.embeddings.word.weight
    )
    import dataclasses

    untied = BertForMaskedLM(dataclasses.replace(CONFIG, tie_word_embeddings=False))
    word = untied.bert.embeddings.word.weight
    assert untied.mlm_head.output_weight(word) is untied.mlm_head.decoder.weight


def test_padding_tokens_embedding_learns_only_through_the_decoder():
    model = model_of(BertForMaskedLM).eval()
    tokens = torch.tensor([[3, 0, 5]])
    hidden = model.bert(tokens).last_hidden_state
    hidden.sum().backward()
    word = model.bert.embeddings.word.weight
    assert (word.grad[0] == 0).all() and (word.grad[3] != 0).any()
    model(tokens, labels=torch.tensor([[4, -100, -100]])).loss.backward()
    assert (word.grad[0] != 0).any()


def test_initial_weights_follow_the_table():
    config = BertConfig.preset("tiny", vocab_size=2000, initializer_range=0.03)
    model = BertForPreTraining(config)
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all()
        elif "bias" in name:
            assert (parameter == 0).all(), name
        elif parameter.numel() > 2000:
            assert abs(parameter.std() / 0.03 - 1) < 0.03, name
    assert (model.bert.embeddings.word.weight[0] == 0).all()
    assert (Bert(BertConfig(pad_token_id=None, vocab_size=9, hidden_size=12)).embeddings
            .word.weight[0] != 0).any()  # fmt: skip


def test_fine_tuning_heads():
    tokens, mask = ids(2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    assert model_of(BertForSequenceClassification)(tokens, mask).shape == (2, 3)
    per_token = model_of(BertForTokenClassification)(tokens, mask)
    assert per_token.shape == (2, 6, 3) and (per_token[1, 4:] == 0).all()
    spans = model_of(BertForQuestionAnswering)(tokens, mask)
    assert spans.start_logits.shape == spans.end_logits.shape == (2, 6)
    assert (spans.start_logits[1, 4:] == float("-inf")).all()
    assert torch.isfinite(spans.end_logits[0]).all()
    for classifier in (BertForSequenceClassification, BertForMultipleChoice):
        dropout_follows_from_the_seed(model_of(classifier).train())


def dropout_follows_from_the_seed(trained):
    batch = PackedBatch.from_lists([[1, 2, 3]])
    assert torch.equal(
        trained.logits(batch, torch.tensor(1)), trained.logits(batch, torch.tensor(1))
    )
    assert not torch.equal(
        trained.logits(batch, torch.tensor(1)), trained.logits(batch, torch.tensor(2))
    )


def test_a_choice_is_rated_alone_and_one_without_tokens_is_none():
    model = model_of(BertForMultipleChoice).eval()
    tokens = ids(6, 7).view(2, 3, 7)
    mask = torch.ones_like(tokens)
    mask[0, 1, 4:], mask[1, 2] = 0, 0
    types = torch.randint(2, tokens.shape)
    logits = model(tokens, mask, types)
    assert logits.shape == (2, 3) and logits[1, 2] == float("-inf")
    for row, choice in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        kept = mask[row, choice] == 1
        alone = PackedBatch.from_lists(
            [tokens[row, choice][kept].tolist()], [types[row, choice][kept].tolist()]
        )
        torch.testing.assert_close(model.logits(alone)[0, 0], logits[row, choice])


@pytest.mark.errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(ids(1, 17)), "input_ids: expected at most 16 tokens a sequence"),
        (lambda m: m(ids(5)), "input_ids: expected shape [batch, seq], got [5]"),
        (lambda m: m(ids(2, 5), ids(2, 4)), "attention_mask: expected the shape of input_ids, "),
        (lambda m: m(ids(2, 5), None, ids(5)), "token_type_ids: expected the shape of input_ids"),
        (
            lambda _: model_of(BertForMultipleChoice)(ids(2, 5)),
            "input_ids: expected shape [batch, choices, seq], got [2, 5]",
        ),
        (lambda m: m(ids(1, 3) + 50), "input_ids: expected ids from 0 to 49 (vocab_size), got "),
        (lambda m: m(-ids(1, 3)), "input_ids: expected ids from 0 to 49 (vocab_size), got -"),
        (
            lambda m: m(ids(1, 3), None, torch.full((1, 3), 2)),
            "token_type_ids: expected ids from 0 to 1 (type_vocab_size), got 2",
        ),
        (
            lambda m: m.encode(PackedBatch.from_lists([[1] * 17])),
            "sequences: expected at most 16 tokens a sequence (max_position_embeddings), got 17",
        ),
        (
            lambda m: PackedBatch.from_lists([[1, 2]], [[0]]),
            "token_type_ids: expected one type for each of input_ids",
        ),
    ],
)
def test_bad_input_is_refused_before_a_kernel_runs(call, message):
    with pytest.raises(ValueError) as error:
        call(model_of())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.errors
def test_one_kind_of_label_needs_the_other():
    with pytest.raises(ValueError, match="^next_sentence_label: expected both kinds of label"):
        model_of(BertForPreTraining)(ids(1, 3), labels=ids(1, 3))
