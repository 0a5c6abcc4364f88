"""HTML as nested calls. Anything that is not Markup is escaped, so text from a file never becomes markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


class Markup(str):
    """Text that is HTML already."""


# Elements without content, and so without an end tag.
VOID = ("meta", "img")


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """<tag attributes>content</tag>. Attributes: class_ for class, data_x for data-x, None to leave one out."""
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    head = "".join(f' {name}="{escape(str(value))}"' for name, value in pairs)
    return Markup(f"<{tag}{head}>" + ("" if tag in VOID else f"{join(*content)}</{tag}>"))


def join(*content: object) -> Markup:
    """Concatenate the arguments, escaping text."""
    return Markup("".join(x if isinstance(x, Markup) else escape(str(x)) for x in content))


def folded(summary: str, *inside: object) -> Markup:
    """Content that is hidden until its summary is clicked."""
    return element("details", element("summary", summary), *inside)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Rows under heads; the first cell of a row is its name. On a phone, each row is a card."""
    top = element("tr", *(element("th", head, scope="col") for head in heads))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, data_head=head) for head, cell in zip(heads[1:], row[1:], strict=True)),
        )
        for row in rows
    ]
    return element("table", element("thead", top), element("tbody", *body))


def terms(pairs: Iterable[tuple[str, object]]) -> Markup:
    """A list of names and their descriptions."""
    return element("dl", *(join(element("dt", name), element("dd", text)) for name, text in pairs))
