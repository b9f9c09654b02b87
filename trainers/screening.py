"""One-shot inference among many masks: all are screened by a few units of the layers, few are computed in full.

The derivative ``⟨∂L/∂W_eff, W ⊙ M^i⟩`` is a sum over the units of all layers. Its mean over the masks is known for
every unit from the superposition itself, ``⟨∂L/∂W_eff, W_eff⟩``, and so is its spread, were the bits independent. The
units of the first layer that spread most are summed for all masks, for what masks have learned of their images lies
there; the other units stand with their mean. Losses take theirs from among the units that matter to most, so that many
share what is read of a unit, and two of them share a float32, as whole numbers: these sums are a little off. Then the
exact derivatives of the masks that lead most say what there is to beat. Those that could still do so are narrowed down:
more of the first layer is summed for them, then the other layers, and each time fewer are left, the last of which are
computed in full and decide. Where too many could win, more units are summed for all masks, and in the end, not rounded,
all whose gradient is not zero.

A mask is given up if two things hold. What was summed of its first layer leads the mean of the masks by less than half
of what the best one does. And it is above the best exact one by more than the units that were not summed can make up
for, but for a probability of ``e^-RISK``, 3.7 in a million, by Bernstein's inequality for bits that are independent; by
how much less than that they are so is measured on what was summed.
For masks that have nothing to do with the data that is a bound; for the mask that explains them it is a rule, which
fails where the units that were summed say nothing of a mask that is the best by all others, while another mask is
nearly as good. ``docs/speed.md`` has how often that was seen.

Derivatives closer than ``TIED`` of ``Σ|∂L/∂W_eff ⊙ W|``, which is what sums in float32 may be off, are ties; of them
the first task is the answer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import multitask, superposition
from models.masked import Masked
from models.masks import tiles

SCREENED = 150  # masks from which on ``auto`` screens: 0.97 times as fast at 100, 2.9 times at 250
SHARES = (1 / 20, 1 / 6)  # of the first layer's units, that are summed for all masks
LEAST = 8  # units of the first layer
LEADS = 0.5  # of the largest lead, from which on a mask is not given up
NEAR = 0.85  # of the largest lead, from which on exact derivatives are taken at once, to know what is to be beaten
FEW, MANY = 64, 8  # masks of a loss that are looked at further, and so many times fewer than all
ALONE = 16  # losses that would share so little of all units that any number of masks is looked at before that
COMMON = 6  # units from among which one is taken
OFTEN = 8  # losses from which on a mask is unpacked for all of them, rather than what a loss needs of its masks
RISK = 12.5  # minus the logarithm of the probability that a mask is given up that is the answer
TIED = 2**-22
LOSSES, MASKS = 2048, 16384  # whose sums are made together, so that what is read serves many
TABLE_BYTES = 2**29  # of scores of all masks
ABOVE = 2**22  # scores that are compared at a time

Factors = Sequence[tuple[Masked, Tensor, Tensor]]  # layers, what they saw, and the gradients of what they gave


def can_screen(model: nn.Module) -> bool:
    """Whether every layer that is superposed has masks, whose bits are summed by units."""
    layers = multitask.named(model, superposition.SuperposedModule)
    return superposition.is_factored(model) and all(isinstance(layer, Masked) for _, layer in layers)


def screens(model: nn.Module, tasks: Sequence[int], infer: str) -> bool:
    """Whether to screen, as ``infer`` wishes: ``exact``, ``screened``, or ``auto``, from ``SCREENED`` masks on.

    By ``auto`` on processors alone: a GPU would be given a unit at a time, ten times the calls of all masks in full.
    """
    if infer == "exact" or not can_screen(model):
        return False
    on_processor = all(layer.packed.device.type == "cpu" for _, layer in multitask.named(model, Masked))
    return infer == "screened" or (on_processor and len(tasks) >= SCREENED)


def smallest_derivatives(
    model: nn.Module, tasks: Sequence[int], inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> Tensor:
    """``superposition.smallest_derivatives`` by screening; the model is superposed with the same alpha for all tasks.

    Returns:
        The index of one of ``tasks`` for each of ``b`` losses, int64 (b,).
    """
    device = next(iter(inputs.values())).device
    best = torch.zeros(len(next(iter(inputs.values()))), dtype=torch.int64, device=device)
    left = torch.arange(len(best), device=device) if len(tasks) > 1 else best[:0]  # that are not decided
    for share in SHARES:
        undecided = [left[:0]]
        few = len(tasks) if share > SHARES[0] and len(left) <= ALONE else max(FEW, len(tasks) // MANY)
        for some in left.split(max(1, min(LOSSES, TABLE_BYTES // (2 * len(tasks))))) if len(left) else ():
            best[some], clear = _round(tasks, *_of(model, some, inputs, output_gradients), share, few)
            undecided.append(some[~clear])
        left = torch.cat(undecided)
    for some in left.split(max(1, TABLE_BYTES // (4 * len(tasks)))) if len(left) else ():
        best[some] = _whole(tasks, *_of(model, some, inputs, output_gradients))
    return best


def _of(
    model: nn.Module, some: Tensor, inputs: dict[str, Tensor], output_gradients: dict[str, Tensor]
) -> tuple[Factors, Tensor]:
    """The layers and their factors for some losses, and by how little derivatives may differ that are equal, (b,)."""
    here = [{name: value[some] for name, value in part.items()} for part in (inputs, output_gradients)]
    # The largest gradient of a loss is about 1, or squares of small ones would be zero: by powers of two, so that
    # nothing else changes.
    largest = torch.stack([gradient.abs().flatten(1).amax(1) for gradient in here[1].values()]).amax(0)
    scale = torch.ldexp(torch.ones_like(largest), -largest.frexp().exponent.clamp(-126, 126))
    for gradient in here[1].values():
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))
    return list(superposition.factors(model, *here)), TIED * superposition.products_size(model, *here)


@torch.no_grad()
def _round(tasks: Sequence[int], layers: Factors, tie: Tensor, share: float, few: int) -> tuple[Tensor, Tensor]:
    """The best mask of each loss, int64 (b,), and whether that is decided, bool (b,), by a share of the units.

    Args:
        tie: by how little derivatives may differ that are equal, (b,).
        share: of the first layer's units that are summed for all masks.
        few: masks of a loss that are looked at further if they could win; if there are more it is not decided.
    """
    moments = Moments(layers)
    scores = _scored(tasks, layers, tie, share, moments)
    # Those that lead most say what there is to beat.
    row, mask, clear = scores.above(NEAR * scores.best, few)
    exact = row, mask, _sums(tasks, layers, row, mask, moments.every)
    limit = _limit(row, exact[2], tie)
    # The others that could still do so are narrowed down.
    least = ((moments.least(scores.rounded) - limit) / scores.unit).minimum(LEADS * scores.best)
    row, mask, some = scores.above(torch.where(clear, least, torch.inf), few)
    clear &= some
    more = row.bincount(minlength=len(tie)) > exact[0].bincount(minlength=len(tie))
    row, mask = row[more[row]], mask[more[row]]
    sums = moments.summed[row] - scores.lead(row, mask)
    found = _narrow(tasks, layers, moments, (limit, tie, scores.rounded), row, mask, sums)
    # The first of those that are tied is the answer.
    row, mask, exact = (torch.cat(part) for part in zip(exact, found, strict=True))
    within = exact <= _limit(row, exact, tie)[row]
    answer = torch.full_like(tie, len(tasks), dtype=torch.int64)
    answer = answer.scatter_reduce(0, row[within], mask[within], "amin")
    return answer, clear & (answer < len(tasks))  # there is none where a derivative is no number


@dataclass
class Scores:
    """How far each of ``k`` masks leads in what a share of the units add to the derivatives of ``b`` losses.

    Attributes:
        values: (b, k), in units of ``unit``; few digits are enough to tell which masks are looked at further.
        unit: the standard deviation, were the bits independent, (b,).
        mean, best: of the values, and the largest above the mean, (b,).
        rounded: the variance of what rounding adds, (b,).
    """

    values: Tensor
    unit: Tensor
    mean: Tensor
    rounded: Tensor

    def __post_init__(self) -> None:
        self.best = self.values.amax(1) - self.mean

    def lead(self, row: Tensor, mask: Tensor) -> Tensor:
        """By how much the derivatives of pairs of a loss and a mask are smaller than those of the mean, (pairs,)."""
        return (self.values[row, mask] - self.mean[row]) * self.unit[row]

    def above(self, least: Tensor, few: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs that are at least so far above the mean (b,), but not of losses that have more than a few.

        Returns:
            Their losses and masks, int64 (pairs,), and which losses have no more than a few, bool (b,).
        """
        least = least + self.mean
        least = torch.sub(least, least.abs(), alpha=2**-9).to(self.values.dtype)[:, None]  # as they may be rounded
        losses, masks = self.values.shape
        clear, found = torch.ones(losses, dtype=torch.bool, device=least.device), []
        for some in tiles(losses, max(1, ABOVE // masks)):
            row, mask = (self.values[some] >= least[some]).nonzero().unbind(1)
            clear[some] = row.bincount(minlength=some.stop - some.start) <= few
            row += some.start
            found.append((row[clear[row]], mask[clear[row]]))
        rows, columns = (torch.cat(part) for part in zip(*found, strict=True))
        return rows, columns, clear


def _scored(tasks: Sequence[int], layers: Factors, tie: Tensor, share: float, moments: "Moments") -> Scores:
    """What a share of the first layer's units says of all masks; the ``moments`` are told that it was summed."""
    layer, x, gradient = layers[0]
    chosen = _chosen(gradient, moments.spread[:, : gradient.shape[2]], share)
    moments.take(F.pad(chosen, (0, moments.spread.shape[1] - chosen.shape[1])))
    values = torch.empty(len(tie), len(tasks), dtype=torch.float16, device=tie.device)
    unit = moments.known.sqrt().maximum(tie).clamp(min=1e-30)
    mean, square = torch.zeros_like(tie), torch.zeros_like(tie)
    for here in tiles(len(tasks), MASKS):
        part = -moments.summed[:, None].repeat(1, here.stop - here.start)
        rounded = layer.add_unit_gradients(tasks[here], x, gradient, chosen, part, coarse=True)
        values[:, here] = part.div_(-unit[:, None])
        mean += part.sum(1) / len(tasks)
        square += torch.linalg.vector_norm(part, dim=1).square() / len(tasks)
    # Bits of one mask are not quite independent: by how much less, what is summed tells.
    moments.wider = (square - mean.square()).clamp(min=1)
    return Scores(values, unit, mean, rounded)


def _limit(row: Tensor, exact: Tensor, tie: Tensor) -> Tensor:
    """What is to be beaten, (b,): the smallest exact derivative of a loss's pairs (pairs,), or what is tied with it."""
    return torch.full_like(tie, torch.inf).scatter_reduce(0, row, exact, "amin") + tie


def _narrow(
    tasks: Sequence[int],
    layers: Factors,
    moments: "Moments",
    bounds: tuple[Tensor, Tensor, Tensor],
    row: Tensor,
    mask: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pairs of a loss and a mask, (pairs,) each, are left when more units are summed; third their derivatives.

    First units of the first layer, until it is half of its spread, then those of the second layer and of the others,
    whose weights are few.

    Args:
        bounds: what derivatives are to beat, until more is known; the tie; and the variance of rounding: (b,) each.
        sums: what the units that were summed add to the derivatives, (pairs,).
    """
    limit, tie, rounded = bounds
    spread = moments.spread[:, : layers[0][2].shape[2]]
    order = spread.argsort(dim=1, descending=True, stable=True)
    before = torch.empty_like(spread).scatter_(1, order, spread.gather(1, order).cumsum(1)) - spread
    half = F.pad(before < spread.sum(1, keepdim=True) / 2, (0, moments.every.shape[1] - spread.shape[1])) & moments.left
    sizes = [gradient.shape[2] for _, _, gradient in layers]
    place = torch.arange(sum(sizes), device=limit.device).expand_as(half)
    second, others = (place >= sizes[0]) & (place < sum(sizes[:2])), place >= sum(sizes[:2])
    leads = torch.zeros_like(row, dtype=torch.bool)
    for units in (half, second, others):
        sums = sums + _sums(tasks, layers, row, mask, units)
        moments.take(units)
        lead = moments.summed[row] - sums
        best = torch.zeros_like(limit).scatter_reduce(0, row, lead, "amax")[row]
        first = lead >= best
        exact = _sums(tasks, layers, row[first], mask[first], moments.every)
        limit = limit.minimum(_limit(row[first], exact, tie))
        if units is half:  # the other layers say little of what masks have learned
            leads = lead >= LEADS * best
        stay = leads | (moments.least(rounded)[row] - lead <= limit[row])
        row, mask, sums, leads = row[stay], mask[stay], sums[stay], leads[stay]
    return row, mask, _sums(tasks, layers, row, mask, moments.every)


class Moments:
    """What is known of the derivatives of ``b`` losses over the masks, by units of all layers (b, units).

    Attributes:
        mean, spread, largest: as ``Masked.unit_moments`` has them.
        every, left: all units, and those that have not been summed, bool.
        summed, known: the mean and the spread of what was, (b,).
        wider: by how much what was summed spreads more than that, (b,).
    """

    def __init__(self, layers: Factors):
        moments = [layer.unit_moments(x, gradient) for layer, x, gradient in layers]
        self.mean, self.spread, self.largest = (torch.cat(part, dim=1) for part in zip(*moments, strict=True))
        self.every = self.left = torch.ones_like(self.mean, dtype=torch.bool)
        self.summed = self.known = torch.zeros_like(self.mean[:, 0])
        self.wider = torch.ones_like(self.known)

    def take(self, units: Tensor) -> None:
        self.left = self.left & ~units
        self.summed, self.known = (self.mean * ~self.left).sum(1), (self.spread * ~self.left).sum(1)

    def least(self, rounded: Tensor) -> Tensor:
        """What the exact derivative of a mask that does not lead in what was summed is at the least, (b,)."""
        rest, single = (self.spread * self.left).sum(1) + rounded, (self.largest * self.left).amax(1)
        return self.mean.sum(1) - _margin(self.wider * rest, single)


@torch.no_grad()
def _whole(tasks: Sequence[int], layers: Factors, tie: Tensor) -> Tensor:
    """The best mask of each loss, int64 (b,), by all units that have a gradient."""
    derivatives = tie.new_zeros(len(tie), len(tasks))
    for here in tiles(len(tasks), MASKS):
        for layer, x, gradient in layers:
            layer.add_unit_gradients(tasks[here], x, gradient, (gradient != 0).any(1), derivatives[:, here])
    return (derivatives <= derivatives.amin(1, keepdim=True) + tie[:, None]).int().argmax(1)


def _chosen(gradient: Tensor, spread: Tensor, share: float) -> Tensor:
    """Which units are summed for all masks, bool (b, out), by their spreads (b, out)."""
    count = max(LEAST, math.ceil(share * spread.shape[1]))
    # From among those that matter to most losses: a unit costs little more for many losses than for a few.
    common = (spread / spread.sum(1, keepdim=True).clamp(min=1e-30)).sum(0).argsort(descending=True, stable=True)
    spread = spread.index_fill(1, common[COMMON * count :], 0)
    rank = spread.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (gradient != 0).any(1) & (rank < count)


def _margin(variance: Tensor, single: Tensor) -> Tensor:
    """How far below its mean a sum of independent bits may be (Bernstein), the largest of which adds ``single``."""
    tail = single * RISK / 3
    return tail + (tail.square() + 2 * RISK * variance).sqrt()


def _sums(tasks: Sequence[int], layers: Factors, losses: Tensor, masks: Tensor, units: Tensor) -> Tensor:
    """What some units add to the derivatives of pairs of a loss (pairs,) and the index of a mask (pairs,): (pairs,).

    Args:
        units: which of all layers' units for each loss, bool (b, units).
    """
    found = torch.zeros(len(losses), device=losses.device)
    times = masks.bincount(minlength=1)[masks]
    often = (times >= OFTEN) & (times > losses.bincount(minlength=1)[losses])
    sizes = [gradient.shape[2] for _, _, gradient in layers]
    layers = [
        (layer, x, gradient * some[:, None])
        for (layer, x, gradient), some in zip(layers, units.split(sizes, dim=1), strict=True)
    ]
    for mask, pairs in _by(masks, often):
        rows = losses[pairs]
        for layer, x, gradient in layers:
            found[pairs] += layer.coefficient_gradients([tasks[mask]], x[rows], gradient[rows])[:, 0]
    for loss, pairs in _by(losses, ~often):
        some = [tasks[mask] for mask in masks[pairs].tolist()]
        for layer, x, gradient in layers:
            found[pairs] += layer.loss_gradients(some, x[loss], gradient[loss])
    return found


def _by(keys: Tensor, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each of the ``keys`` (pairs,) that are ``chosen``, and which pairs have it."""
    places = chosen.nonzero().flatten()
    order = keys[places].argsort(stable=True)
    which, counts = keys[places][order].unique_consecutive(return_counts=True)
    yield from zip(which.tolist(), places[order].split(counts.tolist()), strict=True)
