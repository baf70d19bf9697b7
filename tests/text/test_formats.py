"""Conversations, comparisons and prompts are read in the forms that data sets have, or refused by
name."""

import json
from pathlib import Path

import pytest

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START, Message, answer_ids
from seq2chat.text.conversations import (
    Comparison,
    demonstration_tokens,
    read_comparisons,
    read_demonstrations,
    read_queries,
)
from seq2chat.text.turns import tidy


def write(folder: Path, *rows: object, name: str = "data.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def turns(**contents: str) -> list[dict]:
    return [
        {"role": role.rstrip("0123456789"), "content": content}
        for role, content in contents.items()
    ]


def shared(*pairs: tuple[str, str]) -> list[dict]:
    return [{"from": name, "value": value} for name, value in pairs]


HELLO = turns(user="Hello", assistant="Hi.")
EXCHANGE = [("user", "Hello"), ("assistant", "Hi.")]
DEMONSTRATIONS = {
    "sharegpt": ({"conversations": shared(("human", "Hello"), ("gpt", "Hi."))}, EXCHANGE),
    "sharegpt system": (
        {"conversations": shared(("system", "Be kind."), ("human", "Hello"), ("gpt", "Hi."))},
        [("system", "Be kind."), *EXCHANGE],
    ),
    "sharegpt system beside": (
        {"system": "Be kind.", "conversations": shared(("human", "Hello"), ("gpt", "Hi."))},
        [("system", "Be kind."), *EXCHANGE],
    ),
    "sharegpt keys in messages": (
        {"messages": shared(("user", "Hello"), ("assistant", "Hi."))},
        EXCHANGE,
    ),
    "trl": ({"prompt": HELLO[:1], "completion": HELLO[1:]}, EXCHANGE),
    "alpaca": (
        {
            "instruction": "Double it.",
            "input": "2",
            "output": "4",
            "system": "Count.",
            "history": [["Double 1.", "2"], ["Double 3.", "6"]],
        },
        [
            ("system", "Count."),
            ("user", "Double 1."),
            ("assistant", "2"),
            ("user", "Double 3."),
            ("assistant", "6"),
            ("user", "Double it.\n\n2"),
            ("assistant", "4"),
        ],
    ),
    "alpaca with nothing beside": (
        {"instruction": "Hello", "input": "", "output": "Hi.", "system": "", "history": []},
        EXCHANGE,
    ),
    "input and output": ({"input": "Hello", "output": "Hi."}, EXCHANGE),
    "capitals": ({"Instruction": "Hello", "Response": "Hi."}, EXCHANGE),
    "role names": (
        {"messages": [{"role": "Human", "content": "Hello"}, {"role": "AI", "content": "Hi."}]},
        EXCHANGE,
    ),
    "more role names": (
        {"messages": [{"role": "user", "content": "Hello"}, {"role": "model", "content": "Hi."}]},
        EXCHANGE,
    ),
    "developer": (
        {"messages": [{"role": "developer", "content": "Be kind."}, *HELLO]},
        [("system", "Be kind."), *EXCHANGE],
    ),
    "parts": (
        {
            "messages": [
                {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
                for m in HELLO
            ]
        },
        EXCHANGE,
    ),
    "empty system": ({"messages": [{"role": "system", "content": ""}, *HELLO]}, EXCHANGE),
    "no tools": ({"messages": HELLO, "tools": [], "images": None}, EXCHANGE),
    "empty columns of a table": (
        {"prompt": "Hello", "answer": "Hi.", "context": "", "system": None},
        EXCHANGE,
    ),
    "transcript as prompt": (
        {"prompt": "\n\nHuman: Hello\n\nAssistant:", "answer": " Hi."},
        EXCHANGE,
    ),
    "indented code": (
        {"prompt": "Hello", "answer": "\n    def f():\n        return 1\n"},
        [("user", "Hello"), ("assistant", "    def f():\n        return 1")],
    ),
    "turns in any order": (
        {
            "messages": turns(
                system="Be kind.",
                assistant="Welcome!",
                user="Hello",
                user2="Well?",
                assistant2="Hi.",
            )
        },
        [
            ("system", "Be kind."),
            ("assistant", "Welcome!"),
            ("user", "Hello"),
            ("user", "Well?"),
            ("assistant", "Hi."),
        ],
    ),
    "thanks at the end": ({"messages": [*HELLO, *turns(user="Thanks.")]}, EXCHANGE),
    "whole conversation as completion": ({"prompt": HELLO[:1], "completion": HELLO}, EXCHANGE),
    "whole transcript as answer": (
        {"prompt": "Hello", "answer": "\n\nHuman: Hello\n\nAssistant: Hi."},
        EXCHANGE,
    ),
    "history behind the system message": (
        {
            "prompt": turns(system="Be kind.", user="Well?"),
            "history": [["Hello", "Hi."]],
            "answer": "Yes.",
        },
        [("system", "Be kind."), *EXCHANGE, ("user", "Well?"), ("assistant", "Yes.")],
    ),
    "history before messages": (
        {"messages": turns(user="Well?", assistant="Yes."), "history": [["Hello", "Hi."]]},
        [*EXCHANGE, ("user", "Well?"), ("assistant", "Yes.")],
    ),
    "history in the messages already": (
        {
            "messages": [*HELLO, *turns(user="Well?", assistant="Yes.")],
            "history": [["Hello", "Hi."]],
        },
        [*EXCHANGE, ("user", "Well?"), ("assistant", "Yes.")],
    ),
    "history inside the input": (
        {
            "input": {"messages": turns(user="Well?"), "history": [["Hello", "Hi."]]},
            "output": "Yes.",
        },
        [*EXCHANGE, ("user", "Well?"), ("assistant", "Yes.")],
    ),
    "neutral keys": (
        {
            "messages": [{**HELLO[0], "train": False, "images": []}, {**HELLO[1], "loss": True}],
            "weight": 1.0,
        },
        EXCHANGE,
    ),
    "two names of one role": ({"messages": [{**HELLO[0], "from": "human"}, HELLO[1]]}, EXCHANGE),
    "half an emoji": (
        {"prompt": "Hello\ud83d", "answer": "Hi."},
        [("user", "Hello\ufffd"), EXCHANGE[1]],
    ),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_published_forms_of_demonstrations(tmp_path, name):
    row, expected = DEMONSTRATIONS[name]
    [demonstration] = read_demonstrations(write(tmp_path, row), 0, 0)
    assert [(message.role, message.content) for message in demonstration.messages] == expected


@pytest.mark.parametrize("name", ["talks.csv", "talks.json"])
def test_tables_and_arrays_of_conversations(tmp_path, name):
    text = {
        "talks.csv": "Question,Answer\nHello,Hi.\n",
        "talks.json": json.dumps([{"messages": HELLO}], indent=2),
    }
    (tmp_path / name).write_text(text[name])
    [demonstration] = read_demonstrations(str(tmp_path / name), 0, 0)
    assert [m.content for m in demonstration.messages] == ["Hello", "Hi."]


def test_parquet_of_conversations(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"messages": HELLO, "source": "us"},
        {"messages": [{**HELLO[0], "name": "Ann"}, HELLO[1]], "source": None},
    ]
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    said: list[str] = []
    assert len(read_demonstrations(str(tmp_path / "a.parquet"), 0, 0, said.append)) == 2
    assert said[0].endswith("Keys not used: source, messages.name.")


CHOSEN = [*HELLO[:1], *turns(assistant="Hi.")]
REJECTED = [*HELLO[:1], *turns(assistant="No.")]
PLAIN = Comparison((Message("user", "Hello"),), ("Hi.", "No."), (0, 1))
SYSTEM = Comparison(
    (Message("system", "Be kind."), Message("user", "Hello")), ("Hi.", "No."), (0, 1)
)
TIE = Comparison(PLAIN.prompt, PLAIN.answers, (0, 0))
TRANSCRIPTS = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi.",
    "rejected": "\n\nHuman: Hello\n\nAssistant: No.",
}
COMPARISONS = {
    "trl explicit": ({"prompt": HELLO[:1], "chosen": CHOSEN[1:], "rejected": REJECTED[1:]}, PLAIN),
    "trl implicit": ({"chosen": CHOSEN, "rejected": REJECTED}, PLAIN),
    "ultrafeedback": (
        {
            "prompt": "Hello",
            "chosen": CHOSEN,
            "rejected": REJECTED,
            "messages": CHOSEN,
            "score_chosen": 8.0,
            "score_rejected": 3.5,
        },
        PLAIN,
    ),
    "equal scores": (
        {
            "prompt": "Hello",
            "chosen": "Hi.",
            "rejected": "No.",
            "score_chosen": 5,
            "score_rejected": 5,
        },
        TIE,
    ),
    "system and question": (
        {"system": "Be kind.", "question": "Hello", "chosen": "Hi.", "rejected": "No."},
        SYSTEM,
    ),
    "system and messages": ({"system": "Be kind.", "chosen": CHOSEN, "rejected": REJECTED}, SYSTEM),
    "system, prompt and messages": (
        {"system": "Be kind.", "prompt": "Hello", "chosen": CHOSEN, "rejected": REJECTED},
        SYSTEM,
    ),
    "system twice": (
        {
            "system": "Be kind.",
            "chosen": [*turns(system="Be kind."), *CHOSEN],
            "rejected": [*turns(system="Be kind."), *REJECTED],
        },
        SYSTEM,
    ),
    "system in the messages alone": (
        {
            "prompt": "Hello",
            "chosen": [*turns(system="Be kind."), *CHOSEN],
            "rejected": [*turns(system="Be kind."), *REJECTED],
        },
        SYSTEM,
    ),
    "messages of pairwise labels": (
        {"system": "Be kind.", "response_a": CHOSEN, "response_b": REJECTED, "winner": "a"},
        SYSTEM,
    ),
    "alpaca": ({"instruction": "Hello", "input": "", "chosen": "Hi.", "rejected": "No."}, PLAIN),
    "openai": (
        {
            "input": {"messages": HELLO[:1], "tools": []},
            "preferred_output": CHOSEN[1:],
            "non_preferred_output": REJECTED[1:],
        },
        PLAIN,
    ),
    "sharegpt": (
        {
            "conversations": shared(("human", "Hello")),
            "chosen": shared(("gpt", "Hi."))[0],
            "rejected": shared(("gpt", "No."))[0],
        },
        PLAIN,
    ),
    "winner b": (
        {"prompt": "Hello", "response_a": "No.", "response_b": "Hi.", "winner": "model_b"},
        Comparison(PLAIN.prompt, ("No.", "Hi."), (1, 0)),
    ),
    "winner tie": (
        {"prompt": "Hello", "response_a": "Hi.", "response_b": "No.", "winner": "Tie"},
        TIE,
    ),
    "whole floats": ({"prompt": "Hello", "answers": ["Hi.", "No."], "ranks": [0.0, 1.0]}, PLAIN),
    "transcripts and their prompt": (
        {"prompt": "\n\nHuman: Hello\n\nAssistant:"} | TRANSCRIPTS,
        PLAIN,
    ),
    "transcripts and their question": ({"prompt": "Hello"} | TRANSCRIPTS, PLAIN),
    "answers with their prompt": (
        {"prompt": "Hello", "answers": [*TRANSCRIPTS.values()], "ranks": [0, 1]},
        PLAIN,
    ),
    "history before both sides": (
        {
            "chosen": turns(user="Well?", assistant="Yes."),
            "rejected": turns(user="Well?", assistant="No."),
            "history": [["Hello", "Hi."]],
        },
        Comparison(
            (*(Message(*turn) for turn in EXCHANGE), Message("user", "Well?")),
            ("Yes.", "No."),
            (0, 1),
        ),
    ),
    "preference tie": (
        {"prompt": "Hello", "chosen": "Hi.", "rejected": "No.", "preference": "tie"},
        TIE,
    ),
    "rewards of answers": (
        {"prompt": "Hello", "answers": ["Hi.", "No."], "rewards": [1, 3]},
        Comparison(PLAIN.prompt, PLAIN.answers, (1, 0)),
    ),
    "scores of answers": (
        {"prompt": "Hello", "answers": ["Hi.", "No.", "Eh."], "scores": [0.5, 0.5, 2]},
        Comparison(PLAIN.prompt, ("Hi.", "No.", "Eh."), (1, 1, 0)),
    ),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_published_forms_of_comparisons(tmp_path, name):
    row, expected = COMPARISONS[name]
    file = write(tmp_path, row)
    assert read_comparisons(file, 0, 0) == [expected]
    assert [query.prompt for query in read_queries(file, 0, 0)] == [expected.prompt]


TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "clock"}}],
}
PAIR = {"prompt": "Hello", "chosen": "Hi.", "rejected": "No."}


