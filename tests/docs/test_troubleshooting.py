"""The troubleshooting page quotes errors that exist: every fragment of a message stands in the source."""

import ast
import re

import pytest
from docs_pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
MESSAGES = re.findall(r"^\| `(.+?)` \|", PAGE, re.M)


def texts():
    """Every string of the package, those of f-strings and of neighbours joined, with ... for what differs."""
    found = []
    for file in (ROOT / "mmfast").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(x.value if isinstance(x, ast.Constant) else "..." for x in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


TEXTS = texts()


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_one_of_the_package(message):
    fragments = [part.strip(" ;:,") for part in message.split("...")]
    fragments = [part for part in fragments if len(part) > 3]
    assert fragments
    assert any(all(part in text for part in fragments) for text in TEXTS), fragments


def test_there_are_messages_of_every_part():
    assert len(MESSAGES) >= 15
