"""BERT equals the one of transformers on the same weights, and rows do not depend on each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from seq2chat.config import BERTConfig, UserError
from seq2chat.models import huggingface_bert
from seq2chat.models.bert import BERT
from seq2chat.models.folder import n_parameters, save_model
from seq2chat.nn.attention import scaled_dot_product_plain
from seq2chat.text.batch import IGNORED, Batch
from seq2chat.training.masked_lm import masked_lm

SHAPE = {
    "vocab_size": 37,
    "context": 24,
    "n_layer": 3,
    "n_head": 4,
    "d_model": 16,
    "d_ff": 40,
    "dropout": 0.0,
}
CONFIG = BERTConfig(**SHAPE)
BOTH = BERTConfig(next_sentence=True, **SHAPE)


def random_bert(config=CONFIG):
    """A float64 BERT whose every weight matters: fresh ones have biases of zero and norms of
    one."""
    torch.manual_seed(0)
    model = BERT(config).double().eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.4)
    return model


def random_batch(rows=3, seq=20, is_next=None):
    """Return rows of 20, 13 and 1 tokens in two sentences, with a third of the tokens masked.

    Token 0 is not among them: it is [PAD], whose embedding gets no gradient from the input in
    transformers.
    """
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(1, 37, (rows, seq), generator=rng)
    mask = torch.arange(seq) < torch.tensor([20, 13, 1])[:rows, None]
    label_mask = (torch.rand(rows, seq, generator=rng) < 0.3) & mask
    label_mask[:, 0] = True
    labels = torch.where(label_mask, torch.randint(37, (rows, seq), generator=rng), IGNORED)
    segments = (torch.arange(seq) >= torch.tensor([9, 5, 20])[:rows, None]).long()
    return Batch(target, labels, target_mask=mask, segments=segments, is_next=is_next)


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.fixture(params=[CONFIG, BOTH], ids=["masked_lm", "pretraining"])
def pair(request, tmp_path):
    """Our model and transformers' with the same weights, both float64 and without dropout."""
    ours = random_bert(request.param)
    save_model(ours, tmp_path)
    auto = AutoModelForPreTraining if request.param.next_sentence else AutoModelForMaskedLM
    return ours, auto.from_pretrained(tmp_path, dtype=torch.float64)


def their_loss(theirs, batch):
    """Their mean losses, which their BertForPreTraining adds up."""
    inputs = {
        "input_ids": batch.target,
        "attention_mask": batch.target_mask,
        "token_type_ids": batch.segments,
    }
    if batch.is_next is None:
        return theirs(**inputs, labels=batch.labels)
    return theirs(**inputs, labels=batch.labels, next_sentence_label=(~batch.is_next).long())


def test_logits_are_those_of_transformers(pair):
    ours, theirs = pair
    batch = random_batch()
    hidden = ours.hidden(batch.target, batch.target_mask, batch.segments)
    expected = their_loss(
        theirs, Batch(batch.target, batch.labels, None, None, batch.target_mask, batch.segments)
    )
    real = batch.target_mask
    logits = expected.logits if ours.config == CONFIG else expected.prediction_logits
    assert logits.dtype == torch.float64
    assert logits.std() > 0.1
    assert_equal(ours.logits(hidden)[real], logits[real])
    assert_equal(ours(batch.target, batch.target_mask, batch.segments)[real], logits[real])
    if ours.config == BOTH:
        assert_equal(ours.next_sentence_logits(hidden), expected.seq_relationship_logits)
    plain = theirs(input_ids=batch.target)
    logits = plain.logits if ours.config == CONFIG else plain.prediction_logits
    assert_equal(ours(batch.target), logits)


