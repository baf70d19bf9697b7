"""What alignment learns from: every form of a line, and every mistake in one."""

import gzip
import json
import os

import pytest

from seq2chat.config import UserError
from seq2chat.text.chat import Message
from seq2chat.text.conversations import (
    Comparison,
    Demonstration,
    Query,
    read_comparisons,
    read_demonstrations,
    read_queries,
    split,
    world_comparisons,
    write_comparisons,
)
from seq2chat.text.world import questions

USER = Message("user", "How?")


def write(folder, *rows, name="data.jsonl"):
    file = folder / name
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(file)


def test_forms_of_demonstrations(tmp_path):
    """They are messages, or a prompt and an answer."""
    talk = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    file = write(
        tmp_path,
        {"messages": talk},
        {"prompt": "How?", "answer": "So."},
        {"prompt": talk[:1], "completion": " So. "},
        {"question": "How?", "answer": "So."},
        name="data.jsonl.gz",
    )
    assert (
        read_demonstrations(file, 0, 0) == [Demonstration((USER, Message("assistant", "So.")))] * 4
    )
    assert len(read_demonstrations(file, 2, 0)) == 2
    assert read_queries(file, 0, 0) == [Query((USER,))] * 4


def test_forms_of_comparisons(tmp_path):
    """They are pairs, ranked answers or transcripts."""
    transcripts = {
        key: f"\n\nHuman: How?\n\nAssistant: {text}"
        for key, text in (("chosen", "So."), ("rejected", "No."))
    }
    file = write(
        tmp_path,
        {"prompt": "How?", "chosen": "So.", "rejected": "No."},
        transcripts,
        {"prompt": "How?", "answers": ["So.", "No."]},
        {"prompt": "How?", "answers": ["No.", "So.", "Eh."], "ranks": [1, 0, 1]},
    )
    *pairs, ranked = read_comparisons(file, 0, 0)
    assert pairs == [Comparison((USER,), ("So.", "No."), (0, 1))] * 3
    assert ranked.pairs() == [("So.", "No."), ("So.", "Eh.")]  # the tied two are no pair
    assert read_queries(file, 0, 0) == [Query((USER,))] * 4


def test_paragraphs_of_a_transcript_stay_in_their_turn(tmp_path):
    start = "\n\nHuman: One.\n\nTwo.\n\nAssistant: Yes.\n\nHuman: More?\n\nAssistant: "
    [found] = read_comparisons(
        write(tmp_path, {"chosen": start + "A\n\nB", "rejected": start + "C"}), 0, 0
    )
    assert [m.content for m in found.prompt] == ["One.\n\nTwo.", "Yes.", "More?"]
    assert found.answers == ("A\n\nB", "C")


def test_written_comparisons_are_read_back(tmp_path):
    compared = world_comparisons(questions("train", 30, seed=5), seed=1)
    write_comparisons(tmp_path / "c.jsonl", compared)
    assert read_comparisons(str(tmp_path / "c.jsonl"), 0, 0) == compared


def test_given_answers_are_ranked_among_the_worlds_own():
    asked = questions("train", 20, seed=5)
    compared = world_comparisons(asked, 1, [[q.answer, " " + q.answer, "Blue."] for q in asked])
    assert all(
        c.answers[0] == q.answer and "Blue." in c.answers
        for c, q in zip(compared, asked, strict=True)
    )
    assert all(len(set(c.answers)) == len(c.answers) for c in compared)


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (read_demonstrations, "{", "Line 1 of .* is not valid JSON"),
        (read_demonstrations, "[1]", r"Row 1 \(line 1\) of .* is not a JSON object"),
        (
            read_demonstrations,
            {"text": "x"},
            'is not a demonstration; write "messages", or "prompt" and "answer". It has text',
        ),
        (read_demonstrations, {"prompt": "x", "answer": ""}, "answer is empty"),
        (read_demonstrations, {"prompt": "x", "answer": 3}, "answer is a int; write a text"),
        (
            read_demonstrations,
            {"messages": [{"role": "user", "content": "x"}]},
            "there is no answer to train on",
        ),
        (read_comparisons, {"prompt": "x", "chosen": "a"}, "is not a comparison"),
        (
            read_comparisons,
            {"prompt": "x", "chosen": "a", "rejected": "a "},
            "two of its answers are equal",
        ),
        (
            read_comparisons,
            {"prompt": "x", "answers": ["a", "b"], "ranks": [0]},
            "write a number for each of the 2",
        ),
        (read_comparisons, {"chosen": "a", "rejected": "b"}, 'chosen does not begin with "Human:"'),
        (
            read_comparisons,
            {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: b"},
            "chosen and rejected answer different prompts",
        ),
        (read_queries, {"text": "x"}, "has no prompt"),
        (
            read_queries,
            {"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "the prompt ends with the assistant's turn",
        ),
    ],
)
def test_the_first_bad_line_is_named(tmp_path, read, row, told):
    with pytest.raises(UserError, match=told):
        read(write(tmp_path, row), 0, 0)


