"""Attention maps of every family with their tokens, and the word alignment of a translation.

All maps come from one forward pass. A text is read in the form that the model was trained on, and a
translation, given or generated first, is forced.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from seq2chat.config import check
from seq2chat.inference.translate import Translation
from seq2chat.interpret.reading import forced, input_texts
from seq2chat.interpret.sites import Kind, find_sites
from seq2chat.interpret.tape import AttentionMap
from seq2chat.interpret.trace import trace
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class LabeledMap:
    """The attention of one layer, with a name for each head, query and key.

    In attention to a source, a query is named after the token that is predicted with its help. For
    example, the query that attended to the source to predict "Haus" is named "Haus". In
    self-attention it is named after the token at its position, as keys always are.
    """

    path: str
    kind: Kind
    heads: Sequence[str]
    queries: Sequence[str]
    keys: Sequence[str]
    weights: Float[Tensor, "head query key"]

    @property
    def layer(self) -> int:
        """The number of the layer in its stack, counted from 0."""
        number = re.search(r"\d+", self.path)
        return int(number.group()) if number else 0


@dataclass(frozen=True)
class TextAttention:
    """All attention maps of a text, with its translation if the model translates."""

    text: str
    target: str | None
    maps: list[LabeledMap]


def attention_maps(model: Model, *tokens: Sequence[int]) -> list[AttentionMap]:
    """Return all attention maps of one forward pass, on the CPU, with a batch of 1.

    `tokens` are the arguments of `model.hidden`: the ids for a GPT or a BERT, and the ids of source
    and target, as in training, for an encoder–decoder. Raises UserError for more tokens than the
    model's context, and for an RNN with a fixed context, which has no attention.
    """
    names = [name for name, site in find_sites(model).items() if site.kind is not None]
    check(
        bool(names),
        'The model was trained with model.attention = "fixed": its decoder reads one summary of the'
        ' source and has no attention; train one with model.attention = "additive" to see an'
        " alignment."
        if isinstance(model, Seq2Seq)
        else f"A {model.config.family} has no attention.",
    )
    return trace(model, *tokens, names=names).attention


def alignment(maps: Sequence[AttentionMap]) -> Float[Tensor, "target_seq source_seq"]:
    """Return the weight of each source token for each target token. Rows sum to 1.

    For an RNN this is its additive attention (Bahdanau et al. 2014, section 3.1). For a Transformer
    it is the mean of the heads in the decoder's last layer but one, which agrees best with human
    word alignments (Garg et al. 2019), or in its only layer. Raises UserError if there is no
    attention to a source.
    """
    over_source = [m for m in maps if m.kind != "self"]
    check(
        bool(over_source),
        "The model has no source to align with; this is for translation models.",
    )
    return over_source[_alignment_layer(len(over_source))].weights[0].mean(0)


def hard_alignment(
    weights: Float[Tensor, "target_seq source_seq"],
    source_words: Sequence[int | None],
    target_words: Sequence[int | None],
) -> list[tuple[int, int]]:
    """Return the pairs (source word, target word) where a token of the target word attends most to
    a token of the source word.

    `source_words` and `target_words` are the word numbers of the tokens, as returned by `words`.
    Tokens outside words, such as the end token, are not aligned. Pairs are sorted and unique.
    """
    positions = zip(weights.argmax(-1).tolist(), target_words, strict=True)
    pairs = {(source_words[i], word) for i, word in positions}
    return sorted((i, j) for i, j in pairs if i is not None and j is not None)


def word_alignment(
    model: Model, tokenizer: Tokenizer, source: Sequence[int], target: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the pairs (source word, target word) of a translation, where words are separated by
    white space.

    `source` ends with the end token, and `target` is the output of the model with or without it.
    Errors as in `attention_maps`.
    """
    read, written = forced(tokenizer, target)
    weights = alignment(attention_maps(model, source, read))
    return hard_alignment(weights, words(tokenizer, source), words(tokenizer, written))


def hypothesis_alignments(
    model: Model, tokenizer: Tokenizer, translation: Translation
) -> list[list[tuple[int, int]]]:
    """Return the `word_alignment` of each hypothesis; a blank line has none to align.

    Errors as in `attention_maps`.
    """
    if not translation.source:
        return [[] for _ in translation.hypotheses]
    return [
        word_alignment(model, tokenizer, translation.source, hypothesis.tokens)
        for hypothesis in translation.hypotheses
    ]


