"""The topics without training: every number of the lecture, and each found again in another way."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from seq2chat.config import (
    GPT3,
    BERTConfig,
    GPTConfig,
    RewardConfig,
    Seq2SeqConfig,
    TransformerConfig,
    UserError,
)
from seq2chat.course import (
    attention,
    decoding,
    embedding,
    gpt3,
    lesson,
    lsi,
    masks,
    multihead,
    positions,
)
from seq2chat.interpret.reading import input_ids
from seq2chat.models.bert import BERT
from seq2chat.models.gpt import GPT
from seq2chat.models.reward import RewardModel
from seq2chat.models.seq2seq import Seq2Seq
from seq2chat.models.transformer import Transformer
from seq2chat.text.byte_bpe import ByteBPE
from seq2chat.text.wordpiece import WordPiece

LECTURE = attention.LECTURE


def table(shown: lesson.Lesson, title: str) -> list[list]:
    """The rows of the table whose title begins so."""
    return next(t for t in shown.tables if t.title.startswith(title)).rows


def numbers(shown: lesson.Lesson, title: str) -> np.ndarray:
    return np.array(
        [[cell for cell in row if not isinstance(cell, str)] for row in table(shown, title)], float
    )


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class TestAttention:
    def test_every_step_of_the_lecture(self):
        shown = attention.lesson()
        assert numbers(shown, "scores q")[0].tolist() == [628, 631, 628, 625]
        assert numbers(shown, "scores /")[0].tolist() == [314, 315.5, 314, 312.5]
        assert numbers(shown, "weights")[0].round(3).tolist() == [0.149, 0.668, 0.149, 0.033]
        assert numbers(shown, "Z").round(3).tolist() == [
            [8.265, 6.398, 8.370, 6.967],
            [8.088, 6.097, 8.817, 6.998],
            [8.265, 6.398, 8.370, 6.967],
            [8.250, 7.250, 7.750, 6.750],
        ]

    def test_is_the_formula_in_numpy(self):
        x, w_q, w_k, w_v = (t.numpy() for t in (LECTURE.x, LECTURE.w_q, LECTURE.w_k, LECTURE.w_v))
        assert w_v.tolist() == [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
        z = softmax((x @ w_q) @ (x @ w_k).T / 2) @ (x @ w_v)
        np.testing.assert_allclose(numbers(attention.lesson(), "Z"), z, rtol=1e-12)

    def test_errata_are_the_lectures_two_misprints(self):
        """The lecture's Z differs from ours, rounded as it is, exactly where the errata say."""
        printed = np.array(
            [
                [8.265, 6.398, 8.370, 6.967],
                [8.088, 6.097, 8.817, 7.000],
                [8.265, 6.398, 8.370, 6.967],
                [9.250, 7.250, 7.750, 6.750],
            ]
        )
        ours = LECTURE.attend()[0].numpy().round(3)
        wrong = {(int(i), int(j)): printed[i, j] for i, j in np.argwhere(printed != ours)}
        assert wrong == attention.ERRATA
        notes = "\n".join(attention.lesson().notes)
        assert "prints 7.000, arithmetic 6.998" in notes
        assert "prints 9.250, arithmetic 8.250" in notes

    def test_causal_hides_what_comes_after(self):
        shown = attention.lesson(causal=True)
        weights = numbers(shown, "weights")
        assert (weights[np.triu_indices(4, 1)] == 0).all()
        scores = (LECTURE.q @ LECTURE.k.T / 2).numpy()
        np.testing.assert_allclose(weights[2, :3], softmax(scores[2, :3]), rtol=1e-12)
        assert table(shown, "scores /")[0][2:] == ["-∞"] * 3
        assert json.loads(json.dumps(shown.values(), allow_nan=False)) == shown.values()
        assert "Erratum" not in str(shown.notes)

    def test_own_matrices_from_a_file(self, tmp_path):
        file = tmp_path / "own.toml"
        file.write_text(
            'names = ["u", "w"]\nx = [[1, 0], [0, 1.5]]\nw_q = [[1], [2]]\nw_k = [[3], [-1]]\n'
            "w_v = [[1, 2, 3], [4, 5, 6]]"
        )
        shown = attention.lesson(attention.read_example(file))
        x, w_q, w_k, w_v = (
            np.array(m)
            for m in ([[1, 0], [0, 1.5]], [[1], [2]], [[3], [-1]], [[1, 2, 3], [4, 5, 6]])
        )
        np.testing.assert_allclose(
            numbers(shown, "Z"), softmax((x @ w_q) @ (x @ w_k).T) @ (x @ w_v), rtol=1e-12
        )
        assert [row[0] for row in table(shown, "Z")] == ["u", "w"]
        assert "Erratum" not in str(shown.notes)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"w_q": "[[1, 2]]"}, "w_q has 1 rows, but each row of x has 2 numbers"),
            ({"w_k": "[[1, 2], [3, 4]]"}, "w_q has 1 columns and w_k 2"),
            ({"x": "[[1, 2], [3]]"}, "x is [[1, 2], [3]]; write a matrix"),
            ({"x": '"one"'}, "x is 'one'; write a matrix"),
            ({"x": "[[nan, 1]]"}, "write a matrix"),
            ({"w_v": "[]"}, "w_v is []; write a matrix"),
            ({"w_o": "[[1]]"}, "unknown key w_o; write x, w_q, w_k, w_v, names"),
            ({"names": '["a"]'}, "write one string for each of the 2 rows"),
        ],
    )
    def test_a_mistake_in_the_file_is_named(self, tmp_path, change, message):
        good = {
            "x": "[[1, 0], [0, 1]]",
            "w_q": "[[1], [2]]",
            "w_k": "[[3], [1]]",
            "w_v": "[[1], [4]]",
        }
        file = tmp_path / "own.toml"
        file.write_text("\n".join(f"{key} = {value}" for key, value in (good | change).items()))
        with pytest.raises(UserError) as error:
            attention.read_example(file)
        assert message in str(error.value)
        assert str(file) in str(error.value)

    def test_a_missing_matrix_and_a_missing_file(self, tmp_path):
        (tmp_path / "own.toml").write_text("x = [[1]]")
        with pytest.raises(UserError, match="w_q is None; write a matrix"):
            attention.read_example(tmp_path / "own.toml")
        with pytest.raises(UserError, match="There is no file"):
            attention.read_example(tmp_path / "none.toml")