def test_bad_lines_are_left_out_and_reported(tmp_path):
    good = [{"prompt": f"p {i}", "answer": "a"} for i in range(3)]
    file = write(tmp_path, good[0], {"prompt": "x", "answer": ""}, *good[1:], {"prompt": "x"})
    said = []
    read = read_demonstrations(file, 0, 0, said.append, strict=False)
    assert [d.messages[0].content for d in read] == ["p 0", "p 1", "p 2"]
    assert said == [
        f"3 examples in {file}. 2 of 5 rows are left out (2, 5). Line 2 of {file}: answer is empty."
    ]
    with pytest.raises(UserError, match=r"Line 2 of .*answer is empty"):
        read_demonstrations(file, 0, 0, strict=True)
    with pytest.raises(UserError, match=r"Line 1 of .*answer is empty"):
        read_demonstrations(write(tmp_path, {"prompt": "x", "answer": ""}), 0, 0, strict=False)
    with pytest.raises(UserError, match="not valid JSON"):
        read_demonstrations(write(tmp_path, good[0], "{"), 0, 0, strict=False)


def test_missing_and_empty_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        read_queries(str(tmp_path / "none.jsonl"), 0, 0)
    with pytest.raises(UserError, match=r"is not a file of rows"):
        read_queries(write(tmp_path, "x", name="data.txt"), 0, 0)
    with pytest.raises(UserError, match="holds no example"):
        read_queries(write(tmp_path), 0, 0)


def test_held_out_examples_are_spread_evenly():
    assert split(list(range(10)), 0.2) == ([0, 1, 3, 4, 5, 6, 8, 9], [2, 7])
    assert split([1, 2], 0.001) == ([1], [2])
    for n in range(2, 40):
        for n_held_out in range(1, n):
            train, held_out = split(list(range(n)), n_held_out / n)
            assert len(held_out) == n_held_out and sorted(train + held_out) == list(range(n))
    with pytest.raises(UserError, match="give at least two"):
        split([1], 0.5)


def test_the_context_of_an_instruction_is_part_of_it(tmp_path):
    """Dolly's rows and Alpaca's; without it the answer would be made up."""
    file = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "When did it open?", "context": "It opened in 1990.", "response": "1990."},
        {"instruction": "Name one.", "input": "", "output": "This."},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_demonstrations(str(file), 0, 0)
    assert [m.content for m in first.messages] == [
        "When did it open?\n\nIt opened in 1990.",
        "1990.",
    ]
    assert second.prompt == (Message("user", "Name one."),)


def test_labelers_rank_the_demonstration_too():
    asked = questions("train", 30, seed=4)
    for sampled in ((), [["One.", "Two.", "Three.", "Four."]] * 30):
        for question, compared in zip(asked, world_comparisons(asked, 4, sampled), strict=True):
            assert question.answer in compared.answers and 4 <= len(compared.answers) <= 6


def test_a_number_of_examples_is_spread_over_a_file(tmp_path):
    file = write(tmp_path, *({"prompt": "How?", "answer": str(n)} for n in range(400)))
    said = []
    taken = [int(d.messages[-1].content) for d in read_demonstrations(file, 40, 7, said.append)]
    assert taken == sorted(set(taken)) and len(taken) == 40
    assert all(any(100 * quarter <= n < 100 * (quarter + 1) for n in taken) for quarter in range(4))
    assert said == [
        f"400 examples in {file}.",
        "40 of them are used, spread over the file, because of align.examples.",
    ]
    assert [d.messages[-1].content for d in read_demonstrations(file, 40, 7)] == list(
        map(str, taken)
    )


def test_a_pipe_of_conversations_is_refused_as_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe, which can be read only once"):
        read_queries(str(tmp_path / "pipe"), 0, 0)
