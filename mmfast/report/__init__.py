"""The page of a run: `content` reads its folder, `figures` knows what the figures mean, `page` writes HTML of it."""

from mmfast.report.content import Content, gather
from mmfast.report.page import GENERATOR, page

__all__ = ["GENERATOR", "Content", "gather", "page"]
