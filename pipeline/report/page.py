"""Sections -> one HTML page that needs no network and no script, and takes all text as text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

from pipeline.content_security import hash_source
from pipeline.report.svg import StyleSheet

_HERE = Path(__file__).parent


class Table(NamedTuple):
    """Texts in rows; the first of each row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: Sequence[int] = ()
    """Columns of words, beside the first; the others are of numbers."""


class Key(NamedTuple):
    """An entry of a picture's legend."""

    name: str
    color: int
    """From 1, as ``--s1`` of ``page.css``."""
    dash: int = 0
    opacity: float | None = None
    """Of an area; None: a line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Numbers that stand out: name, value, remark."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A chart with its figures as a table."""

    kind: ClassVar[str] = "picture"
    title: str
    svg: str
    """From ``svg.inline_svg``: the one thing that is put into the page as it is."""
    table: Table
    text: str = ""
    legend: Sequence[Key] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TableBlock:
    """A table of its own."""

    kind: ClassVar[str] = "table"
    title: str
    table: Table
    text: str = ""
    code: str = ""
    """A command line above the table."""
    is_open: bool = True
    is_wide: bool = True
    """Whether nothing stands beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Texts that are shown as they are, each under a line of its own."""

    kind: ClassVar[str] = "examples"
    title: str
    examples: Sequence[tuple[str, str, str]]
    """Name, where it is, text."""
    text: str = ""


class Bubble(NamedTuple):
    """What one speaker says."""

    role: str
    """human, assistant, system, tool; or text, of a template whose turns are not known."""
    text: str
    label: str = ""
    """In place of the role."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """A conversation: what is folded away, what is seen."""

    title: str
    note: str
    folded: Sequence[Bubble]
    shown: Sequence[Bubble]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chats:
    """Conversations below one another."""

    kind: ClassVar[str] = "chats"
    chats: Sequence[Chat]


class Column(NamedTuple):
    """An answer beside others."""

    title: str
    text: str


class Row(NamedTuple):
    """The answers of a run."""

    color: int
    """Of the run, from 1."""
    columns: Sequence[Column]


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """Answers to one question: those of a run side by side, runs below one another."""

    kind: ClassVar[str] = "side_by_side"
    title: str
    question: str
    references: Sequence[str]
    """Answers that stand in the data."""
    rows: Sequence[Row]


Block = Facts | Picture | TableBlock | Examples | Chats | SideBySide


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page, with a heading and an entry in its contents."""

    id: str
    title: str
    text: str = ""
    blocks: Sequence[Block] = field(default_factory=tuple)


def render(title: str, subtitle: str, sections: Sequence[Section], sheet: StyleSheet) -> str:
    """Return the page.

    Args:
        title: Of the page.
        subtitle: A line below it.
        sections: In order; those without a block are left out.
        sheet: The styles of the pictures.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    style = "\n" + (_HERE / "page.css").read_text(encoding="utf-8") + sheet.text + "\n"
    page = environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        sections=[section for section in sections if section.blocks],
        style=style,
        style_hash=hash_source(style),
    )
    return page.translate(_UNPRINTABLE)


_UNPRINTABLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
"""Control characters -> their pictures; HTML has no place for them."""
_UNPRINTABLE |= dict.fromkeys((127, *range(55296, 57344)), 65533)
"""Half characters, which UTF-8 cannot write."""


def shorten(text: str, limit: int) -> str:
    """Return a text, or its beginning and its end.

    >>> shorten("abcdefghij", 6)
    'abcd … 4 characters … ij'
    """
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]} … {len(text) - limit:,} characters … {text[head - limit :]}"
