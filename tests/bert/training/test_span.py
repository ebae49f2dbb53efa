import pytest

from bert.training.span import Span, parse_span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("500", Span(steps=500)),
        ("500 steps", Span(steps=500)),
        ("1step", Span(steps=1)),
        ("3000tok", Span(tokens=3000)),
        ("20Mtok", Span(tokens=20_000_000)),
        ("20 M tokens", Span(tokens=20_000_000)),
        ("0.1ktok", Span(tokens=100)),
        ("2.5gtok", Span(tokens=2_500_000_000)),
        ("1token", Span(tokens=1)),
        ("90s", Span(seconds=90.0)),
        ("6min", Span(seconds=360.0)),
        ("1h30min", Span(seconds=5400.0)),
        (" 1H 30 MIN 5s ", Span(seconds=5405.0)),
        ("1.5h", Span(seconds=5400.0)),
        ("0.25s", Span(seconds=0.25)),
    ],
)
def test_steps_and_times(text, span):
    assert parse_span("budget", text) == span


@pytest.mark.errors
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0s", "0h0min", "-5", "-5s", "6m", "30min1h", "1h1h", "5.5", "1e3s", "٣s"),
        *("0tok", "0.0001ktok", "-1Mtok", "tok", "Mtok", "20M", "20Ttok", "20toks", "1Mtok5s"),
    ],
)
def test_anything_else_is_refused_in_one_line_that_names_the_argument(text):
    with pytest.raises(ValueError, match="^budget: expected .* such as .*20Mtok.*6min") as error:
        parse_span("budget", text)
    assert "\n" not in str(error.value)
