"""Pages of the documentation, and their examples."""

from __future__ import annotations

from pathlib import Path

from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)]


def examples(page):
    """Return the examples of a page in order. Later examples use the names of earlier ones."""
    document = Document.parse(str(page), PythonCodeBlockParser(), SkipParser())
    document.namespace["__name__"] = "__main__"
    return list(document.examples())
