"""Pages that stand alone: no script, no network, and whatever a device said is text.

e("p", "a < b", e("b", "x"), class_="note")  ─▶  <p class="note">a &lt; b<b>x</b></p>

Only what `e` made is taken as it is; any other string is escaped, without what cannot be shown. The content
security policy allows nothing but the page's own style sheet, by its digest.
"""

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from fleetfold.errors import shown

LONGEST = 2_000
"""Characters of one text: names have 64, a device may try with more."""


class Html(str):
    """Markup of ours."""

    __slots__ = ()


def e(tag: str, *inside: object, **attributes: object) -> Html:
    """An element. `class_`, `data_x` and the like lose their line; None and False are left out, and so are
    attributes that are None or False."""
    named = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_quoted(value)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{tag}{named}>" + ("" if tag in VOID else f"{all_of(inside)}</{tag}>"))


def all_of(parts: Iterable[object]) -> Html:
    """One after another."""
    return Html("".join(text(part) for part in parts if part is not None and part is not False))


def text(value: object) -> str:
    return value if isinstance(value, Html) else escape(shown(str(value), LONGEST))


VOID = ("meta", "br", "col", "hr", "link")


def _quoted(value: object) -> str:
    if isinstance(value, Html):
        return value
    return escape(shown(f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)))


def page(title: str, style: str, *body: object) -> str:
    """The file. It asks for nothing, and nothing in it runs."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = e(
        "head",
        e("meta", charset="utf-8"),
        e("meta", http_equiv="Content-Security-Policy", content=Html(policy)),
        e("meta", name="viewport", content="width=device-width, initial-scale=1"),
        e("meta", name="color-scheme", content="light dark"),
        e("meta", name="referrer", content="no-referrer"),
        e("title", title),
        e("style", Html(style)),
    )
    return f"<!doctype html>\n{e('html', head, e('body', *body), lang='en')}\n"


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, caption: str = "") -> Html:
    """Words on the left, numbers on the right: a column whose name ends in `#` is of numbers."""
    names = [(name.rstrip("#"), "n" if name.endswith("#") else None) for name in columns]
    head = e("tr", *(e("th", name, class_=kind, scope="col") for name, kind in names))
    body = [
        e("tr", *(e("td", cell, class_=kind) for cell, (_, kind) in zip(row, names, strict=True)))
        for row in rows
    ]
    told = e("caption", caption) if caption else None
    return e("div", e("table", told, e("thead", head), e("tbody", *body)), class_="wide", tabindex="0",
             role="region", aria_label=caption or names[0][0])  # fmt: skip