@pytest.mark.parametrize(
    ("read", "row", "told"),
    [
        (
            read_demonstrations,
            {"messages": [HELLO[0], TOOL_CALL]},
            'Line 1 of .* has "tool_calls", and tools are not',
        ),
        (
            read_demonstrations,
            {"messages": HELLO, "tools": [{"type": "function"}]},
            'has "tools", and tools are not',
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], {"role": "tool", "content": "noon"}, HELLO[1]]},
            "message 2 has the role 'tool', and tools are not supported; remove the turn",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], {"role": "assistant", "content": None}]},
            "message 2, the assistant's, has no content",
        ),
        (
            read_demonstrations,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
                    HELLO[1],
                ]
            },
            "message 1, the user's, has a part of type 'image_url', and only text is supported",
        ),
        (
            read_demonstrations,
            {"messages": HELLO, "images": ["a.png"]},
            'has "images", and only text is supported',
        ),
        (
            read_demonstrations,
            {"messages": [{**HELLO[0], "role": "wizard"}]},
            "has the role 'wizard'",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], {**HELLO[1], "weight": 0.5}]},
            "message 2 has the weight 0.5; write 1, or 0 for a turn",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], {**HELLO[1], "weight": 0}]},
            "there is no answer to train on",
        ),
        (
            read_demonstrations,
            {"messages": turns(assistant="Hi.")},
            "there is no message of a user before the answer",
        ),
        (
            read_comparisons,
            {"chosen": CHOSEN[1:], "rejected": REJECTED[1:]},
            "has an answer without a prompt",
        ),
        (
            read_comparisons,
            {"prompt": [*HELLO], "chosen": "Well?", "rejected": "No."},
            "the prompt ends with the assistant's turn; it must end with a user's",
        ),
        (
            read_demonstrations,
            {"prompt": "Hello", "answer": "Hi.", "weight": 2},
            'has "weight" 2, which is not supported',
        ),
        (
            read_demonstrations,
            {"prompt": "Hello", "completion": "No.", "label": False},
            "has a label, which rates",
        ),
        (
            read_demonstrations,
            {"instruction": "a", "output": "b", "history": ["c"]},
            '"history" is not a list of pairs',
        ),
        (
            read_comparisons,
            {"prompt": "Hello", "completion": "No.", "label": False},
            "has a label, as for KTO",
        ),
        (read_comparisons, PAIR | {"margin": 2.0}, 'has "margin" 2.0, which is not supported'),
        (
            read_comparisons,
            PAIR | {"score_chosen": 1, "score_rejected": 2},
            "so the rejected answer is the better one; exchange them",
        ),
        (
            read_comparisons,
            PAIR | {"score_chosen": 1},
            r"score_chosen and score_rejected is \[1, None\]; write a number",
        ),
        (
            read_comparisons,
            {"prompt": "Goodbye", "chosen": CHOSEN, "rejected": REJECTED},
            "the prompt is not the one that chosen answers",
        ),
        (
            read_comparisons,
            {"chosen": CHOSEN, "rejected": [*turns(user="Well?"), *REJECTED[1:]]},
            "chosen and rejected answer different prompts",
        ),
        (
            read_comparisons,
            {"prompt": "Hello", "response_a": "Hi.", "response_b": "No."},
            'the winner is None; write "a", "b" or "tie"',
        ),
        (
            read_comparisons,
            {"prompt": "Hello", "answers": ["a", "b"], "ranks": [0, 0.5]},
            "write a whole number for",
        ),
        (
            read_comparisons,
            {"prompt": "Hello", "answers": ["a", "b"], "ranks": [0, float("nan")]},
            "write a number for",
        ),
        (
            read_comparisons,
            {"prompt": "Hello", "answers": ["a", "b"], "ranks": [0, 1], "scores": [1, 2]},
            "scores and ranks order the answers differently",
        ),
        (
            read_comparisons,
            {"prompt": "Goodbye"} | TRANSCRIPTS,
            "the prompt is not the one that chosen answers",
        ),
        (
            read_demonstrations,
            {"prompt": "Goodbye", "completion": HELLO},
            "the prompt is not the one that the answer",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0] | {"images": ["a"]}, HELLO[1]]},
            'message 1 has "images", and',
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0] | {"Image": "a"}, HELLO[1]]},
            'message 1 has "image" .*only text',
        ),
        (
            read_queries,
            {"prompt": [HELLO[0] | {"images": ["a"]}]},
            'message 1 has "images", and only text',
        ),
        (
            read_queries,
            {"input": {"messages": HELLO[:1], "images": ["a"]}},
            'has "images", and only text',
        ),
        (
            read_demonstrations,
            {"input": {"messages": HELLO[:1], "Score": 1}, "output": "Hi."},
            'has "score" 1, which',
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], HELLO[1] | {"train": False}]},
            "there is no answer to train on",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], HELLO[1] | {"loss": 0.5}]},
            "message 2 has the loss 0.5",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], HELLO[1] | {"train_detail": [{}]}]},
            'has "train_detail", and',
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0] | {"train": True}, HELLO[1]]},
            "the user's turns are never",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0], HELLO[1] | {"score": 0.1}]},
            'has "score" 0.1, which rates',
        ),
        (
            read_demonstrations,
            {"prompt": "Hello", "answer": "Hi.", "sample_weight": 0.5},
            'has "sample_weight" 0.5',
        ),
        (
            read_demonstrations,
            {"prompt": "Hello", "answer": "Hi.", "Score": 2},
            'has "score" 2, which rates the answer',
        ),
        (
            read_demonstrations,
            {"prompt": "Hello", "answer": "Hi.", "reward": -1},
            'has "reward" -1, which rates',
        ),
        (
            read_comparisons,
            PAIR | {"chosen_reward": 1, "rejected_reward": 3},
            "the rejected answer is the better one",
        ),
        (
            read_comparisons,
            PAIR | {"preference": "rejected"},
            'write "chosen" or "tie", or remove the key',
        ),
        (read_comparisons, PAIR | {"scores": [1, 2]}, 'has "scores", which rates the answer'),
        (
            read_comparisons,
            PAIR | {"chosen": [HELLO[1] | {"weight": 0}]},
            "chosen is marked as not trained on",
        ),
        (
            read_demonstrations,
            {"prompt": "a", "Prompt": "b", "answer": "c"},
            'has "prompt" and "Prompt" with different',
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0] | {"from": "gpt"}, HELLO[1]]},
            "message 1 has two roles that",
        ),
        (
            read_demonstrations,
            {"messages": [HELLO[0] | {"value": "b"}, HELLO[1]]},
            "user's, has two contents that",
        ),
    ],
)
def test_unsupported_keys_are_rejected_by_name(tmp_path, read, row, told):
    with pytest.raises(UserError, match=told):
        read(write(tmp_path, row), 0, 0)


