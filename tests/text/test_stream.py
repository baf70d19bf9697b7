"""Text as it arrives: nothing of a stop string, nothing of a character that is not whole."""

from hypothesis import given
from hypothesis import strategies as st

from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.stream import TextStream

BYTES = ByteBPE.train(["ab"], 260)


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(BYTES, stop)
    shown = []
    for token in BYTES.encode(text):
        shown.append(stream.feed(token))
        if stream.stopped:
            break
    return [*shown, stream.flush()], stream


def test_characters_appear_when_they_are_whole():
    assert pieces("aß日")[0] == ["a", "", "ß", "", "", "日", ""]


def test_a_completion_may_start_within_a_character():
    ids = BYTES.encode("a日b")
    for cut in (2, 3):
        stream = TextStream(BYTES, before=ids[:cut])
        assert "".join(map(stream.feed, ids[cut:])) + stream.flush() == "日b"


def test_a_possible_stop_string_is_held_back():
    assert pieces("a<en<end", ("<end>",))[0] == ["a", "", "", "", "<en", "", "", "", "<end"]


@given(
    st.text("ab\nß", max_size=40),
    st.lists(st.text("ab\nß", min_size=1, max_size=3), max_size=3).map(tuple),
)
def test_text_ends_before_the_first_stop_string(text, stop):
    shown, stream = pieces(text, stop)
    ends = [i for s in stop if (i := text.find(s)) >= 0]
    if not ends:
        assert ("".join(shown), stream.text, stream.stopped) == (text, text, False)
    else:
        assert stream.stopped
        assert "".join(shown) == stream.text
        # The first stop string to be complete ends the text.
        first_complete = min(text.find(s) + len(s) for s in stop if s in text)
        expected = min(text.find(s) for s in stop if s in text[:first_complete])
        assert stream.text == text[:expected]
