"""Text files: opened, decoded as UTF-8, or rejected with a command that converts them."""

import codecs
import gzip
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BufferedIOBase
from pathlib import Path

import charset_normalizer

from seq2chat.config import UserError, check
from seq2chat.text.remote import TextFile

BLOCK = 1 << 16  # bytes per read
GUESSED = 1 << 17  # bytes around the first invalid one, from which the encoding is guessed

_PANDOC = "pandoc -t plain {0} -o {1}.txt"
_UNPACK = "unpack it and give the folder"
OTHER_FORMATS = {
    **dict.fromkeys(
        (".html", ".htm", ".xhtml", ".epub", ".docx", ".odt", ".rtf", ".ipynb"), _PANDOC
    ),
    ".doc": "save it as .txt in your word processor",
    ".pdf": "pdftotext {0} {1}.txt",
    ".ps": "ps2ascii {0} {1}.txt",
    ".zip": "unzip {0} -d {1}, then give the folder {1}",
    **dict.fromkeys((".tar", ".tgz", ".7z", ".rar"), _UNPACK),
    ".xz": "unxz --keep {0}",
    ".bz2": "bunzip2 --keep {0}",
    ".zst": "unzstd {0}",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save it as .csv in your spreadsheet program"),
    ".xml": "write the text of each document as one JSON object per line",
    **dict.fromkeys(
        (".sgm", ".sgml"), r"sed -n 's/.*<seg[^>]*> *\(.*[^ ]\) *<\/seg>.*/\1/p' {0} > {1}.txt"
    ),
    **dict.fromkeys(
        (".arrow", ".feather", ".npy", ".pt", ".pkl", ".db", ".sqlite"),
        "write it as .jsonl or .parquet",
    ),
}
"""A command or advice for converting a file of another format, by its suffix. {0} is the file and
{1} its stem."""

_SIGNATURES = {
    b"\x1f\x8b": ".gz",
    b"%PDF-": ".pdf",
    b"PK\x03\x04": ".zip",
    b"\xfd7zXZ\x00": ".xz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PAR1": ".parquet",
}

