"""Masked language modeling: the choice of the tokens that a BERT predicts, and their replacement.

15 % of the tokens are chosen. Of these, 80 % are replaced by [MASK], 10 % by a random token, and
10 % are left unchanged (Devlin et al. 2018, section 3.1 and appendix A.1). As in RoBERTa (Liu et
al. 2019, section 4.1), each epoch chooses different tokens.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seq2chat.config import check
from seq2chat.text.batch import IGNORED, Batch, Loader, spread_batches
from seq2chat.text.shards import Shards
from seq2chat.text.wordpiece import WordPiece

EVALUATION_SHARE = 0.15  # the same for all models, so that losses can be compared
SHOW_MASK = 0.8
SHOW_RANDOM = 0.1
MASK = "[MASK]"


class MaskedLoader:
    """A loader of training samples [CLS] text [SEP] of `context` tokens, cut from the stream as in
    `Loader`.

    Documents inside a sample are separated by [SEP] (RoBERTa's FULL-SENTENCES). With
    `next_sentence`, a sample is [CLS] A [SEP] B [SEP]. In half of the samples B follows A, and in
    the others it starts at a random position.
    """

    def __init__(
        self,
        shards: Shards,
        context: int,
        seed: int,
        tokenizer: WordPiece,
        mask_share: float = EVALUATION_SHARE,
        next_sentence: bool = False,
    ) -> None:
        self.shards = shards
        self.context = context
        self.seed = seed
        self.tokenizer = tokenizer
        self.mask_share = mask_share
        self.next_sentence = next_sentence
        self.width = context - (3 if next_sentence else 2)
        n_transitions = shards.n_tokens - 1
        check(
            self.width > 1,
            f"model.context is {context}, which leaves no room for text between [CLS] and [SEP]; "
            "write a larger one.",
        )
        check(
            n_transitions >= self.width,
            f"The {shards.name} text has {n_transitions} tokens, but model.context is {context}; "
            f"use a longer text or a context of at most {n_transitions + context - self.width}.",
        )
        self.windows = Loader(shards, self.width, seed)
        self.n_windows = self.windows.n_windows
        self.fingerprint = shards.fingerprint
        self.epoch_tokens = self.n_windows * context

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches per epoch."""
        return self.n_windows / batch_size

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return the number of samples in the batch that starts with `first_sample`."""
        return batch_size

    def sample(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Return `target`, `labels` and `segments` of sample k, int64 of shape `(context,)` each,
        and `is_next`."""
        rng = _generator(self.fingerprint, self.seed, k)
        text, _, _ = self.windows.sample(k)
        special = self.tokenizer
        n_first = self.width
        is_next = True
        if self.next_sentence:
            n_first = int(rng.integers(1, self.width))
            is_next = bool(rng.random() < 0.5)
            if not is_next:
                text[n_first:] = self._random_text(rng, self.width - n_first)
        parts = [[special.cls_id], text[:n_first], [special.sep_id]]
        if self.next_sentence:
            parts += [text[n_first:], [special.sep_id]]
        tokens = np.concatenate(parts).astype(np.int64)
        segments = (np.arange(self.context) >= n_first + 2).astype(np.int64)
        target, labels = mask_tokens(
            tokens,
            is_text=~_is_control(tokens, special),
            share=self.mask_share,
            mask_id=special.mask_id,
            vocab_size=special.vocab_size,
            rng=rng,
        )
        return target, labels, segments, is_next

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's rows of the global batch of samples first_sample .. first_sample +
        batch_size - 1."""
        numbers = range(first_sample + rank, first_sample + batch_size, world_size)
        return self.collate([self.sample(k) for k in numbers])

    def collate(self, rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, bool]]) -> Batch:
        """Return samples as a batch."""
        columns = zip(*rows, strict=True)
        target, labels, segments, is_next = (
            torch.from_numpy(np.stack(column)) for column in columns
        )
        if not self.next_sentence:
            return Batch(target, labels)
        return Batch(target, labels, segments=segments, is_next=is_next)

    def _random_text(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` tokens from a random position of the stream."""
        start = int(rng.integers(self.shards.n_tokens - count + 1))
        return self.shards.read(start, count)


def masked_evaluation_batches(
    shards: Shards, context: int, batch_size: int, tokenizer: WordPiece, limit: int = 0
) -> Iterator[Batch]:
    """Yield the whole stream once, in order, as rows [CLS] text [SEP] with 15 % of the tokens
    masked.

    With a `limit`, rows of about that many tokens are yielded, spread over the stream.

    The choice of tokens depends only on the text and the context, so that all models predict the
    same ones. The last row is padded, with a `target_mask`. The last batch may have fewer rows.
    """
    width = context - 2
    check(
        width > 0,
        f"context is {context}; write at least 3, as [CLS] and [SEP] take two places.",
    )
    n_tokens = shards.n_tokens - 1
    firsts = range(0, n_tokens, width)
    for windows in spread_batches(len(firsts), batch_size, -(-limit // width)):
        rows = []
        for window in windows:
            first = firsts[window]
            text = shards.read(first, min(width, n_tokens - first))
            rng = _generator(shards.fingerprint, "evaluation", first)
            rows.append(_evaluation_row(text, context, tokenizer, rng))
        columns = zip(*rows, strict=True)
        target, labels, is_real = (torch.from_numpy(np.stack(column)) for column in columns)
        yield Batch(target, labels, target_mask=None if is_real.all() else is_real)


def _evaluation_row(
    text: np.ndarray, context: int, tokenizer: WordPiece, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return target, labels and the mask of real tokens of a row padded to `context`."""
    tokens = np.concatenate([[tokenizer.cls_id], text.astype(np.int64), [tokenizer.sep_id]])
    target, labels = mask_tokens(
        tokens,
        is_text=~_is_control(tokens, tokenizer),
        share=EVALUATION_SHARE,
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        rng=rng,
    )
    padding = (0, context - len(tokens))
    target = np.pad(target, padding, constant_values=tokenizer.pad_id)
    labels = np.pad(labels, padding, constant_values=IGNORED)
    return target, labels, np.arange(context) < len(tokens)


def mask_tokens(
    tokens: np.ndarray,
    is_text: np.ndarray,
    share: float,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masked tokens of a row and its labels, -100 where no token was chosen, `(seq,)`
    each.

    About `share` of the positions where `is_text` are chosen, at least one. A random token may be
    any token of the vocabulary.
    """
    positions = np.flatnonzero(is_text)
    chosen = rng.permutation(positions)[: max(1, round(share * len(positions)))]
    labels = np.full_like(tokens, IGNORED)
    labels[chosen] = tokens[chosen]
    uniform = rng.random(len(chosen))
    random_tokens = rng.integers(vocab_size, size=len(chosen))
    target = tokens.copy()
    target[chosen] = np.where(uniform < SHOW_MASK, mask_id, tokens[chosen])
    is_random = uniform >= 1 - SHOW_RANDOM
    target[chosen[is_random]] = random_tokens[is_random]
    return target, labels


def encode_masked(text: str, tokenizer: WordPiece) -> list[int]:
    """Return the ids of [CLS] text [SEP], with the control token for each `[MASK]` in `text`.

    Raises UserError if there is none.
    """
    first, *others = (tokenizer.encode(part) for part in text.split(MASK))
    check(
        bool(others),
        f'There is no {MASK} in "{text}"; write it for the word to guess: "Paris is in {MASK}."',
    )
    ids = [tokenizer.cls_id, *first]
    for part in others:
        ids += [tokenizer.mask_id, *part]
    return [*ids, tokenizer.sep_id]


def fill(text: str, index: int, piece: str) -> str:
    """Return `text` with `piece` in place of its `[MASK]` number `index`.

    A piece such as `##ing` is joined to the word before it.
    """
    parts = text.split(MASK)
    before = MASK.join(parts[: index + 1])
    after = MASK.join(parts[index + 1 :])
    if piece.startswith("##"):
        before = before.rstrip()
    return before + piece.removeprefix("##") + after


def _is_control(tokens: np.ndarray, tokenizer: WordPiece) -> np.ndarray:
    """Return a mask of the tokens that are never chosen: control tokens, including [UNK]."""
    return np.isin(tokens, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id])


def _generator(*key: object) -> np.random.Generator:
    """Return a generator seeded by `key`."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