def test_training_equals_transformers(pair):
    """Loss, gradients and the weights after three steps."""
    ours, theirs = pair
    # Equal numbers of labels in each row: then the pairs weigh the same, and our sum over labels is
    # their sum of means.
    batch = random_batch(
        is_next=torch.tensor([True, False, False]) if ours.config == BOTH else None
    )
    batch.labels[:, 1:] = IGNORED
    optimizers = [
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (ours, theirs)
    ]
    for _ in range(3):
        loss, n = masked_lm(ours, batch)
        loss = loss / n
        expected = their_loss(theirs, batch).loss
        assert_equal(loss, expected)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        expected.backward()
        gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
        reference = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        assert gradients["embed_tokens.weight"].norm() > 0.03
        for theirs_name, [name] in huggingface_bert.LAYOUT.names(ours).items():
            assert_equal(gradients[name], reference[theirs_name])
        for optimizer in optimizers:
            optimizer.step()
    ids = torch.arange(20)[None]
    theirs = theirs(input_ids=ids)
    assert_equal(ours(ids), theirs.logits if ours.config == CONFIG else theirs.prediction_logits)


def test_rows_do_not_depend_on_batch_or_padding():
    model, batch = random_bert(), random_batch()
    together = model(batch.target, batch.target_mask, batch.segments)
    noise = torch.where(batch.target_mask, batch.target, (batch.target + 5) % 37)
    assert_equal(
        model(noise, batch.target_mask, batch.segments)[batch.target_mask],
        together[batch.target_mask],
    )
    for row, length in enumerate([20, 13, 1]):
        alone = model(
            batch.target[row : row + 1, :length], segments=batch.segments[row : row + 1, :length]
        )
        assert_equal(together[row, :length], alone[0])
    without = model(batch.target, segments=batch.segments)
    assert (together - without)[1, :13].abs().max() > 1e-3, "without a mask, padding is attended to"


def test_row_of_padding_is_finite():
    """The other rows do not change."""
    model, batch = random_bert(), random_batch()
    mask = batch.target_mask.clone()
    mask[1] = False
    logits = model(batch.target, mask, batch.segments)
    assert logits.isfinite().all()
    assert_equal(logits[0], model(batch.target, batch.target_mask, batch.segments)[0])
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_every_position_sees_both_sides():
    model, x = random_bert(), random_batch().target
    for changed in (0, 19):
        other = x.clone()
        other[:, changed] = (other[:, changed] + 1) % 37
        assert ((model(x) - model(other)).abs().amax(dim=(0, 2)) > 1e-6).all()


def test_positions_and_segments_matter():
    model, x = random_bert(), torch.full((1, 6), 3)
    logits = model(x)[0]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (model(x, segments=torch.tensor([[0, 0, 0, 1, 1, 1]])) - logits).abs().max() > 1e-3
    assert_equal(model(x, segments=torch.zeros_like(x)), logits[None])


