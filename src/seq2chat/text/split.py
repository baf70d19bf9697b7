"""Training and validation split of a corpus, and samples spread over it."""

import hashlib
from collections.abc import Iterator
from itertools import chain, islice

from seq2chat.config import check
from seq2chat.text.corpus import Corpus
from seq2chat.text.cuts import last_line_start
from seq2chat.text.jsonlines import JsonLines
from seq2chat.text.parts import Part, regroup
from seq2chat.text.plain import PlainText, Sample, hash_share

FEW_DOCUMENTS = 100
# Spread over the corpus. More characters change few merges (docs/log.md).
TOKENIZER_CHARACTERS = 20_000_000

# One sample for each split, or None to read everything.
Samples = dict[str, Sample] | None


def split_parts(corpus: Corpus, val_fraction: float, characters: int = 0) -> Iterator[Part]:
    """Yield the corpus in parts, each with its split.

    If `characters` is not 0, only about that many characters are read, spread over the corpus.

    With fewer than 100 documents the end of each is held out: the first int(n * (1 - val_fraction))
    of n characters (bytes, in a plain text file) are for training. For one document this is
    nanoGPT's split of tinyshakespeare. Otherwise whole documents are held out by the hash of their
    beginning, so that copies of a document are on the same side. A sample consists of blocks of a
    plain text file, and of whole documents otherwise (in JSON lines, those that start in a sampled
    block).
    """
    share = characters / max(1, corpus.n_characters) if characters else 1.0
    items = _sampled(corpus, share)
    first = list(islice(items, FEW_DOCUMENTS))
    hold_out = _hold_out_end if len(first) < FEW_DOCUMENTS else _hold_out_documents
    is_empty = True
    for item, samples in chain(first, items):
        for part in hold_out(item, val_fraction, samples):
            is_empty = False
            yield part
    check(not is_empty, f"{corpus.name} is empty; give a text to learn from.")


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
    """Return the sha256 of the sample of `characters` that `split_parts` reads."""
    digest = hashlib.sha256()
    for part in split_parts(corpus, val_fraction, characters):
        digest.update(f"{part.split} {part.ends} {part.text}".encode())
    return digest.hexdigest()


def _sampled(corpus: Corpus, share: float) -> Iterator[tuple[str | PlainText, Samples]]:
    """Yield documents and plain text files, each with the samples that select parts of it."""
    if share >= 1:
        for item in corpus.read():
            if isinstance(item, JsonLines):
                for text in item.documents():
                    yield text, None
            else:
                yield item, None
        return
    samples = {split: Sample(share) for split in ("train", "val")}
    for item in corpus.read():
        if isinstance(item, JsonLines):
            # Already sampled by blocks of the file.
            for text in item.sample(share):
                yield text, None
        else:
            yield item, samples


def _hold_out_end(item: str | PlainText, val_fraction: float, samples: Samples) -> Iterator[Part]:
    """Yield the parts of one document, with its end in the validation split."""
    if isinstance(item, PlainText):
        cut = int(item.size * (1 - val_fraction))
        yield from _plain_parts(item, "train", samples, 0, cut)
        yield from _plain_parts(item, "val", samples, cut, None)
    elif item.strip() and (samples is None or samples["train"].takes()):
        cut = int(len(item) * (1 - val_fraction))
        for split, text in (("train", item[:cut]), ("val", item[cut:])):
            if text.strip():
                yield Part(text, True, split)


def _hold_out_documents(
    item: str | PlainText, val_fraction: float, samples: Samples
) -> Iterator[Part]:
    """Yield the parts of one document, all in the same split."""
    if isinstance(item, PlainText):
        beginning = next(item.read(), ("", True))[0]
        split = "val" if hash_share(beginning) < val_fraction else "train"
        yield from _plain_parts(item, split, samples, 0, None)
    elif item.strip():
        split = "val" if hash_share(item) < val_fraction else "train"
        if samples is None or samples[split].takes():
            yield Part(item, True, split)


def _plain_parts(
    item: PlainText, split: str, samples: Samples, start: int, end: int | None
) -> Iterator[Part]:
    if samples is None:
        parts = item.read(start, end)
    else:
        parts = item.sample(samples[split].takes, start, end)
    return (Part(text, ends, split) for text, ends in parts)
