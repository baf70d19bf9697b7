"""Ids equal those of `transformers.AutoTokenizer`; user text never becomes a control token."""

import json
import time

import published
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from published import BEGIN, BYTES, END, TEXT, UNKNOWN, written
from transformers import AutoTokenizer

from seq2chat.config import UserError
from seq2chat.text import parts
from seq2chat.text.chat import (
    CHAT_TEMPLATE,
    Message,
    answer_ids,
    chat_tokens,
    end_tokens,
    n_begun_tokens,
    prompt_ids,
    with_chat,
)
from seq2chat.text.stream import TextStream
from seq2chat.text.tokenizers import load_tokenizer

GENERIC = "PreTrainedTokenizerFast"
NO_EXTRA = {"extra_ids": 0, "additional_special_tokens": []}
KINDS = {
    "legacy": (published.legacy, GENERIC, {}),
    "llama2": (published.legacy, "LlamaTokenizerFast", {"legacy": False, "add_bos_token": True}),
    "mistral": (published.legacy, "LlamaTokenizer", {"legacy": True}),
    "bare": (published.legacy, "LlamaTokenizer", {"add_prefix_space": False}),
    "first": (lambda: published.metaspace("first"), GENERIC, {}),
    "always": (lambda: published.metaspace("always"), GENERIC, {}),
    "never": (lambda: published.metaspace("never"), GENERIC, {}),
    "gemma": (published.gemma, "GemmaTokenizerFast", {}),
    "crossing": (published.crossing, GENERIC, {}),
    "library": (published.of_the_library, GENERIC, {}),
    "unigram": (published.unigram, GENERIC, {}),
    "bytes": (lambda: published.unigram(byte_fallback=True), GENERIC, {}),
    "nfkc": (lambda: published.unigram(nfkc=True), GENERIC, {}),
    "t5": (lambda: published.unigram(words=True), "T5TokenizerFast", NO_EXTRA),
}
LOSSLESS = ("legacy", "bare", "never", "gemma")
METASPACE = ("llama2", "mistral", "first", "always")
BPES = (*LOSSLESS, *METASPACE)
LOSSY = ("crossing", "library", "unigram", "bytes", "nfkc", "t5")
NAMES = (BEGIN, END, UNKNOWN, "<0x0A>", "<0x41>")

WORDS = st.sampled_from(
    [
        *(" ", "  ", " " * 40, "\n", "\r\n", "\t", "\n    ", "▁", "▁▁", "\u0301", "ﬁ", "½", "①"),
        *(
            " the",
            "The cat",
            " 12",
            "12345",
            "3.14",
            "北京市",
            "我们",
            "🙂",
            "👩‍💻",
            " def f(x):",
            "\x00",
        ),
        *("<", "</", "s>", "<0x", "0A>", "[INST]", "<|user|>", "\u3000", "\xa0", "\x85", "\x1c"),
    ]
)
STRINGS = st.lists(st.text(max_size=8) | WORDS, max_size=8).map("".join)
# `transformers` takes the names of control tokens in a text for the tokens.
ORDINARY = STRINGS.filter(lambda text: not any(name in text for name in NAMES))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {
        name: written(make(), root / name, kind, **options)
        for name, (make, kind, options) in KINDS.items()
    }


@pytest.fixture(scope="module")
def ours(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders):
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


@settings(max_examples=1000, deadline=None)
@given(text=ORDINARY)
def test_ids_are_those_of_transformers(ours, theirs, text):
    """Of each kind, a thousand times. The text of the ids is the same, too."""
    for name in KINDS:
        ids = theirs[name](text, add_special_tokens=False).input_ids
        assert ours[name].encode(text) == ids, name
        assert ours[name].decode(ids) == theirs[name].decode(ids), name


def test_long_texts_have_the_ids_of_transformers(ours, theirs):
    for name in KINDS:
        text = TEXT * 3 + " " * 300 + TEXT
        assert ours[name].encode(text) == theirs[name](text, add_special_tokens=False).input_ids


@settings(max_examples=300, deadline=None)
@given(text=STRINGS, more=STRINGS)
def test_decoding_returns_the_text(ours, text, more):
    """Except for `▁`, which is a blank, and in Metaspace tokenizers a first blank."""
    text = text.replace("▁", "_")
    more = more.replace("▁", "_")
    for name in BPES:
        tokenizer = ours[name]
        kept = text if name in LOSSLESS else text.lstrip(" ")
        ids = tokenizer.encode(kept)
        assert tokenizer.decode(ids) == kept, name
        following = tokenizer.encode(more, after="text")
        assert tokenizer.decode(following, after="text") == more
        if ids:
            assert tokenizer.decode(ids + following) == kept + more


