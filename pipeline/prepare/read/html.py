"""Texts of sharegpt.com's pages, which are HTML, to Markdown.

    <p>Run:</p><pre><div><span>python</span><button>Copy code</button></div>
    <div><code class="hljs language-python">if x:
        y</code></div></pre>

becomes

    Run:

    ```python
    if x:
        y
    ```

A code block keeps its text exactly; the page's buttons are none of it.
"""

import functools
import re
from typing import Any

from pipeline.errors import require_package

_BLOCK = "(?:div|p|pre|ol|ul|h[1-6]|table|blockquote)"
_OPENS = re.compile(rf"[ \t\n\r]*<{_BLOCK}(?:\s[^<>]*)?>", re.IGNORECASE)
_CLOSES = re.compile(rf"</{_BLOCK}>\s*\Z", re.IGNORECASE)
_LANGUAGE = re.compile(r"(?:language|lang)-([\w+#.-]+)")
HTML_STARTS = ("<", " ", "\t", "\n", "\r")
"""A text that begins with none of these is no HTML."""
_PAGE_PARTS = ("button", "svg", "script", "style")
_LONGEST_END = 64  # of a closing tag and the white space after it


def looks_like_html(text: str) -> bool:
    """Return whether a text is blocks of HTML from its first character to its last.

    >>> [looks_like_html(text) for text in ("<p>Hi</p>", "<p> is a tag", "<html></html>")]
    [True, False, False]
    """
    if not text.startswith(HTML_STARTS):
        return False
    return _OPENS.match(text) is not None and _CLOSES.search(text[-_LONGEST_END:]) is not None


def html_to_markdown(text: str) -> str:
    """Return the Markdown of a text that is HTML.

    One that is nested too deep, or no HTML after all, stays as it is.

    Raises:
        ConfigError: The library is not there.
    """
    converter = _converter()
    try:
        return str(converter.convert(text)).strip("\n")
    except (RecursionError, ValueError, AssertionError):
        return text


@functools.cache
def html_version() -> str:
    """Return which library makes the Markdown: the rows depend on it.

    Raises:
        ConfigError: It is not there.
    """
    from importlib.metadata import version

    _converter()
    return f"markdownify {version('markdownify')}"


@functools.cache
def _converter() -> Any:
    require_package(
        "markdownify",
        where="--clean-html",
        install='"duet-t5[html]"',
        otherwise="leave the flag out",
    )
    from markdownify import MarkdownConverter

    return _converter_class(MarkdownConverter)(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
    )


def _converter_class(base: Any) -> Any:
    class PageConverter(base):  # type: ignore[misc]
        """Markdownify's converter, for the site's code blocks."""

        def convert_soup(self, soup: Any) -> str:
            for part in soup.find_all(_PAGE_PARTS):
                part.decompose()
            return str(super().convert_soup(soup))

        def convert_pre(self, element: Any, text: str, *_: Any, **__: Any) -> str:
            code = element.find("code")
            body = (code or element).get_text()
            if code is None:
                body = body.removeprefix("Copy code")
            classes = " ".join(code.get("class") or []) if code is not None else ""
            language = _LANGUAGE.search(classes)
            fence = "```"
            while fence in body:
                fence += "`"
            return (
                f"\n\n{fence}{language[1] if language else ''}\n{body.rstrip(chr(10))}\n{fence}\n\n"
            )

    return PageConverter
