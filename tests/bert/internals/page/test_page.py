"""The page's numbers against the model's, and that no text in it is ever markup."""

import base64
import hashlib
import json
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
import torch

from bert import (
    Bert,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    PackedBatch,
)
from bert.fill_mask import fill_mask
from bert.internals.attribution import WordLogit, gradient_times_input
from bert.internals.page.collect import Reading, collect
from bert.internals.page.payload import Bytes, Head, Lens, Payload, Token, rounded
from bert.internals.page.render import render
from tests.bert.internals.page.looked_at import (
    OTHER,
    PAIR,
    SPARE,
    TEXT,
    config,
    encoded,
    model,
    payload,
    randomised,
    tokenizer,
)

HOSTILE = [
    "<script>hacked = 1</script>", "</script><img src=x onerror=hacked=1>", "-->", "<!--",
    "]]>", "&lt;b&gt;", "$script", "\u2028\u2029", "\u202eesrever", "🧑‍🚀", "שלום", "'\"`\\",
    "\x00\x1b",
    "\ud800", "${hacked=1}",
]  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page, and the texts of those whose text is raw."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.raw, self.attributes, self.is_raw = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.is_raw = tag in ("script", "style")
        if self.is_raw:
            self.raw.append("")

    def handle_endtag(self, tag):
        self.is_raw = False

    def handle_data(self, data):
        if self.is_raw:
            self.raw[-1] += data

    @property
    def payload(self):
        return json.loads(self.raw[1])


def hostile(text):
    """Put a text wherever a user's, or a model's files', may stand."""
    known = payload()
    assert known.lens and known.parts and known.patched
    return replace(
        known,
        name=text, text=text, pair=text, card=text, facts={text: text},
        tokens=[replace(token, text=text) for token in known.tokens],
        lens=replace(known.lens, words=[text] * len(known.lens.words)),
        parts=replace(known.parts, token=text),
        patched=replace(known.patched, tokens=[text] * len(known.patched.tokens), first=text),
    )  # fmt: skip


def output():
    ids = torch.tensor([encoded().ids])
    types = torch.tensor([encoded().token_type_ids])
    return model().bert(ids, None, types, output_hidden_states=True, output_attentions=True)


# --- what is shown ------------------------------------------------------------------------------


def test_attention_is_the_models_and_comes_back_from_the_page():
    with torch.no_grad():
        expected = torch.cat(output().attentions)
    packed = Elements(render(payload())).payload["attention"]
    shown = Bytes(tuple(packed["shape"]), packed["base64"]).values()
    assert shown.shape == tuple(expected.shape)
    assert abs(shown - expected.numpy()).max() <= 0.5 / 255 + 1e-6


def test_the_norms_are_those_of_the_hidden_states():
    with torch.no_grad():
        states = torch.cat(output().hidden_states)
    torch.testing.assert_close(
        torch.tensor(payload().norms), states.norm(dim=-1), rtol=1e-4, atol=0
    )


def test_the_last_layers_guesses_are_those_of_fill_mask():
    lens = payload().lens
    (expected,) = fill_mask(model(), tokenizer(), TEXT)
    alone = collect(model(), tokenizer(), Reading(TEXT), name="").lens
    place = tokenizer().encode(TEXT, allow_special=True).ids.index(tokenizer().mask_id)
    assert lens and alone
    assert [alone.words[i] for i in alone.guesses[-1][place]] == [g.token for g in expected]
    assert alone.probabilities[-1][place] == pytest.approx(
        [g.probability for g in expected], rel=1e-4
    )
    # Where no answer is given, the model's guess is held to be right; where one is, it is.
    assert alone.truth[place] == expected[0].token and alone.rank[-1][place] == 1
    assert lens.truth[place] == "cat"
    assert lens.truth[:place] == encoded().tokens[:place]
    assert set(lens.divergence[-1]) == {0.0} and min(map(min, lens.divergence[:-1])) > 0
    assert lens.vocabulary == tokenizer().vocab_size
    assert len(lens.words) <= tokenizer().vocab_size