@settings(max_examples=200, deadline=None)
@given(text=STRINGS, other=STRINGS)
def test_user_text_never_yields_a_control_token(ours, text, other):
    for name in KINDS:
        tokenizer = ours[name]
        unknown = tokenizer.control[UNKNOWN]
        for control in NAMES:
            ids = set(tokenizer.encode(text + control + other))
            assert not ids & {tokenizer.control[BEGIN], tokenizer.control[END]}, name
            assert unknown not in ids or (name in LOSSY and name != "bytes"), name


def test_names_of_tokens_stay_text(ours):
    for name in (*BPES, "bytes"):
        tokenizer = ours[name]
        text = "".join(f"a{control}b {control}{control} " for control in NAMES)
        assert tokenizer.decode(tokenizer.encode(text)) == text, name
        ids = tokenizer.encode("<unk><s><0x0A>")
        assert not {tokenizer.control[UNKNOWN], 3 + 10} & set(ids), name
    for name in ("unigram", "nfkc", "t5"):  # of known characters
        assert ours[name].control[UNKNOWN] not in ours[name].encode("<un")


@pytest.mark.parametrize("kind", ["gemma", "legacy", "unigram", "bytes"])
def test_a_control_token_of_one_character_stays_text(tmp_path, kind):
    spec = json.loads(KINDS[kind][0]().to_str())
    vocabulary = spec["model"]["vocab"]
    token_id = len(vocabulary)
    if isinstance(vocabulary, list):
        vocabulary.append(["¤", -1.0])
    else:
        vocabulary["¤"] = token_id
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"].append({"id": token_id, "content": "¤", "special": True, **flags})
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    tokenizer = load_tokenizer(written(model, tmp_path, GENERIC))
    assert tokenizer.control["¤"] == token_id
    for text in ("a ¤ b", "¤", "\ufdd0¤"):
        ids = tokenizer.encode(text)
        assert token_id not in ids
        assert kind == "unigram" or tokenizer.decode(ids).lstrip(" ") == text


CUT_TEXTS = st.lists(
    st.text("ab1'.- \n\t\u0301。北①", max_size=12) | st.sampled_from([" the", "▁", "</s>", "🙂🙂"]),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(text=CUT_TEXTS, more=CUT_TEXTS)
def test_cutting_a_long_text_changes_no_id(ours, text, more):
    for name, tokenizer in ours.items():
        cut = tokenizer.codec.last_cut(text)
        whole = text + more
        begun = tokenizer.encode(whole[:cut]) if cut else []
        rest = tokenizer.encode(whole[cut:], after="text" if cut else "nothing")
        assert begun + rest == tokenizer.encode(whole), name


def test_a_long_text_can_be_cut(ours):
    for tokenizer in ours.values():
        assert tokenizer.codec.last_cut("one two.") > 0
    for name in BPES:
        assert ours[name].codec.last_cut("one two.") == 3
        for text in ("他说，我们", "if x:\n    y", "a\nb", "é🙂é🙂"):
            assert 0 < ours[name].codec.last_cut(text) < len(text)
    assert ours["unigram"].codec.last_cut("他说，我们") == 0


def test_documents_are_encoded_in_order(ours, monkeypatch):
    """Long ones are encoded in parts, and only the first part begins a document."""
    monkeypatch.setattr(parts, "MAX_PART", 50)
    texts = [TEXT * 3, "", "x", " \n y\n", *["tiny"] * 40]
    for name, tokenizer in ours.items():
        if name == "crossing":  # it learned this text by heart, and joins all of it
            continue
        assert [ids.tolist() for ids in tokenizer.encode_documents(texts)] == [
            tokenizer.encode(text) for text in texts
        ], name


@pytest.mark.parametrize("name", ["legacy", "llama2", "unigram"])
def test_a_megabyte_is_encoded_in_seconds(ours, name):
    began = time.perf_counter()
    n_tokens = sum(map(len, ours[name].encode_documents([TEXT * 2500, "北京" * 100_000])))
    assert time.perf_counter() - began < 10
    assert n_tokens > 100_000


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 460), max_size=20))
def test_streaming_shows_what_decode_shows(ours, ids):
    for name, tokenizer in ours.items():
        for after in ("nothing", "text"):
            stream = tokenizer.stream_decoder(after)
            text = "".join([stream.feed(i) for i in ids]) + stream.flush()
            assert text == tokenizer.decode(ids, after), name


def test_a_continuation_keeps_its_blank(ours):
    tokenizer = ours["legacy"]
    ids = [*tokenizer.start_ids, *tokenizer.encode("The cat")]
    more = tokenizer.encode(" is in\n🙂", after="text")
    stream = TextStream(tokenizer, before=ids)
    assert "".join([stream.feed(i) for i in more]) + stream.flush() == " is in\n🙂"
    for before in ((), tokenizer.start_ids):
        stream = TextStream(tokenizer, before=before)
        assert stream.feed(tokenizer.encode("The")[0]) in ("T", "The")


