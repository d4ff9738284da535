"""Texts of sharegpt.com's pages to Markdown, and all others untouched."""

import sys
from typing import Any

import pytest

from pipeline.conversation import ROLES_BY_NAME
from pipeline.errors import ConfigError
from pipeline.prepare.read import html
from pipeline.prepare.read.html import html_to_markdown, looks_like_html
from pipeline.prepare.read.records import RecordCounts, parse_record

PAGE = (
    '<div class="markdown prose w-full break-words dark:prose-invert light">'
    "<p>Use a <strong>loop</strong>, like <code>for x in y</code> &amp; a_b * c:</p>"
    '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center">'
    '<span class="">python</span><button class="flex ml-auto gap-2"><svg><path d="M1"></path></svg>'
    'Copy code</button></div><div class="p-4 overflow-y-auto">'
    '<code class="!whitespace-pre hljs language-python"><span class="hljs-keyword">for</span> x '
    '<span class="hljs-keyword">in</span> y:\n    <span>if</span> x &lt; 2:\n\n        '
    "print(x)\n</code></div></div></pre>"
    "<ol><li>one</li><li><p>two</p></li></ol></div>"
)
MARKDOWN = """\
Use a **loop**, like `for x in y` & a_b * c:

```python
for x in y:
    if x < 2:

        print(x)
```

1. one
2. two"""


def test_a_page_becomes_markdown_with_its_code_to_the_letter() -> None:
    assert html_to_markdown(PAGE) == MARKDOWN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Hi</p>", "Hi"),
        ("\n <div><p>a</p><p>b</p></div> ", "a\n\nb"),
        ("<pre><code>x\n\ty</code></pre>", "```\nx\n\ty\n```"),
        ("<pre>Copy code</pre>", "```\n\n```"),
        ("<pre><code>a ``` b</code></pre>", "````\na ``` b\n````"),
        ("<h2>T</h2><ul><li>a</li></ul>", "## T\n\n- a"),
    ],
)
def test_pieces(text: str, expected: str) -> None:
    assert looks_like_html(text)
    assert html_to_markdown(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "<p> is a tag", "a <p>b</p>", "<p>b</p> c", "1 < 2 > 0", "<!DOCTYPE html>\n"),
        *("<html><body><p>x</p></body></html>", "<b>x</b>", "&lt;p&gt;", "  - a\n  - b", "<pre"),
        *("<print>x</print>", "<p>unclosed", "</p>"),
    ],
)
def test_what_is_no_html_is_untouched(text: str) -> None:
    counts = RecordCounts()
    value = {"conversations": [{"from": "gpt", "value": text}]}
    assert not looks_like_html(text)
    assert parse_record(value, ROLES_BY_NAME, counts, clean_html=True).turns[0].text == text
    assert not counts


def test_without_the_flag_it_is_counted_and_kept() -> None:
    for value in (
        {"conversations": [{"from": "gpt", "value": "<p>x</p>"}]},
        {"messages": [{"role": "ai", "content": ["<p>", "x</p>"]}]},
    ):
        counts = RecordCounts()
        assert parse_record(value, ROLES_BY_NAME, counts).turns[0].text == "<p>x</p>"
        assert counts.reasons == {"looks_like_html": 1}
        counts = RecordCounts()
        assert parse_record(value, ROLES_BY_NAME, counts, clean_html=True).turns[0].text == "x"
        assert not counts


def test_html_nested_too_deep_is_kept_as_it_is() -> None:
    text = "<div>" * 20_000 + "x" + "</div>" * 20_000
    assert html_to_markdown(text) == text


def test_without_the_library_one_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cached: Any = html._converter
    cached.cache_clear()
    monkeypatch.setitem(sys.modules, "markdownify", None)
    with pytest.raises(ConfigError, match=r'pip install "duet-t5\[html\]"'):
        html_to_markdown("<p>x</p>")
    cached.cache_clear()


def test_a_system_text_of_empty_html_is_absent() -> None:
    value = {"system": "<p></p>", "messages": [{"role": "user", "content": "q"}]}
    found = parse_record(value, ROLES_BY_NAME, RecordCounts(), clean_html=True)
    assert [turn.text for turn in found.turns] == ["q"]
