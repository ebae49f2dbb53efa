"""The kinds of evidence besides classes: scores of draws against libraries', records, pages."""

import json

import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics

from finetune.entities.iob import repair
from finetune.evaluation.answers import Answered, Answers
from finetune.evaluation.choices import ChosenTexts
from finetune.evaluation.class_sets import ClassSets
from finetune.evaluation.entities import NONE, Entities
from finetune.evaluation.kinds import KINDS, name_of
from finetune.evaluation.mistakes import worst_mistakes, write_mistakes
from finetune.evaluation.numbers import Numbers
from finetune.evaluation.records import write_predictions
from finetune.evaluation.report import draw
from finetune.evaluation.resampling import differences, intervals, scores
from finetune.questions.metrics import score_answers
from tests.finetune.evaluation.test_mistakes import MARKUP, Page

ROWS = 30


def numbers(rows=ROWS, seed=0, skill=1.0):
    """Whole true numbers, so that ranks are equal, and predictions near them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, rows).astype(np.float64)
    return Numbers(labels, skill * labels + rng.normal(size=rows).round(1))


def class_sets(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    sets, probabilities = rng.random((rows, 4)) < 0.3, rng.random((rows, 4))
    losses = -np.where(sets, np.log(probabilities), np.log1p(-probabilities)).mean(1)
    return ClassSets(
        ("a", MARKUP, "c", "never"), sets, probabilities >= 0.6, probabilities, losses
    )


def entities(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    tags = np.array(["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"])

    def sentence(words):
        return repair(rng.choice(tags, words).tolist())[0]

    lengths = rng.integers(1, 9, rows)
    gold = [sentence(n) for n in lengths]
    said = [tags if rng.random() < 0.5 else sentence(len(tags)) for tags in gold]
    return Entities(gold, said, lengths - (lengths > 4), rng.random(rows))


def answers(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["the cat", "cat", "black cat sat", "dog", ""]
    made = []
    for _ in range(rows):
        gold, said = [texts[i] for i in rng.integers(0, 4, 2)], texts[rng.integers(0, 5)]
        score = score_answers([said], [gold], [0.0], None)
        span = None if not said else (2, 2 + len(said))
        made.append(Answered(gold, [(0, 5)], said, span, rng.random(), score.exact, score.f1))
    return Answers(made)


def choices(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = tuple(rng.dirichlet(np.ones(n)) for n in rng.integers(2, 5, rows))
    labels = np.array([rng.integers(len(p)) for p in probabilities])
    losses = np.array([-np.log(p[i]) for p, i in zip(probabilities, labels, strict=True)])
    return ChosenTexts(labels, probabilities, losses)


MADE = [numbers, class_sets, entities, answers, choices]


def texts_of(made):
    """Texts as the task of each kind yields them, with markup in them."""
    for row in range(len(made)):
        if isinstance(made, Entities):
            yield {"line": row + 1, "words": [MARKUP] * len(made.tags[row])}
        elif isinstance(made, Answers):
            yield {"id": str(row), "question": "which?", "context": MARKUP * 5}
        elif isinstance(made, ChosenTexts):
            listed = [f"choice {i} {MARKUP}" for i in range(len(made.probabilities[row]))]
            yield {"line": row + 1, "premise": f"text {row}", "choices": listed}
        else:
            yield {"line": row + 2, "text_a": f"text {row}", "text_b": MARKUP}


def by_a_library(made, chosen):
    """The scores of some rows, by the library that the task's report draws on."""
    if isinstance(made, Numbers):
        x, y = made.labels[chosen], made.predicted[chosen]
        return {
            "pearson": scipy.stats.pearsonr(x, y).statistic,
            "spearman": scipy.stats.spearmanr(x, y).statistic,
            "mse": sklearn.metrics.mean_squared_error(x, y),
            "mean_error": sklearn.metrics.mean_absolute_error(x, y),
        }
    if isinstance(made, ClassSets):
        x, y = made.sets[chosen], made.predicted[chosen]
        return {
            "micro_f1": sklearn.metrics.f1_score(x, y, average="micro", zero_division=0),
            "macro_f1": sklearn.metrics.f1_score(x, y, average="macro", zero_division=0),
            "subset_accuracy": sklearn.metrics.accuracy_score(x, y),
            "loss": made.losses[chosen].mean(),
        }
    if isinstance(made, Entities):
        x, y = [made.tags[i] for i in chosen], [made.predicted[i] for i in chosen]
        how = {"zero_division": 0}
        return {
            "f1": seqeval.metrics.f1_score(x, y, **how),
            "precision": seqeval.metrics.precision_score(x, y, **how),
            "recall": seqeval.metrics.recall_score(x, y, **how),
            "macro_f1": seqeval.metrics.f1_score(x, y, average="macro", **how),
            "accuracy": seqeval.metrics.accuracy_score(x, y),
            "loss": made.losses[chosen].sum() / made.labelled[chosen].sum(),
        }
    if isinstance(made, Answers):
        some = [made.answered[i] for i in chosen]
        scored = score_answers(
            [a.predicted for a in some], [a.gold for a in some], 0 * chosen, None
        )
        return {"f1": scored.f1, "exact": scored.exact}
    predicted = [made.probabilities[i].argmax() for i in chosen]
    accuracy = sklearn.metrics.accuracy_score(made.labels[chosen], predicted)
    return {"accuracy": accuracy, "loss": made.losses[chosen].mean()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MADE)