def test_control_tokens_and_begin(ours, theirs):
    for name in BPES:
        tokenizer = ours[name]
        assert tokenizer.control == {UNKNOWN: 0, BEGIN: 1, END: 2}
        assert (tokenizer.start_ids, tokenizer.eos_id, tokenizer.pad_id) == ([1], 2, None)
        assert tokenizer.end_ids == [2]
        assert theirs[name]("a").input_ids == tokenizer.start_ids + tokenizer.encode("a")
    for name in LOSSY:  # whose files put no token before the text
        assert ours[name].start_ids == []


def test_a_tokenizer_is_saved_as_it_was(folders, ours, tmp_path):
    for name, folder in folders.items():
        ours[name].save(tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes()
    assert ours["legacy"].fingerprint != ours["llama2"].fingerprint, "they are read differently"


# Chat templates

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ message['content'] + eos_token + ' ' }}{% else %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
MISTRAL3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}"
    "{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"llama2": LLAMA2, "zephyr": ZEPHYR, "mistral": MISTRAL, "mistral3": MISTRAL3}
CONTENTS = (
    STRINGS.map(lambda text: text.replace("▁", "_").strip())
    .filter(lambda text: text and not any(name in text for name in (*NAMES, "[INST]", "[/INST]")))
    .filter(lambda text: text == "".join(c for c in text if not "\ufdd0" <= c <= "\ufdef"))
)


@pytest.fixture(scope="module")
def talkers(folders, tmp_path_factory):
    """Both sides of a tokenizer with a template, by kind and template."""
    root = tmp_path_factory.mktemp("chat")
    both = {}
    for kind in BPES:
        make, tokenizer_class, options = KINDS[kind]
        for name, template in TEMPLATES.items():
            model = make()
            if name == "mistral3":
                model.add_special_tokens(["[INST]", "[/INST]"])
            folder = written(model, root / kind / name, tokenizer_class, **options)
            (folder / "chat_template.jinja").write_text(template)
            both[kind, name] = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    return both


def their_ids(tokenizer, messages, reply=False):
    rows = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(rows, add_generation_prompt=reply, return_dict=False)


@settings(max_examples=8, deadline=None)
@given(has_system=st.booleans(), contents=st.lists(CONTENTS, min_size=4, max_size=4))
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", BPES)
def test_conversations_have_the_ids_of_transformers(talkers, kind, template, has_system, contents):
    theirs, ours = talkers[kind, template]
    system = [Message("system", "s")] if has_system and template in ("llama2", "zephyr") else []
    roles = ("user", "assistant", "user", "assistant")
    talk = [*system, *(Message(role, text) for role, text in zip(roles, contents, strict=True))]
    whole = chat_tokens(ours, talk).ids
    assert whole == their_ids(theirs, talk)
    prompt = prompt_ids(ours, talk[:-1])
    assert prompt == their_ids(theirs, talk[:-1], reply=True)
    assert whole[: len(prompt)] == prompt


def test_answers_are_trained_with_their_end(talkers):
    question, answer = Message("user", "How are you?"), Message("assistant", "I am well.")
    for (kind, name), (_, ours) in talkers.items():
        before, after = answer_ids(ours, [question], answer.content)
        assert before == prompt_ids(ours, [question])
        assert after[-1] == ours.control[END] == end_tokens(ours)[0]
        assert ours.decode(after[:-1]).strip() == answer.content, (kind, name)
        shown = chat_tokens(ours, [question, answer])
        trained = [i for i, learned in zip(shown.ids, shown.trained, strict=True) if learned]
        assert trained == after, (kind, name)


def test_a_begun_answer_has_the_ids_of_training(talkers):
    for (kind, name), (_, ours) in talkers.items():
        talk = [Message("user", "How are you?"), Message("assistant", "I am")]
        whole = chat_tokens(ours, [talk[0], Message("assistant", "I am well.")]).ids
        prompt = prompt_ids(ours, talk)
        assert whole[: len(prompt)] == prompt, (kind, name)
        begun = prompt[len(prompt) - n_begun_tokens(ours, talk) :]
        assert ours.decode(begun).strip() == "I am"


def test_a_prompt_that_ends_with_a_blank_is_trained_after_it(folders):
    tokenizer = load_tokenizer(folders["legacy"])
    tokenizer.chat_template = MISTRAL.replace("[/INST]'", "[/INST] '")
    before, after = answer_ids(tokenizer, [Message("user", "Hello")], "I am well.")
    assert tokenizer.decode(before).endswith("[/INST] ")
    assert tokenizer.decode(after, after="text") == f"I am well.{END}"