def test_the_summary_names_unused_keys_and_lines(tmp_path):
    good = {"messages": [{**HELLO[0], "name": "Ann"}, HELLO[1]], "id": 7, "category": "greeting"}
    file = write(tmp_path, good, {"prompt": "Hello"}, good, {"messages": []})
    said: list[str] = []
    read_demonstrations(file, 0, 0, said.append, strict=False)
    [line] = said
    assert line.startswith(
        f"2 examples in {file}. Keys not used: id, category, messages.name. 2 of 4 rows are "
        "left out"
    )
    assert "(2, 4). Line 2 of" in line


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_marked_turns_are_read_and_not_learned(tmp_path, mark):
    talk = [HELLO[0], {**HELLO[1], **mark}, *turns(user="Really?", assistant="Yes.")]
    [demonstration] = read_demonstrations(write(tmp_path, {"messages": talk}), 0, 0)
    tokenizer = ByteBPE.train(["Hello Hi. Really? Yes."] * 9, 300).with_chat(
        (START, END), "<|pad|>", CHAT_TEMPLATE
    )
    tokens = demonstration_tokens(tokenizer, demonstration)
    learned = tokenizer.decode(
        [i for i, trained in zip(tokens.ids, tokens.trained, strict=True) if trained]
    )
    assert learned.removesuffix(END) == "Yes."
    assert "Hi." in tokenizer.decode(tokens.ids)


