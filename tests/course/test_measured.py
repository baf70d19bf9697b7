"""The topics that train: their tasks, their measures and their tables. The trainings here take a
second."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seq2chat.config import BERTConfig, UserError
from seq2chat.course import (
    bidirectional,
    captions,
    fixed_vector,
    residual,
    rnn_vs_transformer,
    tasks,
)
from seq2chat.models.bert import BERT
from seq2chat.models.folder import n_parameters
from seq2chat.models.gpt import GPT
from seq2chat.text.batch import IGNORED
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.training.translation import translation


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_committed_results_match_the_present_models():
    """What the guide shows can be measured again by whoever reads it."""
    lines = (
        (Path(__file__).parents[2] / "benchmarks/results/lecture.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    records = [json.loads(line) for line in lines]
    for record in records:
        if record.get("kind") == "recall":
            r = rnn_vs_transformer
            shape = fixed_vector.equal_shape(
                record["model"], r.RECALL_WIDTH, r.VOCABULARY, r.LONGEST
            )
            assert (record["parameters"], tuple(record["distances"])) == (
                n_parameters(shape),
                r.DISTANCES,
            )
        if record["topic"] == "bidirectional":
            assert (record["text"], record["context"]) == (
                bidirectional.TEXT,
                bidirectional.CONTEXT,
            )
        if record["topic"] == "fixed-vector":
            v = fixed_vector
            shape = v.equal_shape(
                record["model"], record["d_model"], v.FIRST + v.SYMBOLS, v.LONGEST
            )
            assert (record["parameters"], tuple(record["lengths"])) == (
                n_parameters(shape),
                v.LENGTHS,
            )


def test_results_of_two_kinds_are_not_averaged():
    same = {"text": "world:3MB", "context": 16}
    records = [
        same | {"model": m, "steps": s} for m, s in zip(bidirectional.MODELS, (1, 2), strict=True)
    ]
    with pytest.raises(UserError, match="differ in steps \\(1 and 2\\); keep those of one"):
        bidirectional.lesson(records)


class TestResidual:
    def test_gradients_with_skips_match_the_model(self):
        """The stream that is measured is GPT's: its first gradient is that of what the blocks are
        given."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            norms = residual.gradients(3, "with skips", 0)
        caught = []

        def keep(block, inputs):
            inputs[0].retain_grad()
            caught.append(inputs[0])

        torch.manual_seed(0)
        model = GPT(residual.GPTConfig("gpt2", n_layer=3, **residual.SHAPE)).double()
        residual.init_weights(model)
        tokens, labels = torch.randint(
            residual.SHAPE["vocab_size"], (2, 8, residual.SHAPE["context"])
        ).unbind(0)
        for block in model.layers:
            block.register_forward_pre_hook(keep)
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()).backward()
        assert norms[:3] == pytest.approx([x.grad.norm().item() for x in caught], rel=1e-9)

    def test_without_skips_it_is_the_branches_alone(self):
        model = GPT(residual.GPTConfig("gpt2", n_layer=1, **residual.SHAPE)).double()
        [block] = model.layers
        x = torch.randn(2, 5, 64, dtype=torch.float64)
        attended = block(x, None, None, None)
        branch = block.self_attn(block.input_layernorm(x), None, None, None)
        both = branch + x
        torch.testing.assert_close(attended, both + block.mlp(block.post_attention_layernorm(both)))
        expected = block.mlp(block.post_attention_layernorm(branch))
        torch.testing.assert_close(residual.step(block, x, "without skips"), expected)
        plain = block.mlp(block.self_attn(x, None, None, None))
        torch.testing.assert_close(residual.step(block, x, "without skips and norms"), plain)

    def test_skips_keep_the_gradient_at_depth(self):
        ratio = {
            (depth, kind): (lambda norms: norms[0] / norms[-1])(residual.gradients(depth, kind, 0))
            for depth in (4, 48)
            for kind in residual.KINDS
        }
        assert ratio[48, "with skips"] == pytest.approx(ratio[4, "with skips"], rel=0.1)
        assert ratio[48, "without skips"] > 0.1 * ratio[4, "without skips"]
        assert ratio[48, "without skips and norms"] < 1e-20 * ratio[4, "without skips and norms"]

    @pytest.mark.parametrize("kind", ["with skips", "without skips"])
    def test_the_epsilon_of_norms_has_no_influence(self, kind, monkeypatch):
        expected = residual.gradients(24, kind, 0)
        monkeypatch.setitem(residual.SHAPE, "norm_eps", 1e3 * residual.EPSILON)
        assert residual.gradients(24, kind, 0) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("bad", [{"depths": ()}, {"depths": (4, 0)}, {"seeds": 0}])
    def test_bad_arguments(self, bad):
        with pytest.raises(UserError):
            residual.lesson(**bad)


