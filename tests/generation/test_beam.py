"""Beam search against its definition, against exhaustive search, and with every kind of model that
generates."""

from itertools import pairwise

import pytest
import torch

from seq2chat.config import GPTConfig, Seq2SeqConfig, TransformerConfig, UserError
from seq2chat.generation.beam import beam_search, penalty_at
from seq2chat.generation.decode import generate
from seq2chat.generation.sampling import SamplingConfig
from seq2chat.generation.score import score
from seq2chat.models.gpt import GPT
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer

END = 0
PENALTIES = [("gnmt", None), ("gnmt", 1.5), ("average", None), ("average", 0.5), ("none", None)]
each_penalty = pytest.mark.parametrize(("kind", "alpha"), PENALTIES)


class Table:
    """A language model small enough for exhaustive search.

    Its logits depend on all tokens of the row, but it reads only the newest. The others are in the
    state, where a wrong `reorder` would mix them up.
    """

    context, device, training, reads_source = 12, torch.device("cpu"), False, False

    def __init__(self, seed, vocab=4, sharpness=1.0):
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(997, vocab, generator=generator, dtype=torch.float64) * sharpness
        self.steps = 0

    def train(self, mode=True):
        self.training = mode

    def start(self, padding=None):
        return History()

    def step(self, tokens, state):
        self.steps += 1
        logits = []
        for column in tokens.unbind(1):
            state.history = (
                column + 1 if state.history is None else (state.history * 31 + column + 1) % 997
            )
            logits.append(self.logits[state.history])
        return torch.stack(logits, dim=1), state


class History:
    history = None

    def reorder(self, rows):
        self.history = self.history[rows]


def next_logprobs(model, tokens):
    logits, _ = model.step(torch.tensor([tokens]), model.start())
    return logits[0, -1].log_softmax(-1).tolist()


def exhaustive(model, prompt, kind, alpha, min_length, max_length):
    """(tokens, score, finished) of every sequence there is, best first, the unfinished ones
    last."""
    alpha = {"gnmt": 0.6, "average": 1.0, "none": 0.0}[kind] if alpha is None else alpha
    results = []

    def grow(tokens, total):
        for token, logprob in enumerate(next_logprobs(model, prompt + tokens)):
            longer, sum_ = [*tokens, token], total + logprob
            value = sum_ / penalty_at(len(longer), kind, alpha)
            if token == END:
                if len(longer) >= min_length:
                    results.append((longer, value, True))
            elif len(longer) == max_length:
                results.append((longer, value, False))
            else:
                grow(longer, sum_)

    grow([], 0.0)
    return sorted(results, key=lambda h: (not h[2], -h[1]))


def plain(model, prompt, beam, kind, alpha, min_length, max_length):
    """Beam search as it is defined, one hypothesis after the other, going on until `beam` have
    ended or all are cut."""
    running, ended = [([], 0.0)], []
    for length in range(1, max_length + 1):
        extended = [
            ([*tokens, token], total + logprob)
            for tokens, total in running
            for token, logprob in enumerate(next_logprobs(model, prompt + tokens))
            if token != END or length >= min_length
        ]
        extended.sort(key=lambda h: -h[1])
        ended += [
            (t, s / penalty_at(length, kind, alpha), True)
            for t, s in extended[:beam]
            if t[-1] == END
        ]
        running = [h for h in extended if h[0][-1] != END][:beam]
        if len(ended) >= beam:
            running = []
            break
    ended += [(t, s / penalty_at(max_length, kind, alpha), False) for t, s in running]
    return sorted(ended, key=lambda h: (not h[2], -h[1]))


def same(hypotheses, expected):
    assert [h.tokens for h in hypotheses] == [tokens for tokens, _, _ in expected]
    assert [h.score for h in hypotheses] == pytest.approx(
        [value for _, value, _ in expected], abs=1e-9
    )
    assert [h.finished for h in hypotheses] == [finished for _, _, finished in expected]


@each_penalty
@pytest.mark.parametrize("min_length", [0, 3])
def test_widest_beam_is_exhaustive_search(kind, alpha, min_length):
    options = {"length_penalty": kind, "alpha": alpha, "min_length": min_length, "max_length": 4}
    for seed in range(6):
        model = Table(seed)
        everything = exhaustive(model, [1, 2], kind, alpha, min_length, 4)
        (hypotheses,) = beam_search(model, [[1, 2]], END, beam=300, n_best=300, **options)
        same(hypotheses, everything)
        for n_best in (1, 7):  # searched no further than needed
            (hypotheses,) = beam_search(model, [[1, 2]], END, beam=300, n_best=n_best, **options)
            same(hypotheses, everything[:n_best])


@pytest.mark.parametrize(
    ("kind", "alpha"), [("gnmt", 0.6), ("gnmt", 1.5), ("average", 1.0), ("none", 0.0)]
)
@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_narrow_beam_finds_what_its_definition_finds(kind, alpha, beam):
    options = {"length_penalty": kind, "alpha": alpha, "max_length": 7}
    prompts = [[1, 2], [3, 1], [2, 2]]
    for seed in range(8):
        model, min_length = Table(seed, sharpness=2.0), seed % 4
        results = beam_search(
            model, prompts, END, beam=beam, n_best=beam, min_length=min_length, **options
        )
        for prompt, hypotheses in zip(prompts, results, strict=True):
            same(hypotheses, plain(model, prompt, beam, kind, alpha, min_length, 7)[:beam])


