"""Entities: read, cut into pieces, learned as transformers learns them, found in texts."""

import json
import lzma
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert.finetuning import BertForTokenClassification
from bert.text import TextReport
from bert.tokenization import Tokenizer
from finetune.config import Columns
from finetune.entities.conll import read_sentences
from finetune.entities.iob import Span, repair, spans
from finetune.entities.rows import UNLABELLED, read_tagged
from finetune.entities.words import encode_text, encode_words
from finetune.predictor import Predictor
from finetune.run import finetune as run_it
from finetune.tasks.token_classification import TokenClassification, score_tags
from tests.finetune.conftest import SPECIAL, TINY, WORDS

transformers = pytest.importorskip("transformers")
from tests.finetune.theirs import both_losses  # noqa: E402

STEPS = 20
TOLERANCE = 5e-6
"""Of a step's loss; the greatest difference seen in 20 steps was 2.4e-7."""

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


def sentences(count, seed):
    """ "yes" and the word after it are an A, "no" alone is a B; all else is O."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        words, tags = [], []
        for _ in range(rng.randint(1, 5)):
            kind = rng.choice("AB_")
            plain = rng.choice(WORDS)
            words += {"A": ["yes", plain], "B": ["no"], "_": [plain]}[kind]
            tags += {"A": ["B-A", "I-A"], "B": ["B-B"], "_": ["O"]}[kind]
        found.append((words, tags))
    return found


def write_conll(path, rows):
    blocks = ["\n".join(f"{w}\t{t}" for w, t in zip(*row, strict=True)) for row in rows]
    path.write_text("\n\n".join(blocks) + "\n")
    return path


def read(path, **options):
    task = TokenClassification(**options)
    return list(read_sentences(path, Columns(), task.word_column, task.tag_column, TextReport()))


@pytest.fixture
def config(make_config, tmp_path):
    def configure(rows, training=None, **changes):
        fields = {
            "task": "token-classification",
            "train_file": write_conll(tmp_path / "train.conll", rows),
            "validation_file": None,
            "test_file": None,
        }
        return make_config(training, **fields | changes)

    return configure


# --- tags ------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_a_repair_keeps_every_word_in_an_entity_of_its_type(tags):
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    repaired, count = repair(tags)
    assert [tag[2:] for tag in repaired] == [tag[2:] for tag in tags]
    assert count == sum(a != b for a, b in zip(tags, repaired, strict=True))
    assert repair(repaired) == (repaired, 0)
    theirs = [Span(kind, start, end + 1) for kind, start, end in seqeval.get_entities(tags)]
    assert spans(repaired) == theirs


def test_iob1_becomes_iob2():
    assert repair(["I-A", "I-A", "B-A", "O", "I-B", "I-A"]) == (
        ["B-A", "I-A", "B-A", "O", "B-B", "B-A"], 3
    )  # fmt: skip


# --- files -----------------------------------------------------------------------------------


def test_every_layout_of_a_sentence_is_read(tmp_path):
    expected = [(["EU", "calls", "#"], ["B-ORG", "O", "O"]), (["No"], ["O"])]
    layouts = {
        "a.conll": "-DOCSTART- -X- O O\n\nEU NNP I B-ORG\ncalls VB I O\n# NN O O\n\n\nNo UH O O\n",
        "b.iob2": "# id = 1\nEU\tB-ORG\ncalls\tO\n#\tO\n\n# text = No\nNo\tO",
        "c.jsonl": '{"tokens": ["EU", "calls", "#"], "tags": ["B-ORG", "O", "O"]}\n\n'
        '{"words": ["No"], "ner_tags": ["O"]}\n{"words": [], "tags": []}\n',
    }
    for name, content in layouts.items():
        (tmp_path / name).write_text(content)
        found = read(tmp_path / name)
        assert [(s.words, s.tags) for s in found] == expected, name
    (tmp_path / "d.conll.xz").write_bytes(lzma.compress(b"1\tEU\tB-ORG\t-\r\n2\tcalls\tO\t-\r\n"))
    (found,) = read(tmp_path / "d.conll.xz", word_column=1, tag_column=2)
    assert (found.words, found.tags, found.lines) == (["EU", "calls"], ["B-ORG", "O"], [1, 2])


def test_real_files_hold_the_entities_that_they_are_known_to(shared_data, tokenizer):
    path = shared_data("wnut17/test.jsonl.xz")
    found = read(path)
    assert len(found) == 1287
    entities = Counter(s.type for sentence in found for s in spans(sentence.tags))
    assert entities == {
        "corporation": 118, "creative-work": 232, "group": 102, "location": 124, "person": 356,
        "product": 63,
    }  # fmt: skip


@pytest.mark.errors
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.conll", "EU B-ORG\ncalls\n", ", line 2: expected a word and its tag, 2 columns or "
         "more (options word_column and tag_column), got 1"),
        ("a.conll", "EU ORG\n", ", line 1, column -1, word 'EU': expected a tag O, B-TYPE or "
         "I-TYPE, got 'ORG'"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n',
         ", line 1, column 'tags': expected 2 tags, one a word, got 1"),
        ("a.jsonl", '{"tokens": "a", "tags": ["O"]}\n',
         ", line 1, column 'tokens': expected a list of texts, got \"a\""),
        ("a.jsonl", '{"tokens": ["a"], "tags": [1]}\n',
         ", line 1, column 'tags': expected a list of texts, got 1 in it"),
        ("a.jsonl", '{"tokens": ["a"], "kind": ["O"]}\n',
         ", line 1: expected one key of tags, ner_tags, labels, got tokens, kind"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["E-X"]}\n', ", line 1, column 'tags', word 'a': "
         "expected a tag O, B-TYPE or I-TYPE, got 'E-X'"),
        ("a.conll", "\n\n", ": expected sentences, got none"),
        ("a.conll", "a O\nb O\n", ": expected entities, got none"),
        ("a.csv", "", ": expected a name that ends in .jsonl, .conll, .iob2, .iob, .bio, .tsv, "
         ".txt, and .xz or .gz after it"),
        ("a.conll.gz", "a O\n", ": can't be read: Not a gzipped file (b'a ')"),
    ],
)  # fmt: skip
def test_an_error_names_the_place(config, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        run_it(config(sentences(2, 0), train_file=path))
    assert str(error.value) == f"{path}{message}"


@pytest.mark.errors
def test_a_type_that_is_not_trained_is_told(config, tmp_path):
    odd = write_conll(tmp_path / "test.conll", [(["a", "b"], ["O", "B-C"])])
    with pytest.raises(ValueError) as error:
        run_it(config(sentences(20, 0), test_file=odd))
    assert str(error.value) == (
        f"{odd}, line 2, column -1, word 'b': expected a type that is trained (A, B), got 'C'"
    )


# --- words and pieces ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pieces():
    """A tokenizer that cuts ab into a and ##b."""
    return Tokenizer([*SPECIAL, "a", "b", "##a", "##b", ".", "'"])