def pharaoh(pairs: Iterable[tuple[int, int]]) -> str:
    """Return an alignment in the format of Pharaoh, `0-0 1-2`: source-target, counted from 0."""
    return " ".join(f"{i}-{j}" for i, j in pairs)


def words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int | None]:
    """Return the number of the word that each token starts in, where words are separated by white
    space.

    Control tokens and tokens of white space have None.
    """
    control = set(tokenizer.control.values())
    numbers: list[int | None] = []
    n_words = 0
    in_word = False
    for token_id in ids:
        number: int | None = None
        for byte in b"" if token_id in control else tokenizer.token_bytes(token_id):
            starts_word = not in_word and not bytes([byte]).isspace()
            n_words += starts_word
            in_word = not bytes([byte]).isspace()
            if number is None and in_word:
                number = n_words - 1
        numbers.append(number)
    return numbers


def labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return a printable label for each token.

    A space is written as ␣. Bytes within a character, and unprintable characters, are written as
    Python escapes.
    """

    def label(token: bytes) -> str:
        text = token.decode(errors="backslashreplace").replace(" ", "␣")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    return [label(tokenizer.token_bytes(token_id)) for token_id in ids]


def attention_of_text(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    target: str | None = None,
    beam: int = 5,
) -> TextAttention:
    """Return all attention maps of `model` for `text`, and for `target` if the model translates.

    Without a target, a translation by beam search is used. Raises UserError for a blank text, for
    one that exceeds the model's context, for a target if the model does not translate, and as
    `attention_maps`.
    """
    read_texts = input_texts(model, tokenizer, text, target, beam)
    if isinstance(model, Seq2Seq | Transformer):
        ids, read = read_texts
        written = [*read[1:], read[0]]  # both end tokens are the same
        names = {"source": labels(tokenizer, ids), "read": labels(tokenizer, read)}
        names["written"] = labels(tokenizer, written)
        maps = [_label(m, names) for m in attention_maps(model, ids, read)]
        return TextAttention(text, target or tokenizer.decode(written[:-1]), maps)
    (ids,) = read_texts
    return TextAttention(
        text,
        None,
        [_label(m, {"read": labels(tokenizer, ids)}) for m in attention_maps(model, ids)],
    )


def select_maps(
    maps: Sequence[LabeledMap],
    kind: Kind | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> list[LabeledMap]:
    """Return the maps of one kind, layer and head, where None selects all.

    For a translation model, the default kind is attention to the source. If all arguments are None,
    the result is one map, the alignment as in `alignment`. Raises UserError, naming the existing
    ones, for a kind, layer or head that the model lacks.
    """
    kinds = list(dict.fromkeys(m.kind for m in maps))
    over_source = [m for m in maps if m.kind != "self"]
    if over_source and kind is layer is head is None:
        one = over_source[_alignment_layer(len(over_source))]
        if len(one.heads) == 1:
            return [one]
        return [
            replace(
                one,
                heads=[f"mean of {len(one.heads)} heads"],
                weights=one.weights.mean(0, keepdim=True),
            )
        ]
    if kind is None and over_source:
        kind = over_source[0].kind
    check(
        kind is None or kind in kinds,
        f"The model has no {kind} attention; it has {' and '.join(kinds)} attention.",
    )
    maps = [m for m in maps if kind in (None, m.kind)]
    n_layer = max(m.layer for m in maps) + 1
    n_head = len(maps[0].heads)
    check(
        layer is None or 0 <= layer < n_layer,
        f"There is no layer {layer}; the layers are 0 to {n_layer - 1}.",
    )
    check(
        head is None or 0 <= head < n_head,
        f"There is no head {head}; the heads are 0 to {n_head - 1}.",
    )
    maps = [m for m in maps if layer in (None, m.layer)]
    if head is None:
        return maps
    return [replace(m, heads=[m.heads[head]], weights=m.weights[head : head + 1]) for m in maps]


def _alignment_layer(n_layer: int) -> int:
    return max(n_layer - 2, 0)


def _label(m: AttentionMap, names: dict[str, list[str]]) -> LabeledMap:
    if m.kind != "self":
        queries = names["written"]
        keys = names["source"]
    else:
        queries = keys = names["source" if m.path.startswith("encoder.") else "read"]
    return LabeledMap(
        path=m.path,
        kind=m.kind,
        heads=[f"head {i}" for i in range(m.weights.shape[1])],
        queries=queries,
        keys=keys,
        weights=m.weights[0],
    )