class TestTasks:
    def test_copy_and_reverse(self):
        batch = tasks.repetition("reverse", torch.tensor([3, 1]), 5, chance())
        a, b, c, d = *batch.source[0, :3].tolist(), int(batch.source[1, 0])
        assert batch.source.tolist() == [[a, b, c, 0], [d, 0, 1, 1]]
        assert batch.target.tolist() == [[0, c, b, a], [0, d, 1, 1]]
        assert batch.labels.tolist() == [[c, b, a, 0], [d, 0, IGNORED, IGNORED]]
        assert batch.source_mask.tolist() == [[True] * 4, [True, True, False, False]]
        copy = tasks.repetition("copy", torch.tensor([3, 1]), 5, chance())
        assert copy.labels.tolist() == [[a, b, c, 0], [d, 0, IGNORED, IGNORED]]

    @pytest.mark.parametrize("name", fixed_vector.MODELS)
    def test_exact_match_is_that_of_greedy_decoding(self, name):
        """Half trained, so that some rows are right: each is right just when greedy decoding writes
        its target."""
        config = fixed_vector.shape(name, 16, 8, 8)
        model = tasks.make(config, 0)
        draw = chance()

        def batches():
            while True:
                yield tasks.repetition("copy", torch.randint(1, 5, (32,), generator=draw), 6, draw)

        tasks.fit(model, translation, batches(), 40, 1e-2)
        batch = tasks.repetition("copy", torch.randint(1, 5, (40,), generator=draw), 6, draw)
        right = []
        for i in range(40):
            wanted = batch.labels[i][batch.labels[i] != IGNORED].tolist()
            with torch.inference_mode():
                state = model.start(batch.source[i : i + 1, : len(wanted)])
                token = torch.tensor([[tasks.EOS]])
                written = []
                for _ in wanted:
                    logits, state = model.step(token, state)
                    token = logits[:, -1:].argmax(-1)
                    written.append(token.item())
            right.append(written == wanted)
        assert tasks.exact_match(model, batch) == pytest.approx(sum(right) / 40)
        assert 0 < sum(right) < 40

    def test_fit_follows_its_schedule_and_repeats(self):
        """Two fits from one seed give the same weights, progress is reported for each step, and the
        last rate is near zero."""
        config = fixed_vector.shape("fixed", 16, 8, 8)
        draws = [tasks.repetition("copy", torch.full((8,), 3), 6, chance(i)) for i in range(10)]
        told: list[tuple[int, int]] = []
        models = []
        for _ in range(2):
            models.append(tasks.make(config, 7))
            tasks.fit(
                models[-1],
                translation,
                iter(draws),
                10,
                1e-2,
                lambda step, n: told.append((step, n)),
            )
        assert told == [(i, 10) for i in range(1, 11)] * 2
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(a, b)
        assert not models[0].training
        assert not torch.equal(
            models[0].embed_tokens.weight, tasks.make(config, 7).embed_tokens.weight
        )