def test_the_scores_of_a_draw_are_the_librarys(make):
    rng = np.random.default_rng(5)
    for seed in range(4):
        made = make(seed=seed)
        drawn = [np.arange(ROWS), *(rng.integers(ROWS, size=ROWS) for _ in range(3))]
        counts = np.stack([np.bincount(each, minlength=ROWS) for each in drawn]).astype(float)
        found = made.scores(counts)
        assert list(found) == list(made.titles)
        for place, chosen in enumerate(drawn):
            expected = by_a_library(made, chosen)
            for name, values in found.items():
                assert values[place] == pytest.approx(expected[name], abs=1e-12), (name, place)


def test_correlations_of_what_does_not_vary_are_0():
    for labels, predicted in (([0.1] * 7, range(7)), (range(7), [0.3] * 7), ([1e9] * 7, [7] * 7)):
        made = Numbers(np.array(labels, dtype=np.float64), np.array(predicted, dtype=np.float64))
        found = scores(made)
        assert found["pearson"] == found["spearman"] == 0
    # A draw of one row, again and again, though the others differ.
    made = Numbers(np.array([0.1, 3.3, 2.7]), np.array([0.7, 1.1, 2.3]))
    found = made.scores(np.array([[0.0, float(count), 0.0] for count in range(1, 100)]))
    assert not found["pearson"].any() and not found["spearman"].any()


def test_the_worst_answer_is_the_surest_of_what_is_wrong():
    values = [(0.9, 1.0), (0.4, 0.0), (0.7, 0.5), (0.2, 0.0)]  # scores and F1
    made = [Answered(["a"], [], "a", (0, 1), score, float(f1 == 1), f1) for score, f1 in values]
    made = Answers(made)
    assert made.badness == pytest.approx([0, 0.4, 0.35, 0.2])
    assert worst_mistakes(made).tolist() == [1, 2, 3]


@pytest.mark.slow
def test_intervals_of_correlations_are_those_of_scipy_that_draws_rows():
    made = numbers(150, seed=3)
    ours = intervals(made)
    for name, statistic in (
        ("pearson", scipy.stats.pearsonr),
        ("spearman", scipy.stats.spearmanr),
    ):
        theirs = scipy.stats.bootstrap(
            (made.labels, made.predicted), lambda x, y, s=statistic: s(x, y).statistic,
            paired=True, vectorized=False, n_resamples=2000, method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        # As in test_resampling.py: three standard errors of the difference of two quantiles.
        deviation = (theirs.high - theirs.low) / 3.92
        assert ours[name] == pytest.approx((theirs.low, theirs.high), abs=0.255 * deviation), name


@pytest.mark.parametrize("make", MADE)
def test_rows_are_drawn_in_pairs(make):
    first, second = make(), make(seed=1)
    assert {d.interval for d in differences(first, first).values()} == {(0, 0)}
    for name, found in differences(first, second).items():
        assert found.interval.low <= found.interval.high, name
        assert found.value == scores(second)[name] - scores(first)[name]


@pytest.mark.parametrize("make", MADE)
def test_records_are_read_as_they_were_written(make, tmp_path):
    made, path = make(), tmp_path / "predictions.jsonl"
    write_predictions(path, made, texts_of(made))
    again = KINDS[name_of(made)].read(path)
    assert type(again) is type(made) and again.gold == made.gold
    assert scores(again) == pytest.approx(scores(made), abs=1e-12)
    assert (again.correct == made.correct).all()
    np.testing.assert_array_equal(again.row_scores, made.row_scores)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["row"] for line in lines] == list(range(1, ROWS + 1))
    assert all({"gold", "predicted"} <= line.keys() for line in lines)


