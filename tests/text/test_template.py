"""Templates of other models: the ids of `transformers`, and no message that forges a role."""

import json
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seq2chat.config import UserError
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.chat import Message, answer_ids, chat_tokens, end_tokens, prompt_ids, with_chat
from seq2chat.text.conversations import Demonstration, demonstration_tokens
from seq2chat.text.template import ChatTemplate
from seq2chat.text.text_tokenizer import TextTokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)
QWEN3 = """\
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m.content }}<|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
TEMPLATES = {"smollm2": SMOLLM2, "llama3": LLAMA3, "qwen3": QWEN3, "generation": GENERATION}
CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|spare|>",
)
MARKS = ("<think>", "</think>")
CONTENTS = st.text(max_size=12).map(str.strip).filter(bool)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    text = [SMOLLM2 + LLAMA3 + "Hello, how are you? I am well. The system, the user, assistant."]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(text * 3, trainer)
    model.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    model.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKS])
    folder = tmp_path_factory.mktemp("tokenizer")
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="<|im_end|>", bos_token="<|begin_of_text|>"
    )
    theirs.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    """Return the function from a template to their tokenizer with it, and ours."""

    def both(template):
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        theirs.chat_template = template
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = template
        return theirs, TextTokenizer(
            ByteBPE, (folder / "tokenizer.json").read_text(), json.dumps(config)
        )

    return both


def their_ids(theirs, rows, reply):
    return theirs.apply_chat_template(rows, add_generation_prompt=reply, return_dict=False)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_ids_are_those_of_transformers(template, pair):
    theirs, ours = pair(template)

    @settings(max_examples=100, deadline=None)
    @given(system=st.booleans(), contents=st.lists(CONTENTS, min_size=1, max_size=5))
    def check(system, contents):
        roles = (["system"] if system else []) + ["user", "assistant"] * 3
        messages = [Message(role, text) for role, text in zip(roles, contents, strict=False)]
        rows = [{"role": m.role, "content": m.content} for m in messages]
        tokens = chat_tokens(ours, messages)
        assert tokens.ids == their_ids(theirs, rows, reply=False)
        if messages[-1].role == "user":
            assert prompt_ids(ours, messages) == their_ids(theirs, rows, reply=True)

    check()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_no_message_forges_a_role(template, pair):
    """Although it does in `transformers`."""
    theirs, ours = pair(template)
    for name in (*CONTROL, *MARKS):
        plain = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
        forged = [Message("user", f"a{name}"), Message("assistant", "b"), Message("user", "c")]
        control = set(ours.control.values())
        counts = [
            [t for t in prompt_ids(ours, messages) if t in control] for messages in (plain, forged)
        ]
        assert counts[0] == counts[1]
        rows = [{"role": m.role, "content": m.content} for m in forged]
        assert ours.control[name] in their_ids(theirs, rows, reply=True)
        assert name in ours.decode(prompt_ids(ours, forged))


def trained_text(tokenizer, messages) -> list[str]:
    tokens = chat_tokens(tokenizer, messages)
    text = ""
    for token, is_trained in zip(tokens.ids, tokens.trained, strict=True):
        text += tokenizer.decode([token]) if is_trained else "\0"
    return [part for part in text.split("\0") if part]


def test_answers_are_trained_with_their_end_token(pair):
    talk = [
        Message("system", "s"),
        Message("user", "b"),
        Message("assistant", "b"),
        Message("user", "b"),
        Message("assistant", "The end."),
    ]
    expected = {
        "smollm2": ["b<|im_end|>", "The end.<|im_end|>"],
        "llama3": ["b<|eot_id|>", "The end.<|eot_id|>"],
        "generation": ["b<|im_end|>", "The end.<|im_end|>"],
    }
    for name, texts in expected.items():
        _, ours = pair(TEMPLATES[name])
        assert trained_text(ours, talk) == texts
        before, answer = answer_ids(ours, talk[:-1], "The end.")
        assert before == prompt_ids(ours, talk[:-1])
        assert ours.decode(answer) == texts[-1]
        assert end_tokens(ours)[0] == answer[-1]
    tokens = chat_tokens(pair(SMOLLM2)[1], talk)
    roles = dict.fromkeys(tokens.roles)
    assert list(roles) == ["system", "user", "assistant"]
    by_turn = "".join(role[0] for role in tokens.roles)
    assert by_turn.index("u") < by_turn.index("a") < by_turn.rindex("u") < by_turn.rindex("a")


def test_reasoning_is_part_of_the_last_answer_only(pair):
    """Qwen3's template writes earlier answers without reasoning, and drops what a user quotes of
    it only if it says so."""
    _, ours = pair(QWEN3)
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    texts = trained_text(ours, [*talk, Message("assistant", "d")])
    assert texts == ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]
    shown = ours.decode(chat_tokens(ours, [Message("user", "a</think>b")]).ids)
    assert shown == "<|im_start|>user\na</think>b<|im_end|>\n"


def test_a_begun_answer_is_continued(pair):
    _, ours = pair(SMOLLM2)
    ids = prompt_ids(ours, [Message("user", "a"), Message("assistant", "b")])
    assert ours.decode(ids).endswith("<|im_start|>assistant\nb")


@pytest.mark.parametrize("begun", ["b", "  b", "    x = 1"])
def test_a_begun_answer_has_the_ids_of_training(begun, pair):
    _, ours = pair(SMOLLM2)
    question = Message("user", "a")
    prompt = prompt_ids(ours, [question, Message("assistant", begun)])
    whole = chat_tokens(ours, [question, Message("assistant", begun)]).ids
    assert whole[: len(prompt)] == prompt


THINKING = SMOLLM2.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}")


def test_answers_without_the_text_that_asked_for_them(pair):
    """DeepSeek's prompt ends in a mark of reasoning, which the written answer lacks."""
    _, ours = pair(THINKING)
    talk = [Message("user", "a"), Message("assistant", "b")]
    assert trained_text(ours, talk) == ["b<|im_end|>"]
    assert end_tokens(ours)[0] == ours.control["<|im_end|>"]
    with pytest.raises(UserError, match="in another way when its answer follows"):
        answer_ids(ours, talk[:1], "b")


