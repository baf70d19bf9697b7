"""Training and validation split of a corpus, and samples spread over it."""

import hashlib
from collections.abc import Iterator
from itertools import chain, islice

from seq2chat.config import check
from seq2chat.text.byte_bpe import last_line_start
from seq2chat.text.corpus import Corpus
from seq2chat.text.jsonlines import JsonLines
from seq2chat.text.parts import Part, regroup
from seq2chat.text.plain import PlainText, Sample, hash_share

FEW_DOCUMENTS = 100
# Spread over the corpus; more of them change few merges (docs/log.md).
TOKENIZER_CHARACTERS = 20_000_000


def split_parts(corpus: Corpus, val_fraction: float, characters: int = 0) -> Iterator[Part]:
    """Yield the corpus in parts, each with its split; about `characters` spread over the corpus if
    that is not 0.

    With fewer than 100 documents the end of each is held out: of n characters (bytes, in a plain
    text file), the first int(n * (1 - val_fraction)) are for training. One document gives nanoGPT's
    split of tinyshakespeare. Otherwise whole documents are held out by the hash of their beginning,
    so that copies of one document are on the same side. A sample takes blocks of a plain text file,
    and whole documents of anything else (of JSON lines those that start in a block).
    """
    share = characters / max(1, corpus.n_characters) if characters else 1.0
    items = _sampled(corpus, share)
    first = list(islice(items, FEW_DOCUMENTS))
    held_out = _ends if len(first) < FEW_DOCUMENTS else _whole_documents
    empty = True
    for item, samples in chain(first, items):
        for part in held_out(item, val_fraction, samples):
            empty = False
            yield part
    check(not empty, f"{corpus.name} is empty; give a text to learn from.")


def split_texts(corpus: Corpus, val_fraction: float, split: str) -> Iterator[str]:
    """Yield the documents of one split, each as one string."""
    text: list[str] = []
    for part in split_parts(corpus, val_fraction):
        if part.split == split:
            text.append(part.text)
            if part.ends:
                yield "".join(text)
                text = []


def tokenizer_texts(
    corpus: Corpus, val_fraction: float, characters: int = TOKENIZER_CHARACTERS
) -> Iterator[str]:
    """Yield about `characters` of the training split to train a tokenizer on, in pieces of bounded
    size."""
    parts = (
        part for part in split_parts(corpus, val_fraction, characters) if part.split == "train"
    )
    return (part.text for part in regroup(parts, last_line_start))


def sample_fingerprint(corpus: Corpus, val_fraction: float, characters: int) -> str:
    """Return the sha256 of the sample of `characters` that `split_parts` takes."""
    digest = hashlib.sha256()
    for part in split_parts(corpus, val_fraction, characters):
        digest.update(f"{part.split} {part.ends} {part.text}".encode())
    return digest.hexdigest()


def _sampled(
    corpus: Corpus, share: float
) -> Iterator[tuple[str | PlainText, dict[str, Sample] | None]]:
    """Yield documents and plain text files, each with the samples that decide which of it is taken;
    None takes all."""
    samples = {split: Sample(share) for split in ("train", "val")} if share < 1 else None
    for item in corpus.read():
        if isinstance(item, JsonLines):
            for text in item.documents() if samples is None else item.sample(share):
                yield text, None
        else:
            yield item, samples


def _ends(
    item: str | PlainText, val_fraction: float, samples: dict[str, Sample] | None
) -> Iterator[Part]:
    """Hold out the end of one document."""
    if isinstance(item, PlainText):
        cut = int(item.size * (1 - val_fraction))
        for split, start, end in (("train", 0, cut), ("val", cut, None)):
            yield from _plain(item, split, samples, start, end)
    elif item.strip() and (samples is None or samples["train"].takes()):
        cut = int(len(item) * (1 - val_fraction))
        for split, text in (("train", item[:cut]), ("val", item[cut:])):
            if text.strip():
                yield Part(text, True, split)


def _whole_documents(
    item: str | PlainText, val_fraction: float, samples: dict[str, Sample] | None
) -> Iterator[Part]:
    """Hold out whole documents."""
    if isinstance(item, PlainText):
        beginning = next(item.read(), ("", True))[0]
        split = "val" if hash_share(beginning) < val_fraction else "train"
        yield from _plain(item, split, samples, 0, None)
    elif item.strip():
        split = "val" if hash_share(item) < val_fraction else "train"
        if samples is None or samples[split].takes():
            yield Part(item, True, split)


def _plain(
    item: PlainText, split: str, samples: dict[str, Sample] | None, start: int, end: int | None
) -> Iterator[Part]:
    parts = (
        item.read(start, end) if samples is None else item.sample(samples[split].takes, start, end)
    )
    return (Part(text, ends, split) for text, ends in parts)
