"""An HTML page as the tests read it."""

from html.parser import HTMLParser

VOID = {"meta", "img"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and the texts and numbers of its table rows, by the row's name."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts, self.rows, self.cells = [], [], [], {}, None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells = []
        if tag in ("th", "td"):
            self.cells.append([dict(attributes).get("data-head", ""), "", None])
        if tag == "data":
            self.cells[-1][2] = float(dict(attributes)["value"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            (_, name, _), *cells = self.cells
            self.rows[name] = {head: text if value is None else value for head, text, value in cells}
            self.cells = None

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.cells:
            self.cells[-1][1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag):
        return [text for name, text in self.texts if name == tag]