class TestMultihead:
    def test_is_torch_multi_head_attention(self):
        """With W^O the identity, torch's own multi-head attention concatenates the same
        contexts."""
        eye = torch.eye(4, dtype=torch.float64)
        out, weights = torch.nn.functional.multi_head_attention_forward(
            *(LECTURE.x[:, None],) * 3,
            4,
            2,
            torch.cat([LECTURE.w_q.T, LECTURE.w_k.T, LECTURE.w_v.T]),
            None,
            None,
            None,
            False,
            0.0,
            eye,
            None,
            average_attn_weights=False,
        )
        shown = multihead.lesson()
        np.testing.assert_allclose(numbers(shown, "concat"), out[:, 0].numpy(), rtol=1e-12)
        for head in range(2):
            np.testing.assert_allclose(
                numbers(shown, f"head {head + 1}: weights ="), weights[0, head].numpy(), rtol=1e-10
            )

    def test_one_head_is_plain_attention(self):
        context, weights = multihead.attend(LECTURE, 1)
        z, alone = LECTURE.attend()
        torch.testing.assert_close(context[0], z)
        torch.testing.assert_close(weights[0], alone)

    def test_many_heads_cost_what_one_costs(self):
        rows = {row[0]: row[1:] for row in table(multihead.lesson(), "shapes")}
        layer = torch.nn.MultiheadAttention(512, 8, bias=False)
        assert rows["parameters of the layer"] == [sum(p.numel() for p in layer.parameters())] * 2
        assert rows["d_k per head"] == [512, 64]

    @pytest.mark.parametrize("n_head", [0, 3, -2])
    def test_heads_that_do_not_divide_the_columns(self, n_head):
        with pytest.raises(UserError, match="cannot be split"):
            multihead.lesson(n_head=n_head)


