"""How the runs' evaluations become bands, a page and a picture; the runs are pretrain's own."""

from pathlib import Path

import pytest

from benchmarks.known_curves import CurvesBenchmark, bands, draw, planned, table


def run(seed, losses, text="books", recipe="tiny-books"):
    """Make a run whose evaluations had these losses."""
    evaluations = [
        {
            "seconds": 30.0 * (place + 1), "step": place, "tokens": 1e6 * (place + 1) + seed,
            "mlm_loss": loss, "masked_loss": loss + 0.3, "mlm_accuracy": 0.1, "nsp_accuracy": 0.6,
            "unigram_loss": 6.7, "nsp_majority": 0.55,
        }
        for place, loss in enumerate(losses)
    ]  # fmt: skip
    return {
        "recipe": recipe, "text": text, "seed": seed, "budget": "90s", "evaluations": evaluations,
    }  # fmt: skip


def test_a_band_reaches_from_the_least_to_the_greatest():
    found = bands([run(0, [6.5, 6.0]), run(1, [6.4, 6.1]), run(2, [6.6, 5.9])])
    assert [band.ranges["mlm_loss"] for band in found] == [(6.4, 6.6), (5.9, 6.1)]
    assert found[0].tokens == pytest.approx(1e6 + 1)


def test_last_evaluations_belong_together_whatever_their_number():
    found = bands([run(0, [6.5, 6.3, 6.0]), run(1, [6.4, 6.1])])
    assert [band.ranges["mlm_loss"] for band in found] == [(6.4, 6.5), (6.0, 6.1)]


def test_the_page_and_the_picture(tmp_path):
    runs = [run(0, [6.5, 6.0]), run(1, [6.4, 6.1]), run(0, [6.45, 6.05], "books + WikiText-2")]
    result = {"command": "c", "machine": "m.", "runs": runs}
    page = table(result)
    assert "## tiny-books: books, 90s, 2 seeds" in page
    assert "| 60 | 2.00 M | 6.00–6.10 | 6.30–6.40 | 0.100 | 0.600 |" in page
    assert "## tiny-books: books + WikiText-2, 90s, one seed" in page
    draw(result, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_what_is_run():
    alone = planned(CurvesBenchmark(seeds=2))
    assert [(r.recipe, r.text, r.seed) for r in alone] == [
        (recipe, "books", seed) for recipe in ("tiny-books", "mini-books") for seed in (0, 1)
    ]
    assert alone[0].arguments == ["--recipe", "tiny-books", "--seed", "0"]
    both = planned(CurvesBenchmark(wikitext2=Path("w.txt"), seeds=2, budget="9s"))
    assert [(r.text, r.seed) for r in both[:2]] == [("books + WikiText-2", s) for s in (0, 1)]
    assert both[0].arguments[3:] == [
        "w.txt", "--recipe", "tiny-books", "--seed", "0", "--training.budget", "9s",
    ]  # fmt: skip
    assert [(r.recipe, r.text, r.seed) for r in both[4:]] == [("tiny-books", "books", 0)]