def test_tokens_words_and_segments():
    tokens = payload().tokens
    assert [token.text for token in tokens] == encoded().tokens
    assert [token.segment for token in tokens] == encoded().token_type_ids
    assert [t.text for t in tokens if t.special] == ["[CLS]", "[SEP]", "[SEP]"]
    mats = [t.word for t in tokens if t.text in ("m", "##a", "##t", "##s", "mat")]
    assert len(set(mats)) == 1 and len({t.word for t in tokens}) == max(t.word for t in tokens) + 1


def test_the_parts_add_up_to_the_logit():
    parts, place = payload().parts, encoded().ids.index(tokenizer().mask_id)
    with torch.no_grad():
        logits = model().mlm_head(
            output().last_hidden_state[0], model().bert.embeddings.word.weight
        )
    assert parts and parts.place == place and parts.token == "cat"
    assert parts.logit == pytest.approx(
        float(logits[place, tokenizer().token_to_id("cat")]), rel=1e-4
    )
    assert sum(parts.shares) == pytest.approx(parts.logit, abs=1e-3)


def test_tokens_are_scored_as_attribution_does_it():
    batch = PackedBatch.from_lists([encoded().ids], [encoded().token_type_ids])
    ids = [i if t in ("[CLS]", "[SEP]") else tokenizer().mask_id for i, t in ids_and_tokens()]
    baseline = PackedBatch.from_lists([ids], [encoded().token_type_ids])
    place = encoded().ids.index(tokenizer().mask_id)
    target = WordLogit(place, tokenizer().vocab.index("cat"))
    expected = gradient_times_input(model(), batch, target, baseline)
    shown = payload().attributed
    assert shown and (shown.name, shown.place) == ("cat", place)
    assert shown.scores == pytest.approx(expected.tolist(), rel=1e-4)
    assert shown.scores[place] == shown.scores[0] == 0.0 and max(map(abs, shown.scores)) > 0


def ids_and_tokens():
    return zip(encoded().ids, encoded().tokens, strict=True)


def test_patching_reaches_from_one_text_to_the_other():
    patched = payload().patched
    assert patched and (patched.first, patched.second) == ("dog", "cat")
    assert patched.tokens == tokenizer().encode(OTHER, PAIR, allow_special=True).tokens
    # The whole last layer's vector at the place that is read is the other run's end.
    last = patched.changes["layer"][-1]
    assert patched.here + last[patched.place] == pytest.approx(patched.there, abs=1e-3)
    assert [change for at, change in enumerate(last) if at != patched.place] == [0.0] * (
        len(last) - 1
    )


def test_every_kind_of_tensor_has_a_maker_close_to_the_reference():
    origins = {origin.name: origin for origin in payload().origins}
    assert origins["layers.*.attention.probabilities"].made_by == "REFERENCE"
    assert origins["layers.*.output"].made_by == payload().backend == "TORCH"
    for origin in origins.values():
        assert origin.difference <= 1e-4 * max(origin.largest, 1), origin.name
    assert origins["mlm_head.logits"].difference > 0  # float32 beside float64


@pytest.mark.parametrize(
    ("model_class", "changes", "kind", "rows"),
    [
        (BertForSequenceClassification, {"id2label": {0: "bad", 1: "good", 2: "odd"}}, "text", 1),
        (BertForSequenceClassification, {"id2label": {0: "score"}}, "number", 1),
        (BertForTokenClassification, {"id2label": {0: "O", 1: "B"}}, "tokens", None),
        (BertForQuestionAnswering, {}, "tokens", None),
        (BertForMultipleChoice, {}, "number", 1),
    ],
)
def test_what_a_fine_tuned_model_answers(model_class, changes, kind, rows):
    tuned = randomised(model_class(config(**changes)))
    shown = collect(tuned, tokenizer(), Reading("The cat sat."), name="tuned")
    encoding = tokenizer().encode("The cat sat.")
    ids = torch.tensor([encoding.ids])
    with torch.no_grad():
        logits = tuned(ids[None] if model_class is BertForMultipleChoice else ids)
    assert shown.answer and shown.answer.kind == kind and shown.lens is shown.parts is None
    assert len(shown.answer.rows) == (rows or len(encoding))
    if kind == "number":
        expected = logits
    elif model_class is BertForQuestionAnswering:
        expected = torch.stack([logits.start_logits, logits.end_logits], -1)[0].softmax(0)
    else:
        expected = logits.softmax(-1)
    torch.testing.assert_close(
        torch.tensor(shown.answer.rows).flatten(), expected.flatten(), rtol=1e-4, atol=1e-6
    )
    if model_class is BertForSequenceClassification:
        assert shown.attributed
        assert shown.attributed.name == changes["id2label"][int(logits.argmax())]
    else:
        assert shown.attributed is None
    if changes:
        assert shown.answer.labels == list(changes["id2label"].values())