_MARKS = {
    # First, because the little-endian mark starts with the mark of UTF-16.
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_ENCODINGS = [
    *(f"cp125{n}" for n in range(9)),
    "cp437",
    "cp850",
    "cp866",
    "cp874",
    "cp932",
    "cp949",
]
_ENCODINGS += ["koi8_r", "koi8_u", "gb18030", "big5", "euc_jp", "iso8859_2"]
_WESTERN = set("‘’“”‚„‹›«»–—…•·€£§©®™°¡¿ºª\xa0àâäáãåæçèéêëìíîïñòóôöõøœùúûüýÿß")
_WESTERN |= {character.upper() for character in _WESTERN}


def exists(path: Path) -> bool:
    """Return whether a path exists. An address or a mixture may be too long for one, for which
    `Path.exists` raises OSError."""
    with suppress(OSError):
        return path.exists()
    return False


def suffix(file: TextFile) -> str:
    """Return the suffix of the format in lower case, for example `.jsonl` for `Rows.JSONL.gz`."""
    plain = file.with_suffix("") if file.suffix.lower() == ".gz" else file
    return plain.suffix.lower()


def check_format(file: TextFile) -> None:
    """Raise UserError for a pipe, or for a file with the suffix of an unsupported format, with
    advice on converting it."""
    _check_no_pipe(file)
    advice = OTHER_FORMATS.get(suffix(file))
    if advice is not None:
        raise UserError(
            f"{file} is a {suffix(file)} file, which is not read; {_convert(advice, file)}"
        )


def _check_no_pipe(file: TextFile) -> None:
    # A text is read several times: to count, to fingerprint and to encode it.
    check(
        not file.is_fifo(),
        f"{file} is a pipe, which can be read only once; save it to a file first, and give that.",
    )


def _convert(advice: str, file: TextFile) -> str:
    command = advice.format(shlex.quote(str(file)), shlex.quote(file.stem))
    return f"convert it: {command}" if "{0}" in advice else command


@contextmanager
def open_bytes(file: TextFile) -> Iterator[BufferedIOBase]:
    """Open a file, gzipped or not. Errors of reading inside the `with` block become UserErrors."""
    _check_no_pipe(file)
    try:
        with file.open("rb") as packed:
            is_gzip = file.suffix.lower() == ".gz"
            with gzip.open(packed) if is_gzip else nullcontext(packed) as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(
            f"{file} is not a complete gzip file; download or compress it again."
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None


def decode(data: bytes, file: TextFile, offset: int) -> str:
    """Return the text of `data`, the bytes of the file at `offset`.

    Raises UserError for bytes that are not UTF-8, with a command that converts the file.
    """
    _check_text(data, file, offset)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(file, offset + error.start) from None


def read_blocks(file: TextFile) -> Iterator[str]:
    """Yield the text of a file in blocks, without a byte order mark.

    Raises UserError as `decode`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    began = False
    with open_bytes(file) as stream:
        while True:
            block = stream.read(BLOCK)
            _check_text(block, file, offset)
            held_back = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(file, offset - held_back + error.start) from None
            yield text if began else text.removeprefix("\ufeff")
            began = began or text != ""
            offset += len(block)
            if not block:
                return


def numbered_lines(file: TextFile) -> Iterator[tuple[str, int]]:
    """Yield each line that is not blank, without its line end, and its number.

    Raises UserError as `decode`.
    """
    offset = 0
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, start=1):
            text = decode(line, file, offset).removeprefix("\ufeff").rstrip("\r\n")
            offset += len(line)
            if text.strip():
                yield text, number


def whole_characters(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair, which JSON can spell but UTF-8
    can't hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _check_text(data: bytes, file: TextFile, offset: int) -> None:
    """Raise UserError for bytes of another format, of UTF-16 or of UTF-32."""
    if offset == 0:
        for encoding, marks in _MARKS.items():
            command = _iconv(f"-f {encoding}", file)
            check(not data.startswith(marks), f"{file} is {encoding}; convert it: {command}")
        kind = next((name for head, name in _SIGNATURES.items() if data.startswith(head)), "")
        if kind and file.suffix.lower() == ".gz":
            raise UserError(f"{file} holds a {kind} file; unpack it: {_unpack(file, kind)}")
        if kind in (".gz", ".parquet"):
            names = shlex.join([str(file), f"{file}{kind}"])
            raise UserError(f"{file} is a {kind} file by its content; rename it: mv {names}")
        if kind:
            advice = _convert(OTHER_FORMATS[kind], file)
            raise UserError(f"{file} is a {kind} file by its content, which is not read; {advice}")
    if b"\0" in data:
        encoding = _utf16_without_mark(data)
        check(
            not encoding,
            f"{file} is UTF-16 without a byte order mark; convert it: "
            f"{_iconv(f'-f {encoding}', file)}",
        )
        raise UserError(f"{file} is a binary file (it has NUL bytes); give a text file.")


def _utf16_without_mark(data: bytes) -> str:
    """Return "UTF-16LE" or "UTF-16BE" for text in UTF-16, and "" for other bytes."""
    sample = data[: min(len(data), GUESSED) // 2 * 2]
    even = sample[::2].count(0)
    odd = sample[1::2].count(0)
    # In UTF-16, ASCII has a zero in every unit. In other scripts, blanks, digits and line ends have
    # one.
    is_utf8 = _is_plain_utf8(sample.replace(b"\0", b""))
    least = len(sample) / 2 * (0.9 if is_utf8 else 0.05)
    for zeros, others, name in ((odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")):
        if zeros > least and others < zeros / 50:
            return name
    return ""


def _is_plain_utf8(data: bytes) -> bool:
    """Return True if the bytes are UTF-8 without control characters."""
    text = data.decode("utf-8", "replace")
    return "\ufffd" not in text and all(
        character >= " " or character.isspace() for character in text
    )


def _not_utf8(file: TextFile, position: int) -> UserError:
    """Return the error for bytes at `position` that are not UTF-8, with the most probable encoding
    in the command."""
    with open_bytes(file) as stream:
        first = max(0, position - GUESSED // 2)
        stream.seek(first)
        sample = stream.read(GUESSED)
    before = sample[: position - first]
    tail = sample[position - first :]
    # A single last byte may also be the only accented letter of a text in another encoding.
    if _is_unfinished(tail) and (len(tail) > 1 or not before.isascii()):
        return UserError(
            f"{file} is not UTF-8 at byte {position}: it ends within a character, so it is cut; "
            f"download it again, or leave the end out: {_head(position, file)}"
        )
    if first:
        sample = sample[sample.find(b"\n") + 1 :]  # a character of several bytes must not be cut
    place = f"{file} is not UTF-8 at byte {position}"
    if _mostly_utf8(sample):
        return UserError(f"{place}; leave such bytes out: {_iconv('-c -f UTF-8', file)}")
    return UserError(f"{place}; convert it, for example: {_iconv(f'-f {_guess(sample)}', file)}")


def _iconv(options: str, file: TextFile) -> str:
    """Return the command that converts the file to UTF-8."""
    if file.suffix.lower() == ".gz":
        return f"gunzip -c {shlex.quote(str(file))} | iconv {options} -t UTF-8 > new.txt"
    return f"iconv {options} -t UTF-8 {shlex.quote(str(file))} > new.txt"


def _head(size: int, file: TextFile) -> str:
    """Return the command that writes the first `size` bytes of the text."""
    if file.suffix.lower() == ".gz":
        return f"gunzip -c {shlex.quote(str(file))} | head -c {size} > new.txt"
    return f"head -c {size} {shlex.quote(str(file))} > new.txt"


def _unpack(file: TextFile, kind: str) -> str:
    """Return the command that unpacks a gzipped file to the file of another format, or the text,
    inside it."""
    command = f"gunzip -c {shlex.quote(str(file))}"
    unpacked = file.with_suffix("")
    if kind == ".gz":
        return f"{command} | gunzip -c > {shlex.quote(str(unpacked))}"
    named = unpacked if unpacked.suffix.lower() == kind else Path(f"{unpacked}{kind}")
    return f"{command} > {shlex.quote(str(named))}"


def _is_unfinished(tail: bytes) -> bool:
    """Return True if the bytes are an incomplete UTF-8 character."""
    try:
        tail.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


def _mostly_utf8(sample: bytes) -> bool:
    """Return True for UTF-8 with a few damaged characters, which another encoding would garble."""
    text = sample.decode("utf-8", "replace")
    n_damaged = text.count("\ufffd")
    n_intact = sum(character > "\x7f" for character in text) - n_damaged
    return n_intact > 5 * n_damaged


def _guess(sample: bytes) -> str:
    """Return the most probable encoding of the bytes, by its name in `iconv`."""
    high = [byte for byte in sample if byte > 0x7F]
    western = sample.decode("cp1252", "replace")
    # Too few characters above ASCII for statistics. In English, French or German text they are all
    # in this set.
    if len(high) < len(sample) / 20 and all(c in _WESTERN for c in western if c > "\x7f"):
        return "CP1252"
    # Bytes of other encodings don't look like kana. The detector takes short Japanese text for
    # Korean.
    for encoding in ("cp932", "euc_jp"):
        text = sample.decode(encoding, "replace")
        if sum("\u3041" <= c <= "\u30ff" for c in text) > len(text) / 5:
            return encoding.upper().replace("_", "-")
    best = charset_normalizer.from_bytes(sample, cp_isolation=_ENCODINGS).best()
    if best is None or sample.decode(best.encoding, "replace") == western:
        return "CP1252"
    return best.encoding.upper().replace("_", "-")