def test_a_rewritten_answer_is_refused(pair):
    cut = SMOLLM2.replace("message['content']", "message['content'].split('//')[-1]")
    _, ours = pair(cut)
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    with pytest.raises(UserError, match="leaves out an answer"):
        answer_ids(ours, talk, "x//y")
    assert chat_tokens(ours, [Message("user", "x//y")]).ids, "prompts are written as they are"


def test_turns_that_are_not_learned_are_the_named_ones(pair):
    messages = tuple(
        Message(role, text)
        for role, text in [("user", "a"), ("assistant", "Bee"), ("user", "c"), ("assistant", "Sea")]
    )
    for template in (SMOLLM2, LLAMA3, QWEN3):
        _, ours = pair(template)
        for unlearned, kept in ((1, "Sea"), (3, "Bee")):
            tokens = demonstration_tokens(ours, Demonstration(messages, frozenset({unlearned})))
            text = ours.decode(
                i for i, is_trained in zip(tokens.ids, tokens.trained, strict=True) if is_trained
            )
            assert kept in text and ("Sea" if kept == "Bee" else "Bee") not in text


def test_roles_do_not_depend_on_what_is_said(pair):
    _, ours = pair(SMOLLM2)
    for first in ("a", "user", "You are", ""):
        talk = [Message("user", first), Message("assistant", "a"), Message("user", "assistant")]
        tokens = chat_tokens(ours, talk)
        by_role = {
            role: ours.decode(i for i, r in zip(tokens.ids, tokens.roles, strict=True) if r == role)
            for role in ("system", "user", "assistant")
        }
        assert by_role["system"].endswith("Hugging Face<|im_end|>\n")
        assert by_role["user"].startswith(f"<|im_start|>user\n{first}<|im_end|>")
        assert by_role["assistant"] == "<|im_start|>assistant\na<|im_end|>\n"


def test_long_conversations_take_linear_time(pair):
    _, ours = pair(SMOLLM2)
    talk = [Message(("user", "assistant")[i % 2], f"message {i}") for i in range(999)]
    began = time.monotonic()
    tokens = chat_tokens(ours, talk)
    assert time.monotonic() - began < 2
    assert sum(tokens.trained) > 499


def test_default_instructions_are_found(pair):
    template = pair(SMOLLM2)[1].template
    wanted = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert template.default_system == wanted
    assert pair(LLAMA3)[1].template.default_system == ""


def test_padding_takes_a_token_without_use(pair):
    _, ours = pair(SMOLLM2)
    assert ours.pad_id is None
    padded = with_chat(ours)
    assert padded.vocab_size == ours.vocab_size
    assert padded.pad_id not in (None, *end_tokens(ours), *ours.start_ids)
    assert with_chat(padded).pad_id == padded.pad_id
    assert padded.chat_template == SMOLLM2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "has an error"),
        ("{{ raise_exception('Only users may speak.') }}", "refuses this: Only users may speak"),
        ("{{ messages.nothing.at_all }}", "refuses this"),
        ("{{ ''.__class__.__mro__ }}", "refuses this: access to attribute"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "ran for more than 2 seconds",
        ),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "more than 10,000,000"),
        ("{{ 'x' * 10 ** 9 }}", "too large"),
        ("{{ 10 ** 10 ** 10 }}", "too large"),
        ("{{ '%999999999d' % 1 }}", "too large"),
        ("{{ 'x'.ljust(10 ** 8) }}", "too large"),
        ("{{ 'x' | center(10 ** 8) }}", "too large"),
        ("{% set a = 'a' * 99999 %}{{ a.replace('a', a) }}", "too large"),
        ("{% set a = 'a' * 99999 %}{{ a | replace('a', a) }}", "too large"),
        ("{% set a = 'a' * 99999 %}{{ a.join(range(9999) | list) }}", "too large"),
        ("{{ range(99999) | list | join('a' * 9999) }}", "too large"),
        ("{{ '{:999999999}'.format(1) }}", "too large"),
        ("{{ '%999999999d' | format(1) }}", "too large"),
        ("{{ ('\\t' * 99999).expandtabs(99999) }}", "unsafe"),
        (
            "{% set ns = namespace(x='x' * 99) %}{% for i in range(99) %}{% set y = ns.x ~ ns.x %}"
            "{% set ns.x = y %}{% endfor %}",
            "too long",
        ),
        ("{{ tools is none and documents is none and 1 // 0 }}", "refuses this: integer division"),
    ],
)
def test_hostile_templates_are_refused(source, message):
    began = time.monotonic()
    with pytest.raises(UserError, match=message) as error:
        ChatTemplate(source, ["<s>"], {}).render([{"role": "user", "content": "a"}])
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 5


def test_functions_of_transformers():
    source = "{{ messages[0] | tojson }}{{ strftime_now('%Y') }}{% break %}"
    with pytest.raises(UserError):
        ChatTemplate(source, [], {})
    source = (
        "{% for m in messages %}{{ m | tojson }}{{ strftime_now('%Y') }}{% break %}{% endfor %}"
    )
    text = ChatTemplate(source, [], {}).render([{"role": "user", "content": "é<b>"}] * 2).text
    assert text == '{"role": "user", "content": "é<b>"}' + time.strftime("%Y")
