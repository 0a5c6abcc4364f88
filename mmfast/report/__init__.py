"""The page about a run: `content` reads its folder, `figures` explains the figures, and `page` writes the HTML."""

from mmfast.report.content import Content, gather
from mmfast.report.page import GENERATOR, page

__all__ = ["GENERATOR", "Content", "gather", "page"]