class TestFixedVector:
    @pytest.mark.parametrize("d_model", [64, 128])
    def test_models_have_equally_many_parameters(self, d_model):
        shapes = [fixed_vector.equal_shape(name, d_model, 18, 20) for name in fixed_vector.MODELS]
        counts = [n_parameters(shape) for shape in shapes]
        assert counts[0] == counts[1] == n_parameters(fixed_vector.shape("fixed", d_model, 18, 20))
        assert max(counts) < 1.06 * min(counts)

    def test_copying_a_reversed_source_is_reversing(self):
        """A network that reads its source last first and copies is one that reverses: the same
        logits, to the bit."""
        plain, reversed_ = (
            tasks.make(fixed_vector.shape(name, 16, 8, 8), 0) for name in fixed_vector.MODELS[:2]
        )
        lengths = torch.tensor([5, 5])
        copy = tasks.repetition("copy", lengths, 6, chance())
        # The end token leads what is read last first.
        turned = torch.cat([copy.source[:, -1:], copy.source[:, :-1].flip(1)], dim=1)
        torch.testing.assert_close(plain(turned, copy.target), reversed_(copy.source, copy.target))

    def test_a_case_is_measured_and_shown(self, monkeypatch):
        for name, small in {"LENGTHS": (1, 4, 8), "BATCH": 4, "UNSEEN": 5, "LONGEST": 8}.items():
            monkeypatch.setattr(fixed_vector, name, small)
        cases = [
            fixed_vector.Case("copy", name, 16, seed)
            for name in fixed_vector.MODELS
            for seed in range(2)
        ]
        records = [fixed_vector.measure(case, 3) for case in cases]
        again = fixed_vector.measure(cases[0], 3)
        assert again == records[0]
        records = json.loads(json.dumps(records))
        assert {len(r["exact"]) for r in records} == {len(fixed_vector.LENGTHS)}
        [table] = fixed_vector.lesson(records).tables
        assert [row[0] for row in table.rows] == list(fixed_vector.MODELS)
        assert list(table.columns)[2:] == ["4", "8"]

    def test_the_table_tells_mean_and_range_of_the_seeds(self):
        record = {
            "task": "copy",
            "model": "fixed",
            "d_model": 8,
            "seed": 0,
            "parameters": 9,
            "steps": 1,
        }
        record |= {"lengths": [4, 8], "exact": [0.5, 0.25]}
        other = record | {"seed": 1, "exact": [1.0, 0.25]}
        [table] = fixed_vector.lesson([record, other]).tables
        assert table.rows == [["fixed", 9, "0.75 (0.50 – 1.00)", "0.25 (0.25 – 0.25)"]]
        [axes] = fixed_vector.lesson([record, other]).figure.axes
        assert axes.lines[0].get_xydata().tolist() == [[4, 0.75], [8, 0.25]]
        assert {tuple(corner) for corner in axes.collections[0].get_paths()[0].vertices} == {
            (4, 0.5),
            (4, 1),
            (8, 0.25),
        }
        assert "2 seeds: mean (lowest – highest)" in fixed_vector.lesson([record, other]).notes[0]
        assert "one seed" in fixed_vector.lesson([record]).notes[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"task": "cpy"}, "write one of copy, reverse"),
            ({"model": "gpt"}, "'gpt'"),
            ({"d_model": 4}, "at least 8"),
        ],
    )
    def test_bad_cases(self, change, message):
        with pytest.raises(UserError, match=message):
            replace(fixed_vector.Case("copy", "fixed", 64, 0), **change)

    def test_nothing_to_show(self):
        for module in (fixed_vector, captions, bidirectional, rnn_vs_transformer):
            with pytest.raises(UserError, match="nothing to show"):
                module.lesson([])