class TestLsi:
    def test_the_matrix_and_its_decomposition(self):
        rows = ["".join(str(int(n)) for n in row) for row in lsi.RATINGS.tolist()]
        assert rows == ["11100", "33300", "44400", "55500", "02044", "00055", "01022"]
        u, s, v = lsi.topics(lsi.RATINGS, 5)
        torch.testing.assert_close(u @ torch.diag(s) @ v.T, lsi.RATINGS, atol=1e-12, rtol=0)
        eigenvalues = np.sort(np.linalg.eigvalsh((lsi.RATINGS.T @ lsi.RATINGS).numpy()))[::-1]
        np.testing.assert_allclose(s.numpy() ** 2, eigenvalues, atol=1e-10)
        assert (s > 0).tolist() == [True, True, True, False, False]

    def test_people_without_a_common_movie_become_similar(self):
        shown = lsi.lesson()
        before, after, learned = (row[1:] for row in table(shown, "their similarity"))
        assert before == [0.0, 0.0]
        assert round(after[1], 2) == round(learned[1], 2) == 0.99
        # By hand from the textbook's V, rounded to two digits there.
        v = np.array([[0.56, 0.12], [0.59, -0.02], [0.56, 0.12], [0.09, -0.69], [0.09, -0.69]])
        p8 = np.array([5, 0, 0, 0, 0]) @ v
        p9 = np.array([0, 4, 5, 0, 0]) @ v
        assert after[0] == pytest.approx(p8 @ p9, rel=0.02)
        assert after[1] == pytest.approx(
            p8 @ p9 / np.linalg.norm(p8) / np.linalg.norm(p9), abs=0.005
        )

    def test_learned_queries_and_keys_find_the_topics(self):
        _, _, v = lsi.topics(lsi.RATINGS, 2)
        for seed in range(3):
            w_q, w_k = lsi.learn_query_key(lsi.RATINGS, 2, seed)
            torch.testing.assert_close(w_q @ w_k.T, v @ v.T, atol=1e-3, rtol=0)
            assert not torch.allclose(w_q, v, atol=0.1), (
                "they need not be V itself: only their product is determined"
            )