def test_n_best_begins_with_the_best():
    """The search for one best ends sooner."""
    sooner = 0
    for seed in range(12):
        model = Table(seed, sharpness=2.0)
        ((best,),) = beam_search(model, [[1]], END, beam=4)
        steps, model.steps = model.steps, 0
        (options_list,) = beam_search(model, [[1]], END, beam=4, n_best=4)
        assert options_list[0] == best
        assert all(h.score >= other.score for h, other in pairwise(options_list))
        sooner += steps < model.steps
    assert sooner > 3


def test_penalties_by_name():
    assert penalty_at(7, "gnmt", 0.6) == pytest.approx(2**0.6)  # ((5 + 7) / 6)^0.6
    assert penalty_at(9, "average", 1.0) == 9
    assert penalty_at(9, "average", 0.5) == pytest.approx(3)
    assert penalty_at(9, "none", 0.0) == 1
    assert penalty_at(1, "gnmt", 0.6) == penalty_at(30, "gnmt", 0.0) == 1


def test_lengths_are_bounded_for_each_input_by_itself():
    model = Table(3, vocab=5)
    model.logits[:, END] -= 50.0  # it would never end
    short, long = beam_search(model, [[1] * 4, [1] * 10], END, beam=2)
    assert (len(short[0].tokens), len(long[0].tokens)) == (8, 2)
    assert not short[0].finished
    model.logits[:, END] += 100.0  # it would end at once
    ((h,),) = beam_search(model, [[1]], END, beam=2, min_length=5)
    assert len(h.tokens) == 5
    assert h.tokens.index(END) == 4


SHAPE = {"vocab_size": 13, "d_model": 16}
MODELS = {
    "fixed": Seq2Seq(Seq2SeqConfig(attention="fixed", cell="lstm", d_embed=8, **SHAPE)),
    "additive": Seq2Seq(Seq2SeqConfig(attention="additive", d_embed=8, **SHAPE)),
    "transformer": Transformer(
        TransformerConfig(n_layer=2, n_head=2, context=80, tie_embeddings=False, **SHAPE)
    ),
    "gpt": GPT(GPTConfig(n_layer=2, n_head=2, context=30, **SHAPE)),
}
# Of weights that end some hypotheses, not all.
SEEDS = {"fixed": 32, "additive": 0, "transformer": 19, "gpt": 14}
SOURCES = [[5, 3, 2, 9, END], [7, END], [4, 4, 9, 1, 2, 8, 11, END], [2, 3, END]]
each_model = pytest.mark.parametrize("name", MODELS)


def inputs(name):
    """A model with wild weights, prompts and sources."""
    model = MODELS[name].double().eval()
    torch.manual_seed(SEEDS[name])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return (model, SOURCES, None) if name == "gpt" else (model, [[END]] * 4, SOURCES)


@each_model
def test_a_beam_of_one_is_greedy(name):
    model, prompts, sources = inputs(name)
    greedy = generate(model, prompts, SamplingConfig(12, temperature=0.0), [END], sources=sources)
    for (h,), (c,) in zip(
        beam_search(model, prompts, END, sources, beam=1, max_length=12), greedy, strict=True
    ):
        assert h.tokens == c.tokens
        assert h.logprobs == pytest.approx(c.logprobs, abs=1e-9)
        assert h.finished == (c.finish == "stop")


@each_model
def test_a_batch_gives_what_its_inputs_give_alone(name):
    model, prompts, sources = inputs(name)
    options = {"beam": 4, "n_best": 4, "max_length": 10}
    together = beam_search(model, prompts, END, sources, **options)
    # Inputs leave the batch at different times.
    assert len({len(hypotheses[0].tokens) for hypotheses in together}) > 1
    for i, hypotheses in enumerate(together):
        (alone,) = beam_search(
            model, prompts[i : i + 1], END, sources and sources[i : i + 1], **options
        )
        same(hypotheses, [(h.tokens, h.score, h.finished) for h in alone])


@each_model
def test_logprobs_equal_forced_decoding(name):
    model, prompts, sources = inputs(name)
    results = beam_search(
        model, prompts, END, sources, beam=5, n_best=5, min_length=3, max_length=9
    )
    for i, hypotheses in enumerate(results):
        assert len(hypotheses) == 5
        n = len(hypotheses)
        forced = score(
            model, [prompts[i]] * n, [h.tokens for h in hypotheses], sources and [sources[i]] * n
        )
        for h, expected in zip(hypotheses, forced, strict=True):
            assert h.logprobs == pytest.approx(expected, abs=1e-9)
            assert h.score == pytest.approx(
                sum(expected) / ((5 + len(expected)) / 6) ** 0.6, abs=1e-9
            )


@pytest.mark.parametrize("beyond", [-50, 0, 10])
def test_translation_length_is_bounded(beyond):
    """It is at most 50 tokens longer than its source or the minimum length."""
    model, prompts, sources = inputs("additive")
    lengths = set()
    for prompt, source in zip(prompts, sources, strict=True):
        least = max(0, len(source) + beyond)
        [[longest]] = beam_search(model, [prompt], END, [source], beam=2, min_length=least)
        most = max(least, len(source)) + 50
        assert least <= len(longest.tokens) <= most
        assert longest.finished or len(longest.tokens) == most
        lengths.add(longest.finished)
    assert False in lengths or beyond < 0, "none of them shows the limit"


def test_training_mode_comes_back():
    model, prompts, sources = inputs("additive")
    expected = beam_search(model, prompts, END, sources)
    assert beam_search(model.train(), prompts, END, sources) == expected
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"n_best": 6}, "n_best is 6; write a number from 1 to the beam of 5"),
        ({"n_best": 0}, "n_best is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": 0.7, "length_penalty": "none"}, "no effect with length_penalty none"),
        ({"min_length": -1}, "min_length is -1"),
        ({"max_length": -1}, "max_length is -1"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is above max_length 8"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        beam_search(Table(0), [[1]], END, **options)
