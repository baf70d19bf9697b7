"""Talking on the command line: a pipe of messages, the viewer of tokens, and the commands of
alignment."""

import json

import pytest
import torch
from command import fail, seq2chat

from seq2chat.config import GPTConfig
from seq2chat.models.folder import make_model, save_model
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import CHAT_TEMPLATE, END, START

PLAIN = ByteBPE.train(["user assistant system Hello there. How are you?\nFine, and you?"] * 3, 300)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that chats and one that does not, with fresh weights."""
    torch.manual_seed(0)
    made = {}
    for name, tokenizer in (
        ("chats", PLAIN.with_chat((START, END), "<|pad|>", CHAT_TEMPLATE)),
        ("base", PLAIN),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        config = GPTConfig(
            vocab_size=tokenizer.vocab_size, context=64, n_layer=1, n_head=2, d_model=32
        )
        save_model(
            make_model(config),
            made[name],
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.pad_id,
        )
        tokenizer.save(made[name])
    return made


def test_output_has_one_line_per_input_line(folders):
    options = ("--max-tokens", 5, "--temperature", 0)
    done = seq2chat(
        "chat", folders["chats"], *options, stdin="Hello?\n\nHow are you?\n/reset\nHello?\n"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert len(lines) == 5 and lines[1] == "" and lines[4] == ""
    assert lines[3] == lines[0]  # after /reset the first message is the first again
    assert "is cleared" in done.stderr


def test_ctrl_c_stops_only_the_answer(folders, monkeypatch, capsys):
    """The second one, where a message is typed, ends the chat."""
    from seq2chat.cli import chat as command
    from seq2chat.inference import chat as conversation

    typed = iter(["Hello?", "And you?"])
    talks = []
    read = []

    def type_line(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise KeyboardInterrupt from None

    stream = conversation.stream

    def interrupted(model, prompts, *arguments):
        read.append(prompts[0])
        for count, tokens in enumerate(stream(model, prompts, *arguments)):
            if len(read) == 1 and count == 3:
                raise KeyboardInterrupt
            yield tokens

    opened = conversation.Conversation.open
    monkeypatch.setattr(conversation, "stream", interrupted)
    monkeypatch.setattr(
        conversation.Conversation, "open", lambda *given: talks.append(opened(*given)) or talks[0]
    )
    monkeypatch.setattr(command, "is_typed", lambda: True)
    monkeypatch.setattr("builtins.input", type_line)
    with pytest.raises(KeyboardInterrupt):
        command.chat(folders["chats"], max_tokens=6, seed=1)
    roles = [message.role for message in talks[0].messages]
    assert roles == ["user", "assistant"] * 2 and len(read[1]) > len(read[0])
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_turn_is_kept_after_an_interrupt_only(folders, monkeypatch, error):
    from seq2chat.generation.sampling import SamplingConfig
    from seq2chat.inference import chat as conversation

    def broken(*arguments):
        raise error
        yield

    talk = conversation.Conversation.open(folders["chats"], "Be brief.")
    monkeypatch.setattr(conversation, "stream", broken)
    with pytest.raises(error):
        list(talk.answer("Hello?", SamplingConfig(4)))
    roles = [message.role for message in talk.messages]
    assert roles == ["system"] + ["user", "assistant"] * (error is KeyboardInterrupt)


def test_a_message_that_is_not_utf8_is_reported(folders):
    message = fail("chat", folders["chats"], "--max-tokens", 4, stdin=b"Hello?\n\xff\n")
    assert message.startswith("error: Line 2 of standard input is not UTF-8")


def test_instructions_and_long_conversations(folders):
    done = seq2chat(
        "chat",
        folders["chats"],
        "--max-tokens",
        4,
        "--seed",
        1,
        stdin="/system Be brief.\n" + "Hello?\n" * 8,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "A new conversation starts with these instructions" in done.stderr
        and "no longer fit the context" in done.stderr
    )
    assert done.stdout.count("\n") == 8
    long = seq2chat("chat", folders["chats"], stdin="Hello? " * 80 + "\n")
    assert long.returncode == 2 and "write a shorter one" in long.stderr


def test_a_model_without_chat_names_the_command(folders):
    done = seq2chat("chat", folders["base"], stdin="Hello?\n")
    assert (
        done.returncode == 2
        and "has not learned to chat; fine-tune it first: seq2chat sft" in done.stderr
    )


def test_the_viewer_shows_role_and_training(folders):
    done = seq2chat(
        "chat-tokens",
        folders["base"],
        "Hello <|im_end|>",
        "Fine.",
        "--system",
        "Be brief.",
        "--json",
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(row["text"] for row in rows if row["trained"]) == "Fine.<|im_end|>"
    assert {row["role"] for row in rows} == {"system", "user", "assistant"}
    control = PLAIN.control["<|im_end|>"]
    assert sum(row["id"] == control for row in rows) == 3  # what the user wrote is not one
    shown = seq2chat("chat-tokens", folders["base"], "Hello", "--reply")
    assert "trained on" in shown.stdout and "assist" in shown.stdout.replace("·", "")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("sft",), "No model to align: name a run or a model folder with --start"),
        (("sft", "--start", "nowhere"), "There is no run or model folder nowhere"),
        (("sft", "nonsense"), "There is no recipe nonsense"),
        (("ppo", "--align.method", "sft"), "contradicts it"),
        (("ppo", "--resume"), "No run to resume"),
        (("dpo", "--align.group", "4"), "align.group is for grpo"),
        (("doctor", "nowhere"), "nowhere is not a run folder"),
        (("chat-tokens", "nowhere"), "There is no run or model folder nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, told):
    done = seq2chat(*arguments)
    assert (
        done.returncode == 2
        and told in " ".join(done.stderr.split())
        and "Traceback" not in done.stderr
    )


def test_ppo_needs_a_judge(folders):
    done = seq2chat("ppo", "--start", folders["base"])
    assert (
        done.returncode == 2
        and "name a reward model's run, FILE.py:FUNCTION or oracle" in " ".join(done.stderr.split())
    )


@pytest.mark.parametrize(("limit", "taken"), [((), 0), (("--align.examples", 40), 40)])
def test_a_file_is_read_in_full_by_default(limit, taken, folders, tmp_path):
    """The recipe's own number is that of its own data."""
    rows = (
        {"prompt": f"How are you, {n}?", "chosen": "Fine.", "rejected": "Hello."}
        for n in range(3100)
    )
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        "--data",
        tmp_path / "pairs.jsonl",
        "--budget",
        "1 step",
        "--train.evals",
        1,
        "--out",
        tmp_path / "run",
    ]
    done = seq2chat("reward", "--start", folders["base"], *arguments, *limit)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stderr.split())
    assert "3,100 examples in" in told and ("40 of them are used" in told) == bool(taken)
