"""A page as a browser takes it apart, with the library's own parser."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}
SHAPES = {"path", "use", "line", "rect", "text", "g", "svg", "defs", "clippath"}
TAGS = SHAPES | {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "nav",
    "a", "main", "section", "div", "figure", "figcaption", "details", "summary", "table",
    "thead", "tbody", "tr", "th", "td", "ul", "li", "bdi", "dl", "dt", "dd", "pre", "article",
    "wbr",
}  # fmt: skip
"""All that a page of ours is made of."""


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: "list[Element]" = field(default_factory=list)
    own_text: list[str] = field(default_factory=list)

    def find(self, tag: str) -> "list[Element]":
        """Return all elements below this one that are so called, in order."""
        found = []
        for child in self.children:
            found += [child] if child.tag == tag else []
            found += child.find(tag)
        return found

    @property
    def text(self) -> str:
        return "".join(self.own_text) + "".join(child.text for child in self.children)


class Page(HTMLParser):
    """Refuses what is not well formed, and keeps all elements in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("root", {})
        self._open = [self.root]
        self.all: list[Element] = []
        self.feed(text)
        self.close()
        assert self._open == [self.root], f"not closed: {[e.tag for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        self.all.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].own_text.append(data)

    def find(self, tag: str) -> list[Element]:
        return self.root.find(tag)

    def block(self, title: str) -> Element:
        """Return the card with a heading."""
        (found,) = [
            card
            for card in self.all
            if "card" in card.attributes.get("class", "").split()
            and any(heading.text == title for heading in card.find("h3"))
        ]
        return found

    def table(self, title: str) -> list[list[str]]:
        """Return the cells of a card's table, the header first."""
        (table,) = self.block(title).find("table")
        return [[c.text for c in row.children] for row in table.find("tr")]