def test_several_labels_at_once_are_judged_one_by_one():
    labels = {0: "a", 1: "b"}
    changes = {"id2label": labels, "problem_type": "multi_label_classification"}
    tuned = randomised(BertForSequenceClassification(config(**changes)))
    shown = collect(tuned, tokenizer(), Reading("The cat."), name="").answer
    with torch.no_grad():
        expected = tuned(torch.tensor([tokenizer().encode("The cat.").ids])).sigmoid()
    torch.testing.assert_close(torch.tensor(shown.rows), expected, rtol=1e-4, atol=1e-6)


def test_an_encoder_alone():
    shown = collect(randomised(Bert(config())), tokenizer(), Reading("The cat."), name="encoder")
    assert shown.answer is shown.lens is shown.parts is shown.patched is shown.attributed is None
    assert len(shown.norms) == 4


# --- no text is markup --------------------------------------------------------------------------


def test_the_page_carries_its_payload_and_nothing_is_asked_for():
    page = Elements(render(payload()))
    assert page.payload == json.loads(json.dumps(asdict(payload())))
    assert page.tags.count("script") == 2 and page.tags.count("style") == 1
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    assert not any({"src", "href", "style", "onclick"} & set(a) for a in page.attributes)
    (policy,) = (a["content"] for a in page.attributes if a.get("http-equiv"))
    style, _, script = page.raw
    for content in (style, script):
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'; ")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_texts(text):
    usual, page = Elements(render(payload())), Elements(render(hostile(text)))
    assert page.tags == usual.tags and page.attributes == usual.attributes
    assert [page.raw[0], page.raw[2]] == [usual.raw[0], usual.raw[2]]
    assert page.raw[1].isascii() and not set(page.raw[1]) & set("<>&")
    found = page.payload
    assert {token["text"] for token in found["tokens"]} == {text}
    assert found["name"] == found["card"] == found["lens"]["words"][0] == text


def test_numbers_that_are_not_finite_are_said_to_be_missing():
    assert rounded([1.234567891, float("nan"), float("inf"), [2.0]]) == [1.2346, None, None, [2.0]]


def test_a_base_model_with_128_tokens_stays_under_5_megabytes():
    layers, heads, tokens, guesses, vocabulary = 12, 12, 128, 5, 30522
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    def numbers(*shape):
        return rounded(random(*shape).tolist())

    words = [f"token{i}" for i in range((layers + 1) * tokens * guesses)]  # no two guesses alike
    of_head = Head("previous", numbers(7), 1.2345, 12.345)
    large = Payload(
        name="base", text="word " * tokens, pair=None, backend="TORCH", facts={},
        card="x" * 20_000,
        tokens=[Token("extraordinarily", i, 0, False) for i in range(tokens)],
        attention=Bytes.of(random(layers, heads, tokens, tokens)),
        rollout=Bytes.of(random(layers, tokens, tokens)),
        types={}, heads=[[of_head] * heads] * layers, norms=numbers(layers + 1, tokens),
        lens=Lens(
            words,
            torch.arange(len(words)).view(layers + 1, tokens, guesses).tolist(),
            numbers(layers + 1, tokens, guesses),
            ["extraordinarily"] * tokens,
            torch.full((layers + 1, tokens), vocabulary).tolist(),
            numbers(layers + 1, tokens),
            vocabulary,
        ),
        answer=None, attributed=None, parts=None, patched=None, origins=[],
    )  # fmt: skip
    assert 3e6 < len(render(large).encode()) < 5e6


def test_rows_that_no_token_has_are_never_guessed():
    assert SPARE and payload().lens
    assert set(payload().lens.words) <= set(tokenizer().vocab)
