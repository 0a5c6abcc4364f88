"""The picture of the layers is that of the contract, and the page's table names every layer."""

import re
import runpy

from docs_pages import ROOT

LAYERS = runpy.run_path(str(ROOT / ".ci" / "layers.py"))


def test_the_picture_is_of_the_contract():
    assert (ROOT / "docs" / "layers.svg").read_text() == LAYERS["drawing"](), "python .ci/layers.py draws it anew"


def test_the_table_has_the_layers_in_their_order():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`[^|]+) \|", text, re.M)]
    expected = [{*re.findall(r"\w+", layer)} for layer in LAYERS["layers"]() if layer != "__main__"]
    named = set().union(*expected)
    assert [x for row in rows for x in sorted(row) if x not in named] == []
    assert set().union(*rows) == named