words = st.text(alphabet="ab.'\u0301\u00ad é", min_size=1, max_size=5).filter(str.strip)


@given(st.lists(words, min_size=1, max_size=12), st.integers(4, 12))
def test_each_word_is_labelled_at_its_first_piece(pieces, words, room):
    (windows,) = encode_words(pieces, [words], room)
    alone = [len(pieces.encode(word)) - 2 for word in words]
    firsts = [word for window in windows for word in window.words]
    assert firsts == [i for i, count in enumerate(alone) if count]
    kept = []
    for window in windows:
        assert window.ids[0] == pieces.cls_id and window.ids[-1] == pieces.sep_id
        assert 2 < len(window.ids) <= room and len(window.token_type_ids) == len(window.ids)
        for word, first in zip(window.words, window.firsts, strict=True):
            assert window.ids[first] == pieces.encode(words[word]).ids[1]
        kept += window.ids[1:-1]
    cut = [i for word in words for i in pieces.encode(word).ids[1:-1][: room - 2]]
    assert kept == cut


def test_the_words_of_a_text_are_berts(pieces):
    ((windows, places),) = encode_text(pieces, ["ab' a.  b"], 16)
    assert [("ab' a.  b")[start:end] for start, end in places] == ["ab", "'", "a", ".", "b"]
    assert windows[0].words == [0, 1, 2, 3, 4] and windows[0].firsts == [1, 3, 4, 5, 6]


def test_what_is_done_to_the_words_is_counted(tmp_path, pieces):
    rows = [(["ab", "\u00ad", "a"], ["I-X", "O", "I-X"]), (["ab"] * 5, ["O"] * 5)]
    path = write_conll(tmp_path / "a.conll", rows)
    found = read_tagged(path, iter(read(path)), pieces, 8, None)
    assert (len(found), found.repaired, found.split, found.entities) == (3, 2, 1, {"X": 2})
    assert found.places[0][1] == -1 and found.tag_names == ("O", "B-X", "I-X")
    labelled = found.labels != UNLABELLED
    assert labelled.sum() == 7 and found.labels[labelled].tolist() == [1, 1, 0, 0, 0, 0, 0]
    text = str(found)
    for note in ("2 tags were not IOB2", "1 sentences are too long", "1 words have no piece"):
        assert note in text
    batch = found.batch(np.array([2, 0]))
    assert batch.labels.tolist() == [*found.labels[-6:], *found.labels[:5]]


# --- learning --------------------------------------------------------------------------------


