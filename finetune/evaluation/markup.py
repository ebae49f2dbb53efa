"""HTML for what stands in a row of the page of mistakes. All text that comes in is escaped.

What can't be seen, or turns the words around it, is named: controls, directional overrides.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

AT_ONCE, AT_ALL = 600, 20_000
"""Characters of a text: those shown at once, and those shown at all."""
AROUND = 160
"""Characters shown on both sides of a mark."""
BAR = 72
"""Pixels of a confidence of 1."""

_NAMED = {*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_SIGNS = {code: f"⟨U+{code:04X}⟩" for code in _NAMED - {9, 10, 13}}


class Mark(NamedTuple):
    """A part of a text that is coloured: characters `start` to `end`."""

    start: int
    end: int
    style: str
    """gold, said, or both: of the true answer, of the model's, or of both."""


def escaped(text: str) -> str:
    """Escape a text, and show what can't be seen."""
    return escape(text.translate(_SIGNS))


def texts_of(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """Show those of a record's texts that it has."""
    return "".join(shown(record[name]) for name in names if name in record)


def shown(text: str) -> str:
    """Show a text: the rest of a long one can be opened, and what is beyond AT_ALL is left out."""
    if not text.strip():
        return '<div class="empty">nothing</div>'
    rest, left_out = escaped(text[AT_ONCE:AT_ALL]), len(text) - AT_ALL
    if left_out > 0:
        rest += f" … and {left_out:,} characters that are not on this page"
    more = f"<details><summary>all {len(text):,} characters</summary>{rest}</details>"
    return f'<div dir="auto">{escaped(text[:AT_ONCE])}{more if rest else ""}</div>'


def marked(text: str, marks: Sequence[Mark]) -> str:
    """Show a text with parts of it coloured, from a little before the first to after the last.

    Marks may overlap; what two of different styles share is of the style both.
    """
    begin = max(0, min((mark.start for mark in marks), default=0) - AROUND)
    end = min(len(text), max((mark.end for mark in marks), default=AT_ONCE) + AROUND)
    edges = sorted({begin, end, *(edge for mark in marks for edge in mark[:2])})
    parts = ["… " if begin else ""]
    for first, last in zip(edges, edges[1:], strict=False):
        styles = {mark.style for mark in marks if mark.start <= first and last <= mark.end}
        part = escaped(text[first:last])
        style = "both" if len(styles) > 1 else "".join(styles)
        parts.append(f'<mark class="{style}">{part}</mark>' if style else part)
    parts.append(" …" if end < len(text) else "")
    return f'<div dir="auto">{"".join(parts)}</div>'


def tagged(words: Sequence[str], spans: Sequence[tuple[str, int, int, str]]) -> str:
    """Show words with entities coloured.

    Args:
        words: of a sentence.
        spans: type, first word, word after the last, and style (see `Mark`) of each entity, in
            order and apart.
    """
    parts, place = [], 0
    for kind, start, end, style in spans:
        parts += [escaped(word) for word in words[place:start]]
        inside = escaped(" ".join(words[start:end]))
        parts.append(f'<mark class="{style}">{inside}&nbsp;<small>{escaped(kind)}</small></mark>')
        place = end
    parts += [escaped(word) for word in words[place:]]
    return f'<div dir="auto">{" ".join(parts)}</div>'


def listed(items: Sequence[tuple[str, str]]) -> str:
    """Show texts one below the other, each in its style; "" for none."""
    return "".join(
        f'<div class="{style or "plain"}" dir="auto">{escaped(item)}</div>'
        for item, style in items
    )


def bar(share: float) -> str:
    """Draw a share as a bar."""
    return (
        f'<svg width="{BAR}" height="6" aria-hidden="true"><rect class="all" width="{BAR}" '
        f'height="6"/><rect class="part" width="{BAR * share:.0f}" height="6"/></svg>'
    )