def test_loss_is_a_sum_over_labels():
    """It does not depend on how the batch is split."""
    model = random_bert(BOTH)
    batch = random_batch(is_next=torch.tensor([True, False, True]))
    whole, n = masked_lm(model, batch)
    assert n == (batch.labels != IGNORED).sum()
    parts = [
        masked_lm(model, Batch(**{k: v[rows] for k, v in vars(batch).items() if v is not None}))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    assert_equal(sum(loss for loss, _ in parts), whole)
    assert sum(n for _, n in parts) == n
    # By hand, from all logits.
    log_p = model(batch.target, batch.target_mask, batch.segments).log_softmax(-1)
    label_mask = batch.labels != IGNORED
    tokens = -log_p[label_mask].gather(1, batch.labels[label_mask][:, None]).sum()
    hidden = model.hidden(batch.target, batch.target_mask, batch.segments)
    pairs = F.cross_entropy(
        model.next_sentence_logits(hidden), torch.tensor([0, 1, 0]), reduction="none"
    )
    assert_equal(whole, tokens + (pairs * label_mask.sum(1)).sum())


def test_heads_show_q_and_k_as_they_are_compared():
    model, batch, taps = random_bert(), random_batch(), []
    for layer in model.layers:
        layer.self_attn.heads.register_forward_hook(
            lambda module, inputs, output: taps.append((module, inputs, output))
        )
    model(batch.target, batch.target_mask)
    assert len(taps) == 3
    for module, (q, k, v, mask), output in taps:
        context, weights = scaled_dot_product_plain(q, k, v, mask, scale=module.scale)
        assert_equal(context, output)
        assert weights[1, :, :, 13:].abs().max() == 0
        assert_equal(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize("config", [CONFIG, BOTH], ids=["masked_lm", "pretraining"])
def test_flops_are_those_a_counter_sees(config):
    model = BERT(config)
    batch = random_batch(
        is_next=torch.tensor([True, False, True]) if config.next_sentence else None
    )
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        masked_lm(model, batch)[0].backward()
    assert counter.get_total_flops() == model.flops(batch)


def test_parameters_in_closed_form():
    v, t, d, f, layers = 37, 24, 16, 40, 3
    block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
    trunk = (v + t + 2) * d + 2 * d + layers * block
    assert n_parameters(BERTConfig(masked_lm=False, **SHAPE)) == trunk
    assert n_parameters(CONFIG) == trunk + d * d + d + 2 * d + v
    assert n_parameters(BOTH) == n_parameters(CONFIG) + d * d + d + 2 * d + 2


def test_bert_base_has_its_110_million_parameters():
    base = BERTConfig(
        vocab_size=30522, context=512, n_layer=12, n_head=12, d_model=768, next_sentence=True
    )
    assert n_parameters(base) == 110_106_428  # what BertForPreTraining of bert-base-uncased counts


def test_fresh_weights_start_near_ln_vocab():
    torch.manual_seed(0)
    batch = random_batch()
    loss, n = masked_lm(BERT(CONFIG), batch)
    assert loss.item() / int(n) == pytest.approx(math.log(37), abs=0.05)
    weights = BERT(BERTConfig(vocab_size=500, n_layer=1, d_model=256)).state_dict()
    assert weights["layers.0.self_attn.o_proj.weight"].std().item() == pytest.approx(0.02, rel=0.03)
    assert all((value == 0).all() for name, value in weights.items() if name.endswith("bias"))
    assert all(
        (value == 1).all() for name, value in weights.items() if name.endswith("norm.weight")
    )


def test_dropout_and_gradients():
    """Dropout acts in training only, and every weight gets a gradient."""
    config = BERTConfig(**SHAPE | {"dropout": 0.5, "next_sentence": True})
    model, plain, batch = (
        random_bert(config),
        random_bert(BOTH),
        random_batch(is_next=torch.tensor([True, False, True])),
    )
    assert torch.equal(model(batch.target), plain(batch.target))
    model.train()
    assert not torch.equal(model(batch.target), model(batch.target))
    masked_lm(model, batch)[0].backward()
    assert all(
        p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "k_proj.bias" not in name
    )


def test_every_way_to_bfloat16_stays_near():
    model, batch = random_bert().float(), random_batch()
    for parameter in model.parameters():
        parameter.data.mul_(0.5)
    exact = model(batch.target, batch.target_mask)
    model.compute_dtype = torch.bfloat16
    rounded = model(batch.target, batch.target_mask)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    loss, _ = masked_lm(model, batch)
    assert loss.dtype == torch.float32, "the softmax is never rounded to bfloat16"
    model.compute_dtype = None
    low = model.bfloat16()(batch.target, batch.target_mask)
    for approximate in (rounded, low):
        assert approximate.dtype == torch.bfloat16
        assert (approximate.float() - exact).norm() / exact.norm() < 0.05


def test_a_row_may_use_the_context_and_no_more():
    model = random_bert()
    assert model(torch.zeros(1, 24, dtype=torch.int64)).isfinite().all()
    with pytest.raises(UserError, match="25 tokens do not fit the model's context of 24"):
        model(torch.zeros(1, 25, dtype=torch.int64))


def test_vocabulary_must_be_given():
    with pytest.raises(UserError, match="vocab_size"):
        BERT(BERTConfig())


def test_an_encoder_has_no_logits():
    model = random_bert(BERTConfig(masked_lm=False, **SHAPE))
    assert model.hidden(torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 16)
    with pytest.raises(UserError, match="without the head that guesses tokens"):
        model(torch.zeros(1, 3, dtype=torch.int64))