@pytest.mark.parametrize(
    ("keys", "cells"),
    [
        ("weight,images,label", ",,"),
        ("weight,images,sample_weight", "1,[],1.0"),
        ("messages,history,tools", ",[],{}"),
        ("score,train", ",true"),
    ],
)
def test_blank_and_neutral_cells_change_nothing(tmp_path, keys, cells):
    (tmp_path / "a.csv").write_text(f"prompt,answer,{keys}\nHello,Hi.,{cells}\n")
    [demonstration] = read_demonstrations(str(tmp_path / "a.csv"), 0, 0)
    assert [(m.role, m.content) for m in demonstration.messages] == EXCHANGE


@pytest.mark.parametrize(
    ("keys", "cells", "expected"),
    [
        ("score_chosen,score_rejected", "7.0,5.0", PLAIN),
        ("score_chosen,score_rejected", "5,5.0", TIE),
        ("score_chosen,score_rejected", ",", PLAIN),
        ("margin,label,weight", ",,1", PLAIN),
    ],
)
def test_numbers_in_a_table_of_comparisons(tmp_path, keys, cells, expected):
    (tmp_path / "a.csv").write_text(f"prompt,chosen,rejected,{keys}\nHello,Hi.,No.,{cells}\n")
    assert read_comparisons(str(tmp_path / "a.csv"), 0, 0) == [expected]


