"""Put the page together from its parts: page.html, page.css, the scripts, and the payload.

The page's policy (CSP) allows no request, and of styles and scripts only its own, by their hashes.
So a token with markup in it is text twice over: `Payload.as_json` makes text of it, and if it did
not, its script would not run.
"""

import base64
import hashlib
from importlib.resources import files
from string import Template

from bert.internals.page.payload import Payload

SCRIPTS = (
    "data", "tokens", "thumbnails", "head_map", "head_lines", "stream", "parts", "tables", "main",
)  # fmt: skip
"""In the order in which they stand in the page."""


def render(payload: Payload) -> str:
    """Return the page as HTML."""
    style = _part("page.css")
    body = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{body}}})();\n'
    # One pass over the template: a text that says "$script" stays what it is.
    return Template(_part("page.html")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        payload=payload.as_json(),
    )


def _part(name: str) -> str:
    return (files("bert.internals.page") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """Name a style or script as a content security policy does."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
