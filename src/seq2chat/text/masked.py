"""Masked language modelling: which tokens a BERT is asked for, and what it sees in their place.

Devlin et al. 2018, section 3.1 and appendix A.1: 15 % of the tokens are chosen; 80 % of these are
shown as [MASK], 10 % as a random token, 10 % as they are. As in RoBERTa (Liu et al. 2019, section
4.1) they are chosen anew each epoch.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from seq2chat.config import check
from seq2chat.text.batch import IGNORED, Batch, Loader, spread_batches
from seq2chat.text.shards import Shards
from seq2chat.text.wordpiece import WordPiece

EVALUATION_SHARE = 0.15  # whatever a model was trained with, so that losses compare
SHOW_MASK, SHOW_RANDOM = 0.8, 0.1
MASK = "[MASK]"


class MaskedLoader:
    """Deals training samples [CLS] text [SEP] of `context` tokens, cut from the stream as by
    `Loader`.

    Documents inside a sample are separated by [SEP] (RoBERTa's FULL-SENTENCES). With
    `next_sentence`, a sample is [CLS] A [SEP] B [SEP]: B follows A in one half of them, and begins
    at a random place in the other.
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
        self.shards, self.context, self.seed, self.tokenizer = shards, context, seed, tokenizer
        self.mask_share, self.next_sentence = mask_share, next_sentence
        self.width = context - (3 if next_sentence else 2)
        n_transitions = shards.n_tokens - 1
        check(
            self.width > 1,
            f"model.context is {context}; [CLS] and [SEP] need room beside the text, so write "
            "more.",
        )
        check(
            n_transitions >= self.width,
            f"The {shards.name} text has {n_transitions} tokens, but model.context is {context}; "
            f"use a longer text or a context of at most {n_transitions + context - self.width}.",
        )
        self.windows = Loader(shards, self.width, seed)
        self.n_windows = self.windows.n_windows
        self.fingerprint, self.epoch_tokens = shards.fingerprint, self.n_windows * context

    def epoch_batches(self, batch_size: int) -> float:
        """Return the number of batches in an epoch."""
        return self.n_windows / batch_size

    def n_samples(self, first_sample: int, batch_size: int) -> int:
        """Return how many samples the batch that begins with `first_sample` has, over all ranks."""
        return batch_size

    def sample(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """Return `target`, `labels` and `segments` of sample k, int64 of shape `(context,)` each,
        and `is_next`."""
        rng = _generator(self.fingerprint, self.seed, k)
        text, _, _ = self.windows.sample(k)
        special, n_first, is_next = self.tokenizer, self.width, True
        if self.next_sentence:
            n_first = int(rng.integers(1, self.width))
            is_next = bool(rng.random() < 0.5)
            if not is_next:
                text[n_first:] = self._elsewhere(rng, self.width - n_first)
        parts = [[special.cls_id], text[:n_first], [special.sep_id]]
        if self.next_sentence:
            parts += [text[n_first:], [special.sep_id]]
        tokens = np.concatenate(parts).astype(np.int64)
        segments = (np.arange(self.context) >= n_first + 2).astype(np.int64)
        target, labels = mask_tokens(
            tokens,
            ~_control(tokens, special),
            self.mask_share,
            special.mask_id,
            special.vocab_size,
            rng,
        )
        return target, labels, segments, is_next

    def batch(
        self, first_sample: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Batch:
        """Return this rank's rows of the global batch of samples first_sample .. first_sample +
        batch_size - 1."""
        samples = map(
            self.sample, range(first_sample + rank, first_sample + batch_size, world_size)
        )
        target, labels, segments, is_next = (
            torch.from_numpy(np.stack(rows)) for rows in zip(*samples, strict=True)
        )
        if not self.next_sentence:
            return Batch(target, labels)
        return Batch(target, labels, segments=segments, is_next=is_next)

    def _elsewhere(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` tokens from a random place of the stream."""
        return self.shards.read(int(rng.integers(self.shards.n_tokens - count + 1)), count)


def masked_evaluation_batches(
    shards: Shards, context: int, batch_size: int, tokenizer: WordPiece, limit: int = 0
) -> Iterator[Batch]:
    """Yield the whole stream once, in order, as rows [CLS] text [SEP], with 15 % of the tokens
    chosen.

    With a `limit` they are rows of about so many tokens, spread over the stream.

    What is chosen depends on the text and the context alone, so that models are asked for the same.
    The last row is padded, with a `target_mask`; the last batch may have fewer rows.
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
        for first in (firsts[window] for window in windows):
            text = shards.read(first, min(width, n_tokens - first)).astype(np.int64)
            tokens = np.concatenate([[tokenizer.cls_id], text, [tokenizer.sep_id]])
            rng = _generator(shards.fingerprint, "evaluation", first)
            target, labels = mask_tokens(
                tokens,
                ~_control(tokens, tokenizer),
                EVALUATION_SHARE,
                tokenizer.mask_id,
                tokenizer.vocab_size,
                rng,
            )
            padding = (0, context - len(tokens))
            rows.append(
                (
                    np.pad(target, padding, constant_values=tokenizer.pad_id),
                    np.pad(labels, padding, constant_values=IGNORED),
                    np.arange(context) < len(tokens),
                )
            )
        target, labels, is_real = (
            torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
        )
        yield Batch(target, labels, target_mask=None if is_real.all() else is_real)


def mask_tokens(
    tokens: np.ndarray,
    is_text: np.ndarray,
    share: float,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model sees of a row of `tokens` and its labels, -100 where nothing is asked;
    `(seq,)` each.

    Of the places where `is_text` the whole number nearest to `share` is chosen, but at least one. A
    random token is any of the vocabulary.
    """
    places = np.flatnonzero(is_text)
    chosen = rng.permutation(places)[: max(1, round(share * len(places)))]
    target, labels = tokens.copy(), np.full_like(tokens, IGNORED)
    labels[chosen] = tokens[chosen]
    shown, random = rng.random(len(chosen)), rng.integers(vocab_size, size=len(chosen))
    target[chosen] = np.where(shown < SHOW_MASK, mask_id, tokens[chosen])
    is_random = shown >= 1 - SHOW_RANDOM
    target[chosen[is_random]] = random[is_random]
    return target, labels


def encode_masked(text: str, tokenizer: WordPiece) -> list[int]:
    """Return [CLS] text [SEP] as ids, each `[MASK]` written in `text` being the control token.

    Raises UserError where there is none.
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
    """Return `text` with `piece` in the place of its `[MASK]` number `index`; `##ing` joins the
    word before it."""
    parts = text.split(MASK)
    before, after = MASK.join(parts[: index + 1]), MASK.join(parts[index + 1 :])
    if piece.startswith("##"):
        before, piece = before.rstrip(), piece.removeprefix("##")
    return before + piece + after


def _control(tokens: np.ndarray, tokenizer: WordPiece) -> np.ndarray:
    """Return which tokens are never chosen: those that text does not consist of, and [UNK], which
    is no word."""
    return np.isin(tokens, [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.unk_id])


def _generator(*key: object) -> np.random.Generator:
    """Return a generator of its own for each key."""
    digest = hashlib.sha256(" ".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