class TestRnnVsTransformer:
    def test_the_pair_asked_for_stands_at_its_distance(self):
        """Every key stands once, in one symbol with its value; the end names one of them, the label
        is its value."""
        r = rnn_vs_transformer
        distances = torch.tensor([0, 10, r.LONGEST - 2] * 100)
        batch = r.recall(distances, chance())
        asked_keys = set()
        for row, distance, label in zip(
            batch.source.tolist(), distances.tolist(), batch.labels.tolist(), strict=True
        ):
            *row, question, end = row
            assert (end, label[1]) == (tasks.EOS, tasks.EOS)
            assert 0 <= question - r.FIRST_KEY < r.KEYS
            found = {
                i: divmod(t - r.FIRST_PAIR, r.VALUES)
                for i, t in enumerate(row)
                if t < r.FIRST_NOISE
            }
            assert sorted(key for key, _ in found.values()) == list(range(r.KEYS))
            assert all(
                r.FIRST_NOISE <= t < r.VOCABULARY for i, t in enumerate(row) if i not in found
            )
            key, value = found[len(row) - 1 - distance]
            assert (r.FIRST_KEY + key, r.FIRST_VALUE + value) == (question, label[0])
            asked_keys.add(key)
        assert len(asked_keys) > 1

    def test_records_and_lesson(self, monkeypatch):
        for name, small in {
            "TOKENS": 64,
            "LONGEST": 12,
            "BATCH": 4,
            "UNSEEN": 5,
            "DISTANCES": (0, 9),
        }.items():
            monkeypatch.setattr(rnn_vs_transformer, name, small)
        monkeypatch.setattr(rnn_vs_transformer, "RECALL_WIDTH", 16)
        speed = [
            rnn_vs_transformer.measure_speed(model, length, 1, 16)
            for model in rnn_vs_transformer.MODELS
            for length in (16, 32)
        ]
        assert all(record["microseconds"] > 0 for record in speed)
        runs = [
            rnn_vs_transformer.measure_recall(tasks.Case(model, 0), 2)
            for model in rnn_vs_transformer.MODELS
        ]
        shown = rnn_vs_transformer.lesson(json.loads(json.dumps(speed + runs)))
        ratio = shown.tables[0].rows[-1][2:]
        assert ratio == pytest.approx(
            [speed[i]["microseconds"] / speed[i + 2]["microseconds"] for i in range(2)]
        )
        assert [len(row) for row in shown.tables[1].rows] == [
            2 + len(rnn_vs_transformer.DISTANCES)
        ] * 2
        for part in (speed, runs, speed[:2] + runs, speed + runs[:1]):
            with pytest.raises(UserError, match="nothing to show"):
                rnn_vs_transformer.lesson(part)


class TestBidirectional:
    def test_hidden_future_moves_no_earlier_logit(self):
        model = (
            BERT(BERTConfig(20, context=8, n_layer=2, n_head=2, d_model=8, dropout=0.0))
            .double()
            .eval()
        )
        tokens = torch.randint(20, (1, 6), generator=chance())
        other = tokens.clone()
        other[0, -1] = (other[0, -1] + 1) % 20
        assert not torch.allclose(model(tokens)[:, :-1], model(other)[:, :-1])
        bidirectional.hide_future(model)
        assert torch.equal(model(tokens)[:, :-1], model(other)[:, :-1])

    def test_both_models_begin_and_are_asked_alike(self, monkeypatch):
        """The parameters are equal in number and the unseen labels the same; only what is seen
        differs."""
        monkeypatch.setitem(bidirectional.SHAPE, "d_model", 16)
        records = [bidirectional.measure(tasks.Case(model, 0), 2) for model in bidirectional.MODELS]
        assert records[0]["parameters"] == records[1]["parameters"]
        assert records[0]["unigram"] == records[1]["unigram"]
        assert records[0]["loss"] != records[1]["loss"]
        shown = bidirectional.lesson(json.loads(json.dumps(records)))
        assert [row[0] for row in shown.tables[0].rows] == [
            "both sides",
            "left only",
            "the most common token",
        ]

    @pytest.mark.parametrize(
        ("accuracies", "told"),
        [
            ([(0.48, 0.5), (0.44, 0.45)], "the model that sees both sides predicts better"),
            ([(0.44, 0.45), (0.48, 0.5)], "the model that sees left only predicts better"),
            ([(0.44, 0.5), (0.43, 0.45)], "neither predicts better"),  # by seed, one or the other
            (
                [(0.124, 0.124), (0.122, 0.122)],
                "neither predicts better",
            ),  # 0.12 both, in the table
        ],
    )
    def test_a_difference_is_told_only_where_it_is_shown(self, accuracies, told):
        same = {
            "text": "t",
            "context": 16,
            "steps": 1,
            "parameters": 1,
            "unigram": 0.1,
            "loss": 1.0,
        }
        records = [
            same | {"model": model, "seed": seed, "accuracy": accuracy}
            for model, values in zip(bidirectional.MODELS, accuracies, strict=True)
            for seed, accuracy in enumerate(values)
        ]
        assert told in bidirectional.lesson(records).notes[-1]

    def test_accuracy_and_unigram_by_hand(self):
        tokenizer, train, val = bidirectional.text()
        batches = list(bidirectional.masked_evaluation_batches(val, 16, 4, tokenizer))[:2]
        model = BERT(
            BERTConfig(tokenizer.vocab_size, context=16, n_layer=1, n_head=1, d_model=8)
        ).eval()
        right = 0
        total = 0
        labels = []
        for batch in batches:
            guesses = model(batch.target).argmax(-1)
            for guess, label in zip(
                guesses.flatten().tolist(), batch.labels.flatten().tolist(), strict=True
            ):
                if label != IGNORED:
                    right = right + (guess == label)
                    total = total + 1
                    labels.append(label)
        assert bidirectional.accuracy(model, batches)[0] == pytest.approx(right / total)
        stream = train.read(0, train.n_tokens)
        values, counts = np.unique(stream, return_counts=True)
        assert bidirectional.unigram(batches, train) == labels.count(values[counts.argmax()]) / len(
            labels
        )


