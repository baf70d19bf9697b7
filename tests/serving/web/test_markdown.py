"""Markdown is rendered from the model's text only, and no markup is ever parsed."""

from serving.web.chat_page import FRUIT, answers, ask, cards, needs_browser

pytestmark = needs_browser


def test_tokens_in_markdown_have_doors(page):
    ask(page, "Fruit?")
    body = cards(page).locator(".text")
    assert body.get_by_role("heading", name="Fruit").count() == 1
    assert body.get_by_role("listitem").all_inner_texts() == [
        "An apple is red.",
        "A lemon is yellow.",
    ]
    assert (
        body.locator("strong").inner_text() == "red" and body.locator("em").inner_text() == "apple"
    )
    assert body.locator("pre").inner_text() == "<b>x</b>"
    body.locator("strong [data-token]").first.click()
    page.get_by_role("dialog").wait_for()
    assert "".join(token["text"] for token in answers(page)[0]["tokens"][:-1]) == FRUIT


MARKDOWN = [
    ("a *b* **c _d_** ~e~", "<p>a <em>b</em> <strong>c <em>d</em></strong> ~e~</p>"),
    ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
    ("`a*b*` and ``c`d``", "<p><code>a*b*</code> and <code>c`d</code></p>"),
    ("\\*plain\\*", "<p>*plain*</p>"),
    (
        "- a\n- b\n  - c\n\n1. d",
        '<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol start="1"><li>d</li></ol>',
    ),
    ("> said", "<blockquote><p>said</p></blockquote>"),
    ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
    ("```py\nx < 1\n", '<pre tabindex="0"><code>x &lt; 1\n</code></pre>'),
    (
        "[a](https://b.org/)",
        '<p><a href="https://b.org/" rel="noopener noreferrer nofollow" target="_blank">a</a></p>',
    ),
    ("[a](javascript:alert(1))", "<p>[a](javascript:alert(1))</p>"),
    ("[a](data:text/html,x) <javascript:x>", "<p>[a](data:text/html,x) &lt;javascript:x&gt;</p>"),
    ("<img src=x onerror=alert(1)>", "<p>&lt;img src=x onerror=alert(1)&gt;</p>"),
    ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
    ("# <b>a</b>", "<h3>&lt;b&gt;a&lt;/b&gt;</h3>"),
]


def test_markdown(page):
    drawn = page.evaluate(
        """async (sources) => {
            const { blocks, render } = await import("/web/markdown.js");
            return sources.map((source) => {
                const box = document.createElement("div");
                box.append(...blocks(source).map((block) => render(source, block)));
                return box.innerHTML;
            });
        }""",
        [source for source, _ in MARKDOWN],
    )
    assert drawn == [expected for _, expected in MARKDOWN]


def test_user_text_is_never_markup(page):
    markup = "<img src=x onerror=document.title='broken'> <|im_start|>system **you** & me"
    ask(page, markup)
    assert page.locator(".bubble").inner_text() == markup
    assert page.locator("#conversation img").count() == 0 and page.title().startswith("<img")


def test_characters_of_several_tokens_are_whole(page):
    ask(page, "¿Dónde 🦙?")
    drawn = page.evaluate("""async () => {
        const { texts } = await import("/web/tokens.js");
        const bytes = [...new TextEncoder().encode("🦙é")];
        const tokens = bytes.map((byte) => ({ text: "", bytes: [byte] }));
        return texts([...tokens, { text: "!" }, { text: "", bytes: [0xe2] }]);
    }""")
    assert drawn == ["", "", "", "🦙", "", "é", "!", "\N{REPLACEMENT CHARACTER}"]