def test_a_cell_that_contradicts_its_row_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text(
        "prompt,chosen,rejected,score_chosen,score_rejected\nHello,Hi.,No.,10,9\n"
    )
    assert read_comparisons(str(tmp_path / "a.csv"), 0, 0) == [PLAIN]
    (tmp_path / "a.csv").write_text(
        "prompt,chosen,rejected,score_chosen,score_rejected\nHello,Hi.,No.,9,10\n"
    )
    with pytest.raises(UserError, match="the rejected answer is the better one"):
        read_comparisons(str(tmp_path / "a.csv"), 0, 0)


def test_keys_about_the_answer_are_columns_of_a_prompt(tmp_path):
    file = write(tmp_path, {"prompt": "1+1?", "label": "2", "score": 3})
    assert read_queries(file, 0, 0, columns={"label", "score"})[0].columns == {
        "label": "2",
        "score": 3,
    }


def test_keys_inside_the_input_are_named(tmp_path):
    said: list[str] = []
    read_queries(
        write(tmp_path, {"input": {"messages": HELLO[:1], "parallel_tool_calls": True}}),
        0,
        0,
        said.append,
    )
    assert said[0].endswith("Keys not used: prompt.parallel_tool_calls.")


def test_columns_are_kept_for_a_reward_function(tmp_path):
    file = write(
        tmp_path,
        {"prompt": "1+1?", "solution": "2", "level": 1, "id": 5},
        {"prompt": "2+2?", "solution": "4"},
    )
    said: list[str] = []
    queries = read_queries(file, 0, 0, said.append, columns={"solution", "level"})
    assert [query.columns for query in queries] == [
        {"solution": "2", "level": 1},
        {"solution": "4"},
    ]
    assert said[0].endswith("Keys not used: id.")
    assert read_queries(file, 0, 0, columns=None)[0].columns == {
        "solution": "2",
        "level": 1,
        "id": 5,
    }
    assert read_queries(file, 0, 0)[0].columns == {}


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        (" word \n", "word"),
        ("  \n\n word", "word"),
        ("    code\n", "    code"),
        ("\n\tcode", "\tcode"),
        ("", ""),
        (" ", ""),
        ("\n \n", ""),
    ],
)
def test_tidied_text_keeps_the_indentation_of_code(text, tidied):
    assert tidy(text) == tidied


def test_the_indentation_of_an_answer_is_learned(tmp_path):
    code = "    def f():\n        return 1"
    [demonstration] = read_demonstrations(
        write(tmp_path, {"prompt": "Write f.", "answer": f"\n{code}\n"}), 0, 0
    )
    tokenizer = ByteBPE.train([code] * 9, 300).with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)
    tokens = demonstration_tokens(tokenizer, demonstration)
    learned = [i for i, trained in zip(tokens.ids, tokens.trained, strict=True) if trained]
    assert tokenizer.decode(learned[:-1]) == code
    assert answer_ids(tokenizer, demonstration.prompt, code)[1] == learned