class TestCaptions:
    @pytest.fixture
    def pairs(self, monkeypatch):
        english = ["a dog runs .", "two men sit .", "a red car ."] * 140
        german = ["ein hund rennt .", "zwei männer sitzen .", "ein rotes auto ."] * 140
        tokenizer = ByteBPE.train([*english, *german], 300)
        sides = tuple([tokenizer.encode(f" {text}") for text in side] for side in (english, german))
        monkeypatch.setattr(captions, "text", lambda: (tokenizer, sides, sides))
        return tokenizer, sides

    def test_captions_are_joined_in_order(self, pairs):
        tokenizer, sides = pairs
        batch = captions.joined(sides, [[0, 1], [2]], tokenizer)
        source = [t for t in batch.source[0].tolist() if t != tokenizer.pad_id]
        assert tokenizer.decode(source[:-1]) == " a dog runs . two men sit ."
        assert source[-1] == tokenizer.eos_id
        labels = [t for t in batch.labels[1].tolist() if t != IGNORED]
        assert tokenizer.decode(labels[:-1]) == " ein rotes auto ."

    def test_a_perfect_translator_has_bleu_100(self, pairs, monkeypatch):
        """Greedy translations are compared with the true ones, end tokens and padding left out."""
        tokenizer, sides = pairs
        case = fixed_vector.Case("captions", "attention", 32, 0)
        for name, small in {"UNSEEN": 3, "BATCH": 4, "LONGEST": 60}.items():
            monkeypatch.setattr(captions, name, small)
        record = captions.measure(case, 20)
        assert record["captions"] == [1, 2, 3, 4]
        assert max(record["loss"]) < math.log(tokenizer.vocab_size)
        batch = captions.joined(sides, [[0, 1], [2, 0]], tokenizer)

        def right(model, prompts, sampling, end_tokens, sources):
            rows = [[t for t in row if t != IGNORED] for row in batch.labels.tolist()]
            return [[type("Completion", (), {"tokens": row})] for row in rows]

        monkeypatch.setattr(captions, "generate", right)
        model = tasks.make(
            fixed_vector.equal_shape("attention", 32, tokenizer.vocab_size, captions.LONGEST), 0
        )
        assert captions.score(model, batch, tokenizer)[1] == pytest.approx(100)
        shown = captions.lesson(json.loads(json.dumps([record])))
        assert [row[0] for row in shown.tables[0].rows] == ["attention"]