class TestPositions:
    def test_the_lectures_case(self):
        shown = positions.lesson()
        assert numbers(shown, "the lecture's case").round(2).tolist() == [
            [0, 1, 0, 1],
            [0.84, 0.54, 0.10, 1.0],
            [0.91, -0.42, 0.20, 0.98],
            [0.14, -0.99, 0.30, 0.96],
        ]

    @pytest.mark.parametrize(("d_model", "n"), [(4, 100.0), (6, 10_000.0), (128, 50.0)])
    def test_is_the_papers_formula(self, d_model, n):
        expected = [
            [
                (math.cos if i % 2 else math.sin)(pos / n ** (2 * (i // 2) / d_model))
                for i in range(d_model)
            ]
            for pos in range(9)
        ]
        np.testing.assert_allclose(positions.encoding(9, d_model, n).numpy(), expected, atol=1e-14)

    def test_a_dot_product_depends_on_the_distance_alone(self):
        dots, cosines = positions.similarities(positions.encoding(30, 64))
        for distance in range(30):
            diagonal = dots.diagonal(distance)
            assert (diagonal - diagonal[0]).abs().max() < 1e-12
        torch.testing.assert_close(cosines, dots / 32)  # every position has length √(d/2)

    def test_lengths(self):
        lengths = [row[1] for row in positions.magnitudes(512)]
        assert lengths[0] == pytest.approx(16, abs=1e-12)
        assert lengths[1] == pytest.approx(1, rel=0.01)
        assert lengths[2] == pytest.approx(512**0.5, rel=0.01)

    def test_a_models_own_lengths(self):
        model = GPT(GPTConfig("gpt2", vocab_size=7, context=5, n_layer=1, n_head=1, d_model=4))
        rows = positions.own_magnitudes(model)
        assert [row[0] for row in rows] == ["embed_tokens", "embed_positions"]
        assert rows[1][1] == pytest.approx(
            model.embed_positions.weight.double().norm(dim=1).mean().item()
        )

    def test_with_a_model_the_tokens_it_reads_are_placed(self):
        model, tokenizer = embedding.untrained()
        shown = positions.lesson("am I", run=(model, tokenizer))
        assert [row[0] for row in table(shown, "PE")] == [
            "0 <|endoftext|>",
            "1 a",
            "2 m",
            "3 ␣",
            "4 I",
        ]
        assert table(shown, "lengths in your model") == positions.own_magnitudes(model)
        assert table(shown, "lengths in a model of width 512") == positions.magnitudes(512)
        assert [t.title for t in shown.tables[:-1]] == [
            t.title for t in positions.lesson("am I").tables
        ]

    @pytest.mark.parametrize("bad", [{"d_model": 3}, {"d_model": 0}, {"n": 1.0}, {"text": "  "}])
    def test_bad_arguments(self, bad):
        with pytest.raises(UserError):
            positions.lesson(**bad)


FAMILIES = {
    "gpt2": lambda: GPT(
        GPTConfig("gpt2", vocab_size=30, context=16, n_layer=1, n_head=2, d_model=8)
    ),
    "modern": lambda: GPT(
        GPTConfig("modern", vocab_size=30, context=16, n_layer=1, n_head=2, d_model=8)
    ),
    "bert": lambda: BERT(BERTConfig(vocab_size=30, context=16, n_layer=1, n_head=2, d_model=8)),
    "transformer": lambda: Transformer(TransformerConfig(30, 16, n_layer=1, n_head=2, d_model=8)),
    "learned": lambda: Transformer(
        TransformerConfig(30, 16, 1, 2, 8, positions="learned", tie_embeddings=False)
    ),
    "seq2seq": lambda: Seq2Seq(Seq2SeqConfig(30, d_embed=8, d_model=8)),
}
FIRST = {
    "gpt2": "layers.0",
    "modern": "layers.0",
    "bert": "embed_norm",
    "transformer": "encoder.0",
    "learned": "encoder.0",
}


class TestEmbedding:
    @pytest.mark.parametrize("family", FIRST)
    def test_the_sum_is_what_the_first_layer_is_given(self, family):
        model = FAMILIES[family]().double().eval()
        given = []
        module = model.get_submodule(FIRST[family])
        module.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        tokens = torch.tensor([[3, 14, 3, 29]])
        _ = model(tokens, tokens) if isinstance(model, Transformer) else model(tokens)
        torch.testing.assert_close(
            embedding.read_input(model, [3, 14, 3, 29]).total, given[0][0].detach()
        )

    def test_a_reward_model_reads_as_the_gpt_that_it_is(self):
        judge = RewardModel(
            RewardConfig("gpt2", vocab_size=260, context=8, n_layer=1, n_head=1, d_model=8)
        )
        found = embedding.read_input(judge, [3, 14])
        torch.testing.assert_close(found.total, embedding.read_input(judge.gpt, [3, 14]).total)
        assert found.how == "learned positions are added"
        tokenizer = ByteBPE.train(["I am a robot"], 260)
        assert (
            input_ids(judge, tokenizer, "I")
            == input_ids(judge.gpt, tokenizer, "I")
            == [tokenizer.eos_id, *tokenizer.encode("I")]
        )

    def test_a_recurrent_network_adds_no_positions(self):
        model = FAMILIES["seq2seq"]().double()
        found = embedding.read_input(model, [3, 14])
        assert found.positions is None
        assert torch.equal(found.total, model.embed_tokens.weight[[3, 14]])

    def test_shapes_of_gpt3(self):
        shown = embedding.lesson("I am", *embedding.untrained())
        rows = {row[0]: row[1:] for row in table(shown, "shapes")}
        assert rows["one-hot"] == ["2048 × 50257", "5 × 260"]
        assert rows["into the first block"] == ["2048 × 12288", "5 × 8"]

    def test_numbers_are_the_models(self):
        model, tokenizer = embedding.untrained()
        rows = table(embedding.lesson("am", model, tokenizer), "the prompt")
        ids = tokenizer.encode("am")
        assert rows[0][:2] == ["0 <|endoftext|>", tokenizer.eos_id]
        assert rows[6][:3] == ["2 m", ids[1], "embedding"]
        assert rows[6][3:9] == model.embed_tokens.weight[ids[1], :6].tolist()
        assert rows[7][3:9] == model.embed_positions.weight[2, :6].tolist()

    def test_every_family_reads_what_it_was_trained_on(self):
        bpe = ByteBPE.train(["am"], 260)
        wordpiece = WordPiece.train(["I am a robot"] * 3, 30)
        am = bpe.encode("am")
        end = bpe.eos_id
        for family in ("gpt2", "modern"):
            assert input_ids(FAMILIES[family](), bpe, "am") == [end, *am]
        for family in ("transformer", "learned", "seq2seq"):
            assert input_ids(FAMILIES[family](), bpe, "am") == [*am, end]
        bert = FAMILIES["bert"]()
        around = [wordpiece.cls_id, *wordpiece.encode("am"), wordpiece.sep_id]
        assert input_ids(bert, wordpiece, "am") == around
        assert input_ids(bert, wordpiece, "am [MASK]") == [
            *around[:-1],
            wordpiece.mask_id,
            wordpiece.sep_id,
        ]
        names = [
            row[0] for row in table(embedding.lesson("am", bert, wordpiece), "the prompt") if row[0]
        ]
        assert (names[0], names[-1]) == ("0 [CLS]", f"{len(around) - 1} [SEP]")

    def test_bad_prompts(self):
        model, tokenizer = embedding.untrained()
        for prompt, message in (
            ("", "text is empty"),
            (" ", "text is empty"),
            ("x" * 64, "read 65 tokens, and its context is 64"),
        ):
            with pytest.raises(UserError, match=message):
                embedding.lesson(prompt, model, tokenizer)


class TestMasks:
    def test_what_moves_is_what_the_mask_allows(self):
        shown = masks.lesson("one two three four five")
        gpt = numbers(shown, "GPT: change of")
        bert = table(shown, "BERT: the same")
        assert (gpt[np.triu_indices(5, 1)] == 0).all()
        assert (gpt[np.tril_indices(5)] > 1e-6).all()
        assert numbers(shown, "GPT: position").tolist() == np.tril(np.ones((5, 5))).tolist()
        assert all(cell == 1 for row in bert for cell in row[1:])
        assert (np.array([row[1:] for row in shown.tables[3].rows]) > 1e-6).all()

    def test_influence_by_hand(self):
        """Column j: the same text, token j replaced."""
        model = masks.small_models()[0]
        tokens = torch.randint(64, (1, 4), generator=torch.Generator().manual_seed(0))
        other = tokens.clone()
        other[0, 1] = (other[0, 1] + 1) % 64
        moved = (model(other) - model(tokens)).abs().amax(-1)[0]
        torch.testing.assert_close(masks.influence(model, 4)[:, 1], moved.detach())

    def test_too_many_words(self):
        with pytest.raises(UserError, match="65 words"):
            masks.lesson("w " * 65)


class TestDecoding:
    def test_every_stage(self):
        steps = decoding.decode(decoding.LOGITS, 0.7, 4, 0)
        e = [math.exp(x / 0.7) for x in decoding.LOGITS.tolist()]
        assert steps.stages[0].tolist() == pytest.approx(softmax(decoding.LOGITS.numpy()).tolist())
        assert steps.stages[1].tolist() == pytest.approx([x / sum(e) for x in e])
        assert steps.stages[2].tolist() == pytest.approx(
            [x / sum(e[:4]) for x in e[:4]] + [0.0] * 4
        )

    def test_frequencies_follow_the_probabilities(self):
        steps = decoding.decode(decoding.LOGITS, 1.5, 0, 3)
        p = steps.stages[2]
        deviation = (steps.frequency - p).abs() / (p * (1 - p) / decoding.DRAWS).sqrt()
        assert deviation.max() < 4.5  # standard deviations of the binomial
        assert steps.frequency.sum() == pytest.approx(1)

    def test_temperature_zero_takes_the_largest(self):
        steps = decoding.decode(decoding.LOGITS.flip(0), 0.0, 4, 0)
        assert steps.token == 7
        assert steps.stages[2].tolist() == [0.0] * 7 + [1.0]

    def test_the_token_is_the_samplers(self):
        drawn = [decoding.decode(decoding.LOGITS, 1.0, 0, seed).token for seed in range(6)]
        assert drawn == [decoding.decode(decoding.LOGITS, 1.0, 0, seed).token for seed in range(6)]
        assert len(set(drawn)) > 1

    def test_a_models_own_logits(self):
        model, tokenizer = embedding.untrained()
        names, logits = decoding.after("am", model, tokenizer)
        ids = [tokenizer.eos_id, *tokenizer.encode("am")]
        assert torch.equal(logits, model(torch.tensor([ids]))[0, -1].detach())
        assert names[tokenizer.encode("m")[0]] == "m"
        assert len(table(decoding.lesson(names, logits), "one draw")) == 12


class TestGpt3:
    def test_the_whole_and_its_parts(self):
        found = {part.name: part.parameters for part in gpt3.parts(GPT3["gpt3-175b"])}
        d = 12288
        layers = 96
        assert sum(found.values()) == 174_604_259_328
        assert found == {
            "token embedding, also the output head": 50257 * d,
            "position embedding": 2048 * d,
            "W^Q, W^K, W^V of all heads": 3 * layers * d * d,
            "W^O": layers * d * d,
            "feed-forward, up": layers * 4 * d * d,
            "feed-forward, down": layers * 4 * d * d,
            "biases and norms": layers * (4 * d + 5 * d + 4 * d) + 2 * d,
        }

    def test_flops(self):
        config = GPT3["gpt3-175b"]
        flops = gpt3.training_flops(config, gpt3.TRAINED_TOKENS)
        assert flops["attention, scores and contexts"] == 12.0 * 96 * 12288 * 2048 * 3e11
        rows = {row[0]: row[1] for row in table(gpt3.lesson(), "floating point")}
        # Brown et al., table D.1.
        assert f"{rows['6 × parameters × tokens, as in the paper']:.2e}" == "3.14e+23"
        assert rows["all"] == pytest.approx(sum(flops.values()))

    def test_shape_and_data(self):
        shown = gpt3.lesson()
        shape = {row[0]: row[1] for row in table(shown, "the shape")}
        assert [shape[k] for k in ("layers", "d_model", "d_ff", "context", "heads")] == [
            96,
            12288,
            49152,
            2048,
            96,
        ]
        assert table(shown, "its training data")[-1][1] == 499_000_000_000
        notes = " ".join(shown.notes)
        assert "3,638 days" in notes  # the paper's 3,640 petaflop/s-days
        assert "499B tokens" in notes and "300B" in notes and "45 TB" in notes and "570 GB" in notes


def test_numbers_are_printed_plainly():
    shown = lesson.Table(
        "",
        ["", "x"],
        [["a", 1234567], ["b", 0.00012], ["c", -0.0], ["d", 1234.5], ["e", 3.2e11], ["f", -0.0004]],
    )
    assert [row[1] for row in shown.text()] == [
        "1,234,567",
        "1.20e-04",
        "0.000",
        "1,234.500",
        "3.20e+11",
        "-4.00e-04",
    ]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_numbers_make_the_same_picture(tmp_path, suffix):
    files = [attention.lesson().save(tmp_path / f"{i}{suffix}") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size > 1000
    with pytest.raises(UserError, match="end its name in"):
        attention.lesson().save(tmp_path / "picture.gif")
    assert attention.lesson().save(tmp_path) == tmp_path / "explain-attention.png"


def test_pictures_show_the_numbers_of_the_tables():
    """Each image of each figure is one of the lesson's matrices, or of what is said in its
    title."""
    images = [image.get_array() for axes in attention.lesson().figure.axes for image in axes.images]
    tables = [numbers(attention.lesson(), title) for title in ("scores q", "weights", "v =", "Z")]
    for image, expected in itertools.zip_longest(images, tables):
        np.testing.assert_allclose(image, expected)