def test_the_losses_of_a_run_are_those_of_transformers(config, tmp_path):
    rows = sentences(50, 1)
    training = {"budget": str(STEPS), "learning_rate": 1e-3}
    run = config(rows, training, dropout=0.0, max_length=32, batch_size=12)

    def make_feed(tokenizer):
        def feed(chosen):
            padded = tokenizer(
                [rows[i][0] for i in chosen], is_split_into_words=True, padding=True,
                return_tensors="pt",
            )  # fmt: skip
            labels = torch.full_like(padded["input_ids"], -100)
            for row, i in enumerate(chosen):
                before = None
                for place, word in enumerate(padded.word_ids(row)):
                    if word is not None and word != before:
                        labels[row, place] = TAGS.index(rows[i][1][word])
                    before = word
            return {**padded, "labels": labels}

        return feed

    auto_class = transformers.AutoModelForTokenClassification
    steps, theirs = both_losses(run, tmp_path / "initial", auto_class, make_feed)
    ours = [step["loss"] for step in steps]
    assert len(ours) == STEPS and abs(ours[0] - ours[-1]) > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def found(configured, tmp_path_factory):
    """A run on planted entities."""
    path = tmp_path_factory.mktemp("entities")
    files = {
        f"{name}_file": write_conll(path / f"{name}.conll", sentences(count, seed))
        for seed, (name, count) in enumerate({"train": 200, "validation": 40, "test": 60}.items())
    }
    return run_it(
        configured(
            {"budget": "60"}, **files, out=path / "run", task="token-classification",
            max_length=10,  # some sentences are split
        )
    )  # fmt: skip


def test_planted_entities_are_learned(found):
    # Who knows the words and not their neighbours finds every B and no A: 0.5.
    assert found.scores["test"].f1 > 0.75
    described = json.loads((found.run_dir / "run.json").read_text())
    assert described["finetune"]["best_metric"] == "f1"
    assert described["data"]["train"]["entities"].keys() == {"A", "B"}
    assert "repaired" in (found.model / "README.md").read_text()


def test_spans_are_found_in_texts_and_in_words(found):
    predictor = Predictor.load(found.model)
    assert predictor.task == TokenClassification()
    text = "ban  yes bar no."
    of_text, of_words, nothing = predictor.answer([text, text.split(), ""])
    assert nothing == {"entities": []}
    spans = [(e["type"], e["text"], e["start"], e["end"]) for e in of_text["entities"]]
    assert spans == [("A", "yes bar", 5, 12), ("B", "no", 13, 15)]
    spans = [(e["type"], e["text"], e["start"], e["end"]) for e in of_words["entities"]]
    assert spans[0] == ("A", "yes bar", 1, 3)
    assert all(0 < e["score"] <= 1 for e in of_text["entities"])


def test_transformers_finds_the_same(found):
    rows = [words for words, _ in sentences(30, 7)]
    predictor = Predictor.load(found.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.model)
    model = transformers.AutoModelForTokenClassification.from_pretrained(found.model)
    names = model.config.id2label
    assert [names[i] for i in range(5)] == TAGS
    count = 0
    for words, ours in zip(rows, predictor.answer(rows), strict=True):
        batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**batch).logits[0].softmax(-1)
        firsts = [batch.word_ids().index(i) for i in range(len(words))]
        tags = [names[int(probabilities[place].argmax())] for place in firsts]
        expected = [
            (s.type, s.start, s.end, float(probabilities[firsts[s.start : s.end]].amax(1).mean()))
            for s in spans(repair(tags)[0])
        ]
        for entity, (kind, start, end, score) in zip(ours["entities"], expected, strict=True):
            assert (entity["type"], entity["start"], entity["end"]) == (kind, start, end)
            assert entity["score"] == pytest.approx(score, abs=2e-6)
            count += 1
    assert count > 20


def test_scores_are_those_of_entities():
    gold = [["B-A", "I-A", "O", "B-B"], ["O", "B-A"]]
    found = [["I-A", "I-A", "O", "B-A"], ["O", "O"]]  # one of three; one of two
    scores = score_tags(found, gold, 0.5)
    assert (scores.precision, scores.recall) == (1 / 2, 1 / 3)
    assert scores.f1 == pytest.approx(0.4) and scores.accuracy == pytest.approx(4 / 6)
    assert scores.macro_f1 == pytest.approx((0.5 + 0) / 2)
    assert "1 predicted tags were not IOB2" in scores.text


def test_rows_for_prediction(found):
    task = TokenClassification()
    assert task.parse("a b") == task.parse({"text": "a b"}) == "a b"
    assert task.parse({"tokens": ["a", "b"]}) == task.parse({"words": ["a", "b"]}) == ["a", "b"]
    for odd in ({"text": 1}, {"x": "a"}, {"tokens": "a b"}, {"tokens": [1]}, {}):
        with pytest.raises(ValueError, match="expected"):
            task.parse(odd)


@pytest.mark.errors
def test_a_model_of_other_labels_is_refused(tokenizer):
    model = BertForTokenClassification(replace(TINY))
    with pytest.raises(ValueError, match="^model: expected labels O, B-TYPE and I-TYPE"):
        Predictor(TokenClassification(), model, tokenizer)


def test_numbers_that_are_not_finite_are_an_error(tokenizer):
    model = BertForTokenClassification(TINY.with_labels(TAGS))
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    predictor = Predictor(TokenClassification(), model, tokenizer)
    assert predictor.answer(["ban"]) == [Predictor.NOT_FINITE]
