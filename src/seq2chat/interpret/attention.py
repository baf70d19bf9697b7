"""Attention maps of every family, with the tokens they are about, and the word alignment of a
translation.

One forward pass gives all maps: a text is read as the model was trained to read it, and a
translation, given or made first, is forced.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from seq2chat.config import UserError, check
from seq2chat.generation.beam import beam_search
from seq2chat.inference.translate import Translation
from seq2chat.interpret.reading import ids_read
from seq2chat.interpret.tape import AttentionMap, Kind, record, sites
from seq2chat.models.folder import Model
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class LabelledMap:
    """The attention of one layer, with a name for each head, query and key.

    In attention over a source the queries are named by what was written with their help: the row of
    the state that looked at the source to choose "Haus" is "Haus". In self-attention they are named
    by the token read there, as keys always are.
    """

    path: str
    kind: Kind
    heads: Sequence[str]
    queries: Sequence[str]
    keys: Sequence[str]
    weights: Float[Tensor, "head query key"]

    @property
    def layer(self) -> int:
        """The number of the layer in its stack, from 0."""
        number = re.search(r"\d+", self.path)
        return int(number.group()) if number else 0


@dataclass(frozen=True)
class Look:
    """What was read, what was written if the model translates, and all attention in between."""

    text: str
    target: str | None
    maps: list[LabelledMap]


def attention_maps(model: Model, *tokens: Sequence[int]) -> list[AttentionMap]:
    """Return all attention maps of one forward pass, on the CPU, their batch being 1.

    `tokens` are the ids that `model.hidden` takes: a row of them for a GPT or a BERT; source and
    target, each as in training, for an encoder–decoder. Raises UserError for more tokens than the
    model's context, and for an RNN with a fixed context, which attends to nothing.
    """
    names = [site for site in sites(model) if site.endswith((".heads", ".attention"))]
    check(
        bool(names),
        'The model was trained with model.attention = "fixed": its decoder sees one summary of the'
        ' source and attends to nothing; train one with model.attention = "additive" to see an'
        " alignment.",
    )
    rows = [torch.tensor([ids], dtype=torch.int64, device=model.device) for ids in tokens]
    with torch.inference_mode(), record(model, names, device="cpu") as tape:
        model.hidden(*rows)
    return tape.attention


def alignment(maps: Sequence[AttentionMap]) -> Float[Tensor, "target_seq source_seq"]:
    """Return how much each written token is due to each source token: rows sum to 1.

    An RNN's additive attention is the alignment (Bahdanau et al. 2014, section 3.1). Of a
    Transformer it is the mean of the heads in the decoder's last layer but one, which agrees best
    with human word alignments (Garg et al. 2019); of an only layer, in that. Raises UserError where
    nothing attends to a source.
    """
    over_source = [m for m in maps if m.kind != "self"]
    check(
        bool(over_source),
        "The model reads no source, so there is nothing to align; this is for translation models.",
    )
    return over_source[_alignment_layer(len(over_source))].weights[0].mean(0)


def hard_alignment(
    weights: Float[Tensor, "target_seq source_seq"],
    source_words: Sequence[int | None],
    target_words: Sequence[int | None],
) -> list[tuple[int, int]]:
    """Return the pairs (source word, target word) in which a token of the latter looks most at one
    of the former.

    `source_words` and `target_words` say to which word each token belongs, as `words` returns them;
    tokens of no word, such as the end token, align with nothing. Pairs are sorted and occur once.
    """
    pairs = zip(weights.argmax(-1).tolist(), target_words, strict=True)
    found = {(source_words[i], word) for i, word in pairs}
    return sorted((i, j) for i, j in found if i is not None and j is not None)


def word_alignment(
    model: Model, tokenizer: Tokenizer, source: Sequence[int], target: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the pairs (source word, target word) of a translation, words being what white space
    divides.

    `source` ends with the end token, `target` is what the model wrote, with or without it. Errors
    as in `attention_maps`.
    """
    read, written = _forced(tokenizer, target)
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
    """Return for each token the number of the word, as white space divides them, in which it
    begins; None for a control token or white space alone."""
    control = set(tokenizer.control.values())
    found: list[int | None] = []
    n_words = 0
    in_word = False
    for token_id in ids:
        begun: int | None = None
        for byte in b"" if token_id in control else tokenizer.token_bytes(token_id):
            starts_word = not in_word and not bytes([byte]).isspace()
            n_words += starts_word
            in_word = not bytes([byte]).isspace()
            if begun is None and in_word:
                begun = n_words - 1
        found.append(begun)
    return found


def labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return each token as it can be shown alone: a space as ␣, and bytes that are part of a
    character, or characters without a sign, as Python escapes them."""

    def label(token: bytes) -> str:
        text = token.decode(errors="backslashreplace").replace(" ", "␣")
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

    return [label(tokenizer.token_bytes(token_id)) for token_id in ids]


def look(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    target: str | None = None,
    beam: int = 5,
) -> Look:
    """Return all attention of `model` reading `text`, and writing `target` if it translates.

    Without a target, the translation is what beam search finds. The text is read as `ids_read` has
    it. Raises UserError for a blank text, one beyond the model's context, a target for a model that
    does not translate, and as `attention_maps`.
    """
    check(
        target is None or target.strip() != "",
        "The target is empty; give a translation, or leave it out.",
    )
    ids = ids_read(model, tokenizer, text)
    end = tokenizer.eos_id
    if isinstance(model, Seq2Seq | Transformer):
        assert end is not None
        if target is None:
            written = beam_search(model, [[end]], end, sources=[ids], beam=beam)[0][0].tokens
        else:
            written = tokenizer.encode(target)
        read, written = _forced(tokenizer, written)
        names = {"source": labels(tokenizer, ids), "read": labels(tokenizer, read)}
        names["written"] = labels(tokenizer, written)
        maps = [_label(m, names) for m in attention_maps(model, ids, read)]
        return Look(text, target or tokenizer.decode(written[:-1]), maps)
    check(target is None, f"A {model.config.family} does not translate; leave out the target.")
    return Look(
        text,
        None,
        [_label(m, {"read": labels(tokenizer, ids)}) for m in attention_maps(model, ids)],
    )


def choose(
    maps: Sequence[LabelledMap],
    kind: Kind | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> list[LabelledMap]:
    """Return the maps of one kind, layer and head, each None meaning all.

    Of a translation model, no kind means attention over the source; and nothing at all its
    alignment, one map, as `alignment` has it. Raises UserError, naming what there is, for what the
    model does not have.
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
        f"The model has no {kind} attention; what it has is {' and '.join(kinds)} attention.",
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


def _forced(tokenizer: Tokenizer, target: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return what a decoder reads and what it should write to write `target`, whose end token may
    be missing."""
    if tokenizer.eos_id is None:
        raise UserError("The tokenizer has no end token, which a translation begins and ends with.")
    end = tokenizer.eos_id
    text = target[:-1] if target and target[-1] == end else target
    return [end, *text], [*text, end]


def _label(m: AttentionMap, names: dict[str, list[str]]) -> LabelledMap:
    if m.kind != "self":
        queries = names["written"]
        keys = names["source"]
    else:
        queries = keys = names["source" if m.path.startswith("encoder.") else "read"]
    return LabelledMap(
        m.path,
        m.kind,
        [f"head {i}" for i in range(m.weights.shape[1])],
        queries,
        keys,
        m.weights[0],
    )