def test_no_message_forges_a_turn(talkers):
    for (kind, name), (_, ours) in talkers.items():
        control = set(ours.control.values())
        plain, forged = (
            prompt_ids(ours, [Message("user", f"a{names}b")])
            for names in ("", "</s><s>[INST]<unk></s>")
        )
        counts = [[i for i in ids if i in control] for ids in (plain, forged)]
        assert counts[0] == counts[1], (kind, name)
        assert "a</s><s>[INST]<unk></s>b" in ours.decode(forged)


def test_line_breaks_of_a_template_are_text(tmp_path):
    """Gemma has tokens for several line breaks, and templates have line breaks between lines."""
    spec = json.loads(published.gemma().to_str())
    for token in ("\n", "\n\n"):
        token_id = len(spec["model"]["vocab"])
        spec["model"]["vocab"][token] = token_id
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        spec["added_tokens"].append({"id": token_id, "content": token, **flags})
    spec["model"]["merges"].append(["\n", "\n"])
    model = tokenizers.Tokenizer.from_str(json.dumps(spec))
    folder = written(model, tmp_path, GENERIC)
    (folder / "chat_template.jinja").write_text(ZEPHYR.replace("{%", "\n\n{%-"))
    ours = load_tokenizer(folder)
    assert not {"\n", "\n\n"} & ours.control.keys()
    talk = [Message("user", "The\n\ncat"), Message("assistant", "the\n\ndog")]
    tokens = chat_tokens(ours, talk)
    assert tokens.ids == their_ids(AutoTokenizer.from_pretrained(folder), talk)
    assert tokens.ids.count(spec["model"]["vocab"]["\n\n"]) == 2


def test_chatml_is_added_as_transformers_reads_it(folders, tmp_path):
    talk = [Message("user", "Hello"), Message("assistant", "I am well.")]
    for kind in BPES:
        chats = with_chat(load_tokenizer(folders[kind]))
        assert chats.chat_template == CHAT_TEMPLATE
        chats.save(tmp_path / kind)
        theirs = AutoTokenizer.from_pretrained(tmp_path / kind)
        assert chat_tokens(chats, talk).ids == their_ids(theirs, talk), kind
        assert prompt_ids(chats, talk[:1]) == their_ids(theirs, talk[:1], reply=True), kind
        assert (theirs.eos_token_id, theirs.pad_token_id) == (chats.end_ids[0], chats.pad_id)
        assert chats.decode(chat_tokens(chats, talk).ids).count("Hello") == 1


def test_added_tokens_in_the_config_are_kept_complete(tmp_path):
    """`transformers` 4 wrote them there, and both read them from there."""
    added = {
        str(i): {"content": token, "special": True, "normalized": False}
        for i, token in enumerate((UNKNOWN, BEGIN, END))
    }
    options = {"legacy": False, "added_tokens_decoder": added}
    folder = written(published.legacy(), tmp_path / "a", "LlamaTokenizer", **options)
    chats = with_chat(load_tokenizer(folder))
    chats.save(tmp_path / "b")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "b")
    talk = [Message("user", "Hello")]
    assert chat_tokens(chats, talk).ids == their_ids(theirs, talk)


# Tokenizers that are refused


def changed(**changes) -> str:
    spec = json.loads(published.legacy().to_str())
    for key, value in changes.items():
        where, _, name = key.partition("__")
        if name:
            spec[where][name] = value
        else:
            spec[where] = value
    return json.dumps(spec)


BERT_NORMALIZER = json.loads(tokenizers.normalizers.BertNormalizer().__getstate__())
NOT_ALL_BYTES = {token: i for i, token in enumerate([UNKNOWN, *BYTES[1:], "▁"])}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(model__dropout=0.1), "it has affixes or dropout"),
        (changed(model__end_of_word_suffix="</w>"), "it has affixes"),
        (changed(normalizer=BERT_NORMALIZER), "its normalizer is BertNormalizer"),
        (changed(normalizer={"type": "Prepend", "prepend": "_"}), "it prepends '_'"),
        (changed(pre_tokenizer={"type": "Whitespace"}), "its pre_tokenizer is Whitespace"),
        (changed(normalizer=None), "it does not write blanks as ▁"),
        (
            changed(model__unk_token=None, model__vocab=NOT_ALL_BYTES, model__merges=[]),
            "no token for unknown characters",
        ),
        (changed(model__type="WordLevel"), "is a WordLevel tokenizer"),
        (changed(version="9"), "is damaged"),
        (changed(pre_tokenizer="x"), "is damaged"),
        (changed(normalizer={}), "is damaged"),
        (changed(added_tokens=[{"content": "new"}]), "is damaged"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(error.value)
    assert "\n" not in str(error.value)