@pytest.mark.errors
@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("key", ["gold", "predicted"])
def test_damage_is_told_with_its_line(make, key, tmp_path):
    made, path = make(), tmp_path / "predictions.jsonl"
    write_predictions(path, made, texts_of(made))
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    for damaged in ({}, {key: None}, {key: {"x": 7}}):
        rest = {name: value for name, value in json.loads(second).items() if name != key}
        path.write_text(f"{first}\n{json.dumps(rest | damaged)}\n", encoding="utf-8")
        with pytest.raises(ValueError, match="predictions.jsonl, line 2: expected "):
            type(made).read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="expected predictions, got an empty file"):
        type(made).read(path)


@pytest.mark.parametrize("make", MADE)
def test_the_page_has_the_worst_first_and_all_text_is_text(make, tmp_path):
    made = make()
    write_predictions(tmp_path / "predictions.jsonl", made, texts_of(made))
    write_mistakes(tmp_path / "m.html", tmp_path / "predictions.jsonl", made, MARKUP)
    text = (tmp_path / "m.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not page.of("img") and not page.of("script")
    worst = worst_mistakes(made)
    assert len(page.rows) - 1 == len(worst) == (~made.correct).sum() > 3
    assert (np.diff(made.badness[worst]) <= 0).all()
    titles = [column.title for column in made.columns]
    for row, place in zip(page.rows[1:], worst.tolist(), strict=True):
        assert [*row][1:] == [*titles, "Row"]
        assert row["Row"].partition("line")[0] == str(place + 1)
    assert made.tally in text
    assert MARKUP[:20] in page.rows[1][titles[0]] or isinstance(made, ChosenTexts)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (numbers, "scatter.png"),
        pytest.param(entities, "confusion.png", marks=pytest.mark.slow),
        pytest.param(choices, "calibration.png", marks=pytest.mark.slow),
    ],
)
def test_pictures(make, name, tmp_path):
    draw(make(), tmp_path)
    pixels = matplotlib.image.imread(tmp_path / name)
    assert min(pixels.shape[:2]) > 400
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_which_types_are_taken_for_which():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O", "O"]]
    said = [["B-LOC", "I-LOC", "O", "B-LOC"], ["B-LOC", "I-LOC", "B-PER"]]
    made = Entities(gold, said, np.array([4, 3]), np.zeros(2))
    assert made.types == ["LOC", "PER"]
    # LOC once right; the longer one agrees in no words: missed, and one too many.
    assert made.confusion.tolist() == [[1, 0, 1], [1, 0, 0], [1, 1, 0]]
    assert made.wrong.tolist() == [2, 3] and NONE in made.details().text


def test_marks_show_what_is_right_what_is_missed_and_what_is_too_many(tmp_path):
    tags = [["B-PER", "O", "B-LOC", "O"]], [["B-PER", "O", "O", "B-LOC"]]
    made = Entities(*tags, np.array([4]), np.array([1.0]))
    cells = made.cells(0, {"words": ["Ann", "in", "Rome", "now"], "loss": 1.0})
    right = '<mark class="both">Ann&nbsp;<small>PER</small></mark>'
    missed = '<mark class="gold">Rome&nbsp;<small>LOC</small></mark>'
    invented = '<mark class="said">now&nbsp;<small>LOC</small></mark>'
    assert cells[0] == f'<div dir="auto">{right} in {missed} now</div>'
    assert cells[1] == f'<div dir="auto">{right} in Rome {invented}</div>'

    context = "x" * 500 + " the black cat sat " + "y" * 500
    answered = Answered(["black cat"], [(505, 514)], "cat sat", (511, 518), 0.5, 0.0, 0.5)
    record = {"question": "who?", "context": context, **answered._asdict()}
    shown = Answers([answered]).cells(0, record)[0]
    assert (
        '<mark class="gold">black </mark><mark class="both">cat</mark>'
        '<mark class="said"> sat</mark>'
    ) in shown
    assert "… " in shown and " …" in shown and "x" * 200 not in shown
