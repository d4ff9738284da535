"""The chat page: its text, and, where there is a Chromium, what a person sees and does."""

import base64
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.generation.server.conftest import KEY, Server

PAGE = Path("pipeline/generation/server/page.html")
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>\n"
    "</div><h1>big</h1> <a href=javascript:alert(1)>link</a> &amp; &lt;b&gt; ```\n\tcode\n```"
)


def test_the_page_comes_with_a_policy_that_lets_its_own_script_run_alone(server: Server) -> None:
    response = httpx2.get(f"{server.url}/")  # without a key
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = response.headers["content-security-policy"]
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_page_needs_no_network_and_makes_no_html_of_a_text(server: Server) -> None:
    text = httpx2.get(f"{server.url}/").text
    assert "://" not in text
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|\bon\w+=", text
    )
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text


@pytest.fixture(scope="module")
def question(server: Server) -> str:
    """One whose answer does not end by itself."""
    with server.client() as client:
        for i in range(50):
            text = f"Say {i}\nand go on"
            messages: Any = [{"role": "user", "content": text}]
            answer = client.chat.completions.create(model="out", messages=messages, max_tokens=150)
            if answer.choices[0].finish_reason == "length":
                return text
    raise AssertionError("each answer ends")


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page = browser.contexts[0].pages[0]
    problems: list[str] = []

    def note(message: Any) -> None:
        if message.type == "error" and "401" not in message.text:
            problems.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_viewport_size({"width": 1000, "height": 700})
    page.goto(server.url)
    yield page
    page.unroute_all()
    page.remove_listener("console", note)
    assert not problems


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(300):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError


def give_key(page: Any) -> None:
    page.fill("#text", "first")
    page.press("#text", "Enter")
    page.wait_for_selector("#key:visible")  # 401: the page asks for it
    page.fill("#key", KEY)
    page.press("#key", "Tab")
    until(lambda: page.title() == "out")


def test_a_person_chats_stops_and_starts_anew(page: Any, server: Server, question: str) -> None:
    give_key(page)
    assert page.input_value("#text") == "first"  # the question went back
    page.fill("#text", question)
    page.press("#text", "Enter")
    page.wait_for_selector("#stop:visible")
    page.wait_for_selector(".assistant")
    until(lambda: len(page.inner_text(".assistant")) > 20)
    server.wait_until("duet_answers_running", lambda value: value == 1)
    page.click("#stop")
    page.wait_for_selector("#send:visible")
    assert "(stopped)" in page.inner_text("#turns")
    server.wait_until("duet_answers_running", lambda value: value == 0)
    assert page.inner_text(".user") == question
    length = len(page.inner_text(".assistant"))
    time.sleep(0.3)
    assert len(page.inner_text(".assistant")) == length

    asked: list[Any] = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.method == "POST" else None)
    page.fill("#text", "again")
    page.click("#send")
    until(lambda: bool(asked))
    page.wait_for_selector("#send:visible")
    roles = [message["role"] for message in asked[0]["messages"]]
    assert roles == ["user", "assistant", "user"]
    page.click("#fresh")
    assert page.inner_text("#turns") == ""


def event(delta: dict[str, str], reason: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def answer_with(page: Any, *texts: str) -> None:
    """Have the next answers be these pieces."""
    events = [event({"content": text}) for text in texts]
    body = "".join([*events, event({}, "stop"), "data: [DONE]\n\n"])
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(body=body, headers={"Content-Type": "text/event-stream"}),
    )


def test_an_answer_full_of_html_stays_text(page: Any) -> None:
    answer_with(page, *re.findall(r".{1,7}", HOSTILE, re.DOTALL))
    page.fill("#text", HOSTILE)
    page.click("#send")
    page.wait_for_selector("#send:visible")
    shown = "document.querySelector('{}').textContent"
    assert page.evaluate(shown.format(".assistant")) == HOSTILE
    assert page.evaluate(shown.format(".user")) == HOSTILE
    assert page.evaluate("document.querySelectorAll('#turns *').length") == 2  # no element within
    assert page.evaluate("document.title") != "taken"
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/html.png")


def test_it_fits_a_phone_and_the_dark(page: Any) -> None:
    answer_with(page, "word " * 40, "x" * 300, "\n\n" + "\n".join("line" for _ in range(60)))
    page.set_viewport_size({"width": 360, "height": 640})
    backs = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        backs[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert backs["light"] == "rgb(246, 247, 249)" and backs["dark"] == "rgb(20, 23, 27)"
    page.fill("#text", "a long answer, please")
    page.click("#send")
    page.wait_for_selector("#send:visible")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.query_selector("#send").bounding_box()
    assert box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 640
    assert page.evaluate("const s = document.getElementById('scroll');"
                         "s.scrollHeight - s.scrollTop - s.clientHeight < 5")  # fmt: skip
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/phone.png")
    page.emulate_media(color_scheme="light")
