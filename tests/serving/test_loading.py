"""While the models load: a page for people, and an error for programs."""

import asyncio

import httpx

from seq2chat.serving.server import LoadingApp


def test_a_browser_sees_a_page_while_models_load():
    async def get(path, accept):
        transport = httpx.ASGITransport(LoadingApp())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers={"accept": accept})

    for path in ("/", "/inside", "/training"):
        page = asyncio.run(get(path, "text/html,*/*"))
        assert page.status_code == 503 and "The models are loading" in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
    assert asyncio.run(get("/web/style.css", "text/css")).status_code == 200
    for path in ("/v1/models", "/web/main.js"):
        error = asyncio.run(get(path, "text/html"))
        assert error.status_code == 503 and "loading its models" in error.json()["error"]["message"]
