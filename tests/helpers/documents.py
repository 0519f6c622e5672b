"""The project's prose: its Markdown files, and the chapters of the tutorial."""

import re
from pathlib import Path

from helpers.runs import ROOT

CHAPTERS = sorted((ROOT / "docs" / "tutorial").glob("[0-9]_*.py"))
DOCS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *CHAPTERS,
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)([^)]+)\)|src=\"(?!http)([^\"]+)\"")


def prose(doc: Path) -> str:
    """A Markdown file, or all text cells of a chapter."""
    if doc.suffix == ".md":
        return doc.read_text(encoding="utf-8")
    return "\n\n".join(text for is_prose, text in cells_of(doc) if is_prose)


def cells_of(chapter: Path) -> list[tuple[bool, str]]:
    """Whether each cell of the text file is prose, and its text without the comment signs."""
    _, *pieces = CELL.split(chapter.read_text(encoding="utf-8"))
    pairs = list(zip(pieces[::2], pieces[1::2], strict=True))
    return [
        (is_prose, re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() if is_prose else text.strip())
        for is_prose, text in (("[markdown]" in mark, text) for mark, text in pairs)
    ]


def broken_links(doc: Path) -> list[str]:
    """Links to files that do not exist, or to headings that a Markdown file does not have."""
    targets = ["".join(groups) for groups in LINK.findall(BLOCK.sub("", prose(doc)))]
    return [target for target in targets if not leads_somewhere(doc, *target.partition("#")[::2])]


def leads_somewhere(doc: Path, file: str, anchor: str) -> bool:
    """Whether a link of a document does."""
    path = doc.parent / file if file else doc
    return path.exists() and (not anchor or anchor in anchors(path))


def anchors(doc: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", prose(doc)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
