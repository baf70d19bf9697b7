"""JSON lines: any sample of their blocks holds whole documents, each once."""

import json
import random

import pytest

from seq2chat.config import UserError
from seq2chat.text import jsonlines
from seq2chat.text.corpus import load_corpus
from seq2chat.text.jsonlines import JsonLines, is_json_lines
from seq2chat.text.split import split_parts


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """3,000 numbered documents of 1 to 60 words, in blocks of 256 bytes: some lines are longer than
    a block."""
    monkeypatch.setattr(jsonlines, "BLOCK", 256)
    rng = random.Random(0)
    texts = [f"{number} " + "süß word " * rng.randint(1, 30) for number in range(3000)]
    file = tmp_path / "rows.jsonl"
    ends = ["\n", "\n\n", "\r\n"]
    file.write_bytes(
        "".join(json.dumps({"text": text}) + rng.choice(ends) for text in texts).encode()
    )
    return file, texts


def test_all_blocks_hold_all_documents_in_order(lines):
    file, texts = lines
    assert list(JsonLines(file, "text").sample(1.0)) == texts


def test_a_sample_is_spread_over_the_file(lines):
    """Its count of characters is close."""
    file, texts = lines
    numbers = [int(text.split()[0]) for text in JsonLines(file, "text").sample(0.1)]
    assert len(set(numbers)) == len(numbers) and 200 < len(numbers) < 400
    for tenth in range(10):
        assert 10 < sum(300 * tenth <= number < 300 * (tenth + 1) for number in numbers) < 60
    assert JsonLines(file, "text").count() == pytest.approx(sum(map(len, texts)), rel=0.2)


def test_a_sampled_corpus_holds_out_whole_documents(lines):
    """It reads no other documents."""
    file, texts = lines
    corpus = load_corpus(str(file))
    parts = list(split_parts(corpus, 0.2, characters=corpus.n_characters // 5))
    assert {part.split for part in parts} == {"train", "val"}
    assert {part.text for part in parts} < set(texts)
    assert sum(len(part.text) for part in parts) == pytest.approx(corpus.n_characters / 5, rel=0.3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken", "The line at byte 15 of .* is not valid JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('{"body": "x"}', "has no field 'text'; its fields are: body"),
        ('{"text": null}', "is null where text should be"),
        ('{"n": ' + "9" * 5000 + "}", "has a number of too many digits"),
        ("[" * 100_000, "is nested too deeply"),
        (
            '{"text": "a", "text": "b"}',
            'The line at byte 15 of .* has the key "text" twice with different values',
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(line, words, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "on"}\n' + line + "\n")
    with pytest.raises(UserError, match=words):
        list(JsonLines(file, "text").sample(1.0))


@pytest.mark.parametrize(
    "content", ['{\n "text": "over lines"\n}', '[{"text": "an array"}]', "", "\n{}"]
)
def test_other_layouts_are_not_read_by_lines(content, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    assert not is_json_lines(file)
