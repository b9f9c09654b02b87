"""Masks as bits, initial scores, straight-through gradients, initialisers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from models import INITIALISERS, masks
from models.init import initialise
from utils.seeding import generator


@pytest.mark.parametrize("n", [1, 7, 8, 9, 64, 1001])
def test_packing_is_numpys_packbits_and_unpacking_gives_the_mask_back(n):
    mask = torch.rand(3, n, generator=generator("mask", n)) < 0.3
    packed = masks.pack(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (3, math.ceil(n / 8))
    assert np.array_equal(packed.numpy(), np.packbits(mask.numpy(), axis=1))
    assert torch.equal(masks.unpack(packed, n), mask.float())


def test_unpacking_the_wrong_number_of_bytes_is_refused():
    with pytest.raises(ValueError, match="3 bytes do not hold 8 weights"):
        masks.unpack(torch.zeros(3, dtype=torch.uint8), 8)


def test_threshold_keeps_scores_from_zero_up_and_passes_the_gradient_straight_through():
    scores = torch.tensor([-1.0, -0.0, 0.0, 1e-30, -1e-30, 2.0], requires_grad=True)
    mask = masks.StraightThrough.apply(scores, masks.threshold)
    assert mask.tolist() == [0, 1, 1, 1, 0, 1]
    gradient = torch.randn(6, generator=generator("gradient"))
    mask.backward(gradient)
    assert torch.equal(scores.grad, gradient)


@pytest.mark.parametrize("tasks", [(), (3,)])
def test_a_masked_weight_has_the_mask_and_the_gradient_of_its_parts(tasks):
    scores = torch.randn(*tasks, 4, 5, 1, 1, generator=generator("scores")).requires_grad_()
    weight, x = torch.randn(4, 5, 1, 1, generator=generator("w")), torch.randn(7, 5, generator=generator("x"))
    masked = masks.MaskedWeight.apply(scores, weight, masks.threshold, True)
    assert torch.equal(masked, (scores >= 0) * weight)
    (masked.flatten(-3) @ x.T).square().sum().backward()
    mask = (scores >= 0).float().requires_grad_()
    ((mask * weight).flatten(-3) @ x.T).square().sum().backward()
    torch.testing.assert_close(scores.grad, mask.grad)


def test_initial_scores_are_kaiming_uniform_with_a_root_five():
    scores = masks.initial_scores((50, 20, 3, 3), generator("scores"))
    reference = nn.init.kaiming_uniform_(torch.empty(50, 20, 3, 3), a=math.sqrt(5))
    bound = 1 / math.sqrt(20 * 9)
    for drawn in (scores, reference):
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.99 * bound  # 9,000 draws
    assert abs(scores.mean()) < 4 * bound / math.sqrt(3 * 9000)  # four standard errors


def test_tiles_cover_a_range_in_order():
    assert [list(range(10))[tile] for tile in masks.tiles(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


FAN_IN, FAN_OUT = 40 * 9, 60 * 9
KAIMING, XAVIER = math.sqrt(2 / FAN_IN), math.sqrt(2 / (FAN_IN + FAN_OUT))


@pytest.mark.parametrize(
    ("name", "values", "std"),
    [
        ("signed_constant", {-KAIMING, KAIMING}, KAIMING),
        ("unsigned_constant", {KAIMING}, 0),
        ("xavier_constant", {-1 / math.sqrt(FAN_IN), 1 / math.sqrt(FAN_IN)}, 1 / math.sqrt(FAN_IN)),
        ("kaiming_normal", None, KAIMING),
        ("kaiming_uniform", None, KAIMING),
        ("xavier_normal", None, XAVIER),
        ("glorot_uniform", None, XAVIER),
        ("default", None, 1 / math.sqrt(3 * FAN_IN)),
    ],
)
def test_initialisers_have_the_values_and_spread_of_their_definition(name, values, std):
    weight = torch.empty(60, 40, 3, 3)
    initialise(weight, name, generator("weight"))
    if values is not None:
        assert weight.unique().tolist() == pytest.approx(sorted(values))
    assert weight.std().item() == pytest.approx(std, rel=0.02, abs=1e-7)  # 21,600 draws: 2 % is four errors
    if name != "unsigned_constant":
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel())
    again = torch.empty_like(weight)
    initialise(again, name, generator("weight"))
    assert torch.equal(weight, again)


@pytest.mark.parametrize(
    ("name", "mode", "nonlinearity", "largest"),
    [
        ("unsigned_constant", "fan_in", "relu", math.sqrt(2 / 288)),
        ("unsigned_constant", "fan_out", "linear", 1 / 24),
        ("signed_constant", "fan_out", "relu", math.sqrt(2) / 24),
        ("signed_constant", "fan_in", "tanh", 5 / 3 / math.sqrt(288)),
        ("signed_constant", "fan_in", "leaky_relu", math.sqrt(2 / (1 + 0.01**2) / 288)),
        ("xavier_constant", "fan_in", "relu", 0.0589256),
        ("xavier_constant", "fan_out", "relu", 0.0416667),
        ("kaiming_uniform", "fan_in", "relu", math.sqrt(6 / 288)),
        ("kaiming_uniform", "fan_out", "linear", math.sqrt(3) / 24),
        ("kaiming_uniform", "fan_in", "leaky_relu", math.sqrt(6 / 288)),  # torch's, of slope 0 unless told
        ("glorot_uniform", "fan_in", "relu", math.sqrt(6 / (288 + 576))),
        ("glorot_uniform", "fan_out", "linear", math.sqrt(6 / (288 + 576))),
        ("default", "fan_out", "tanh", 1 / math.sqrt(288)),
    ],
)
def test_initialisers_follow_mode_and_nonlinearity_as_the_originals_do(name, mode, nonlinearity, largest):
    weight = torch.empty(64, 32, 3, 3)
    initialise(weight, name, generator("weight"), mode, nonlinearity)
    tolerance = 1e-3 if "uniform" in name or name == "default" else 1e-6  # 18,432 draws; float32
    assert weight.abs().max().item() == pytest.approx(largest, rel=tolerance)


@pytest.mark.parametrize(("mode", "std"), [("fan_in", math.sqrt(2 / 288)), ("fan_out", math.sqrt(2) / 24)])
def test_kaiming_normal_follows_the_mode(mode, std):
    weight = torch.empty(64, 32, 3, 3)
    initialise(weight, "kaiming_normal", generator("weight"), mode)
    assert weight.std().item() == pytest.approx(std, rel=0.02)


def test_every_initialiser_is_tried_here():
    tried = test_initialisers_have_the_values_and_spread_of_their_definition.pytestmark[0].args[1]
    assert {case[0] for case in tried} == set(INITIALISERS)


def test_paired_rows_are_summed_as_if_apart():
    """As whole numbers, so that no sum of one runs into the other; what rounding does is told."""
    values = torch.randn(5, masks.PAIRED // 4, generator=torch.Generator().manual_seed(0))
    values[1], values[2] = values[1].abs(), -values[2].abs()  # the largest sums that there are
    values[3] = 0
    paired, scale, lost = masks.pair(values)
    kept = torch.randint(0, 2, (values.shape[1], 40), generator=torch.Generator().manual_seed(1)).float()
    kept[:, 0], kept[:, 1:3] = 1, (values[:2] > 0).T.float()
    sums = masks.parted(paired @ kept, scale)
    whole = (values / scale[:, None]).round() @ kept
    assert paired.shape == (8, values.shape[1]) and torch.allclose(sums, whole * scale[:, None])
    off = (sums - values @ kept)[:, 3:]
    assert (off.var(1) <= 2 * lost).all() and (lost[[0, 1, 2, 4]] > 0).all() and not sums[3].any()
