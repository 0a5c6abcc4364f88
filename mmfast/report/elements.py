"""HTML as nested calls. What is not markup already is escaped, so that no text of a file can become any."""

from __future__ import annotations

from html import escape


class Markup(str):
    """Text that is HTML already."""


# Elements without content, and so without an end.
VOID = ("meta", "img")


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """<tag attributes>content</tag>. Attributes: class_ for class, data_x for data-x, None to leave one out."""
    pairs = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    head = "".join(f' {name}="{escape(str(value))}"' for name, value in pairs)
    return Markup(f"<{tag}{head}>" + ("" if tag in VOID else f"{join(*content)}</{tag}>"))


def join(*content: object) -> Markup:
    """One after the other, text escaped."""
    return Markup("".join(x if isinstance(x, Markup) else escape(str(x)) for x in content))
