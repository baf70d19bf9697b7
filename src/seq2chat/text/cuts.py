"""Positions where a text can be cut without changing its tokens, whatever follows the text."""

import re
from itertools import pairwise
from unicodedata import combining

MAX_WORD = 256  # characters of an unbroken run that merges are learned from together
LINE = re.compile(r"(?<=[\r\n])(?=[^\S\r\n]*\S)")
LONG_WORD = re.compile(rf"\S{{{MAX_WORD}}}(?=\S)")


def last_line_start(text: str) -> int:
    """Return the last position after line breaks that are followed by white space and a visible
    character, or 0.

    `byte_bpe.PATTERN` always ends a piece there.
    """
    visible = text.rstrip()
    return max(visible.rfind("\n"), visible.rfind("\r")) + 1


def last_single_break(text: str) -> int:
    """Return the last position after a single line break between visible characters, or 0."""
    at = len(text) - 1
    while (at := text.rfind("\n", 0, at)) > 0:
        if not (text[at - 1].isspace() or text[at + 1].isspace()):
            return at + 1
    return 0


def last_blank(text: str) -> int:
    """Return the last position of a single blank between letters or digits, or 0."""
    at = len(text) - 1
    while (at := text.rfind(" ", 0, at)) > 0:
        if text[at - 1].isalnum() and text[at + 1].isalnum():
            return at
    return 0


def last_word_start(text: str) -> int:
    """Return the last position of a blank or mark between two letters, where a piece begins, or
    0."""
    for at in range(len(text) - 2, 0, -1):
        if _is_mark(text[at]) and text[at - 1].isalpha() and text[at + 1].isalpha():
            return at
    return 0


def _is_mark(character: str) -> bool:
    if character == " ":
        return True
    # A combining mark belongs to the letter before it, and normalizers join the two.
    return not (character.isspace() or character.isalnum() or combining(character))


def short_pieces(text: str) -> list[str]:
    """Return the lines of a text, with long unbroken runs cut into words of bounded length.

    The BPE trainer works on whole lines in parallel, and its time grows with the square of the
    longest word.
    """
    pieces = []
    for line in LINE.split(text):
        pieces += _short_words(line) if len(line) > MAX_WORD else [line]
    return pieces


def _short_words(line: str) -> list[str]:
    cuts = [0, *(match.end() for match in LONG_WORD.finditer(line)), len(line)]
    return [line[start:end] for start, end in pairwise(cuts)]
