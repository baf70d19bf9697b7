"""The files of the page, and the page of the API."""

import re
from importlib.resources import files

from serving.web.chat_page import needs_browser

pytestmark = needs_browser

WEB = files("seq2chat.serving") / "web"


def test_page_is_small_and_strict(page):
    policy = page.request.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    sources = {file.name: file.read_text() for file in WEB.iterdir()}
    assert sum(len(source.encode()) for source in sources.values()) <= 350_000
    for name, source in sources.items():
        parsing = (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
        )
        assert not [word for word in parsing if word in source], name
        assert not re.findall(r"""(?:src|href|import|from)\s*=?\s*\(?["']https?:""", source), name


def test_docs_page_shows_the_openapi_schema(page, server):
    page.goto("/docs")
    page.get_by_role("heading", name="POST /v1/chat/completions").wait_for()
    described = page.request.get(f"{server}/openapi.json").json()
    assert page.locator("section").count() == sum(
        len(methods) for methods in described["paths"].values()
    )
    chat = page.locator(
        "section", has=page.get_by_role("heading", name="POST /v1/chat/completions")
    )
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert chat.locator("th").all_inner_texts() == list(fields)
    assert "number, above 0 to 1" in chat.locator("tr", has_text="top_p").inner_text()


def test_every_module_is_preloaded():
    """Otherwise a browser would find imports of imports one request after another."""

    def modules(name, seen):
        for other in re.findall(r'from "\./([\w.]+)"', (WEB / name).read_text()):
            if other not in seen:
                seen.add(other)
                modules(other, seen)
        return seen

    for page in ("inside", "training"):
        text = (WEB / f"{page}.html").read_text()
        preloaded = re.findall(r'rel="modulepreload" href="/web/([\w.]+)"', text)
        assert set(preloaded) == modules(f"{page}.js", set()), page
