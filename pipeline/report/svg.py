"""A matplotlib figure -> SVG that is part of the page: its text is text, its colours the page's.

matplotlib writes a document with inline styles in fixed colours. Here each style becomes a class,
so that the page may forbid inline styles, and each colour a CSS variable, which has another value
in a dark page. A chart draws with the stand-ins of this file alone.
"""

import io
import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, GRID, GROUND = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0102{i:02x}" for i in range(1, 7))
"""Colours of the runs, or of what else is told apart; the page has as many ``--s1``, ``--s2``…"""
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    GROUND: "var(--card)",
    **{color: f"var(--s{i})" for i, color in enumerate(SERIES, start=1)},
}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "duet",  # else ids are drawn by chance
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_COLOR = re.compile(r"#[0-9a-f]{6}\b")
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")


def style() -> Any:
    """Return the context in which figures are made and drawn."""
    import matplotlib as mpl  # here and below late: half a second

    return mpl.rc_context(_STYLE)


class StyleSheet:
    """Gives each style that pictures use a class."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self.pictures = 0
        """How many there were; ids of a picture begin with its number."""

    def class_of(self, declarations: str) -> str:
        """Return the class for a style attribute of matplotlib's."""
        kept = [part.strip() for part in declarations.split(";")]
        kept = [part for part in kept if part and not part.startswith("font-family")]
        text = _COLOR.sub(lambda match: VARIABLES[match.group()], "; ".join(kept))
        return self._classes.setdefault(text, f"p{len(self._classes)}")

    @property
    def text(self) -> str:
        """The rules of all classes."""
        return "\n".join(f".{name} {{ {text} }}" for text, name in self._classes.items())


def inline_svg(figure: "Figure", label: str, sheet: StyleSheet) -> str:
    """Return a figure as an ``<svg>`` element.

    Args:
        figure: What is drawn; made in ``style()``.
        label: What a reader who cannot see it is told.
        sheet: Takes its styles.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(file.getvalue())
    for name in ("metadata", "defs"):  # who made it; a style that would be the whole page's
        for child in root.findall(_SVG + name):
            if name == "metadata" or child.find(_SVG + "style") is not None:
                root.remove(child)
    sheet.pictures += 1
    prefix = f"g{sheet.pictures}-"
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = _attributes(element, prefix, sheet)
        element.text = element.text if element.tag == "text" else None
        element.tail = None
    _drop_ids(root)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode")


def _attributes(element: ET.Element, prefix: str, sheet: StyleSheet) -> dict[str, str]:
    """Return an element's attributes with classes for styles, and ids of this picture alone."""
    found = {}
    for name, value in element.attrib.items():
        if name == "style":
            found["class"] = sheet.class_of(value)
        elif name == _HREF:
            found["href"] = value.replace("#", f"#{prefix}")
        elif name == "id":
            found["id"] = prefix + value
        else:
            found[name] = _LONG_NUMBER.sub(r"\1", value.replace("url(#", f"url(#{prefix}"))
            found[name] = " ".join(found[name].split())
    return found


def _drop_ids(root: ET.Element) -> None:
    """Drop the ids that nothing refers to."""
    values = " ".join(v for e in root.iter() for n, v in e.attrib.items() if n != "id")
    used = set(re.findall(r"#([\w-]+)", values))
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
