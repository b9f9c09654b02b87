"""Image files that are decoded once, kept as bytes at a smaller scale, and cropped for each batch."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.images import FolderLoader, collate_flat, read_image
from utils import memory
from utils.seeding import generator

TRIES = 10  # to draw a crop that lies within its image
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of crops: their share of the image's area, and width to height

Size = tuple[int, int]  # (H, W)


def shorter_side(size: Size, pixels: int) -> Size:
    """The size of an image that is scaled so that its shorter side has so many pixels."""
    height, width = size
    return (pixels, pixels * width // height) if height <= width else (pixels * height // width, pixels)


def draw_crops(sizes: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random parts of images, as torchvision's ``RandomResizedCrop`` and ``RandomHorizontalFlip`` draw them.

    Args:
        sizes: (H, W) of each image, int64 [B, 2].

    Returns:
        Boxes (top, left, height, width), int64 [B, 4], and which ones are flipped, bool [B].
    """
    height, width = sizes.double().T[:, :, None]  # [B, 1]
    drawn = torch.rand(2, len(sizes), TRIES, generator=draws, dtype=torch.float64)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * drawn[0])
    low, high = map(math.log, RATIO)
    ratio = torch.exp(low + (high - low) * drawn[1])
    wide, high_ = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (0 < wide) & (wide <= width) & (0 < high_) & (high_ <= height)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1, keepdim=True)  # then the middle, as much of it as has one of the allowed shapes
    wide = torch.where(none, torch.minimum(width, (height * RATIO[1]).round()), wide.gather(1, first))
    high_ = torch.where(none, torch.minimum(height, (width / RATIO[0]).round()), high_.gather(1, first))
    place = torch.rand(2, len(sizes), 1, generator=draws, dtype=torch.float64)
    top, left = (
        torch.where(none, (whole - part) // 2, (share * (whole - part + 1)).floor())
        for whole, part, share in ((height, high_, place[0]), (width, wide, place[1]))
    )
    flips = torch.rand(len(sizes), generator=draws) < 0.5
    return torch.cat([top, left, high_, wide], dim=1).long(), flips


def crop(images: Sequence[Tensor], boxes: Tensor, flips: Tensor, size: Size, device: torch.device) -> Tensor:
    """Parts of images, each scaled to one size, with what lies between pixels and beside them weighed in.

    Args:
        images: uint8 [3, H, W] each, in the processor's memory.
        boxes, flips: as ``draw_crops`` gives them.

    Returns:
        uint8 [B, 3, *size] on the device.
    """
    parts = [
        image[:, top : top + high, left : left + wide]
        for image, (top, left, high, wide) in zip(images, boxes.tolist(), strict=True)
    ]
    if device.type != "cpu":  # all of a batch in one go
        flat = torch.cat([part.flatten() for part in parts]).to(device)
        counts = [part.numel() for part in parts]
        parts = [one.view(part.shape).float() for one, part in zip(flat.split(counts), parts, strict=True)]
    scaled = [F.interpolate(part[None], size, mode="bilinear", antialias=True) for part in parts]
    x = torch.cat([one.flip(-1) if flip else one for one, flip in zip(scaled, flips.tolist(), strict=True)])
    return (x.round_().clamp_(0, 255).byte() if x.is_floating_point() else x).contiguous()


def room_for(size: int, processes: int) -> tuple[Tensor | None, str]:
    """Memory for so many bytes, uint8 (size,), or None if there is none; and where it is.

    Where it would be too much of the memory, with as much in each process of the run, it is a file
    (``utils.memory.in_file``).
    """
    if not memory.is_large(size, processes):
        return torch.empty(size, dtype=torch.uint8), "in memory"
    folder = tempfile.gettempdir()
    try:
        return torch.from_numpy(memory.in_file(size)), f"in a file in {folder}"
    except OSError:
        return None, f"{folder} has no room for it (TMPDIR names another folder)"


class KeepingLoader(FolderLoader):
    """A ``FolderLoader`` that decodes each image once while a task is served, and keeps what its transform makes of it.

    Batches are the same where the images find no room: then they are decoded again in every epoch.

    Args:
        scaled: the size (H, W) that the transform makes of an image of a size.
        crops: whether training crops are drawn, by seed, task, epoch and batch, from what is kept; else that is served
            as it is.
        more: as for ``FolderLoader``.
    """

    def __init__(self, transform, *, scaled: Callable[[Size], Size], crops: bool, size: Size, **more) -> None:
        super().__init__(transform, size=size, collate=collate_flat, **more)
        self.scaled, self.crops, self.size = scaled, crops, size
        self.images: list[tuple[str, int]] = []

    def serve(self, task: int, images: list[tuple[str, int]], pixels: Tensor | None = None) -> None:
        if images != self.images:
            self._sizes: list[Size] = []  # of what is kept of each image
            self._room: Tensor | None = None
            self._kept: dict[int, Tensor] = {}  # what there is already: uint8 [3, H, W], by the image's place
        super().serve(task, images, pixels)

    def unprepared(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._sizes:
            self._begin()
        order, size = self.order().tolist(), self.batch_size
        batches = [order[index * size : (index + 1) * size] for index in range(self.start, len(self))]
        lacking = [[row for row in batch[self.share] if row not in self._kept] for batch in batches]
        decoded = self._decode_rows(lacking) if any(lacking) else None
        epoch = self.epoch
        for index, (batch, missing) in enumerate(zip(batches, lacking, strict=True), start=self.start):
            new = {} if decoded is None else self._keep(missing, next(decoded)[0])
            rows = batch[self.share]
            images = [new[row] if row in new else self._kept[row] for row in rows]
            if not images:  # a process's share of a small batch may be nothing
                x = torch.empty(0, 3, *self.size, dtype=torch.uint8, device=self.device)
            elif self.crops:  # drawn for the whole batch
                sizes = torch.tensor([self._sizes[row] for row in batch])
                boxes, flips = draw_crops(sizes, generator(self.seed, "augment", self.task, epoch, index))
                x = crop(images, boxes[self.share], flips[self.share], self.size, self.device)
            else:
                x = torch.stack(images).to(self.device)
            yield x, torch.tensor([self.images[row][1] for row in rows], dtype=torch.int64).to(self.device)

    def _begin(self) -> None:
        """Find out how much room the images take, from their heads, and say so."""
        self._sizes = [self.scaled(_size(path)) for path, _ in self.images]
        ends = np.cumsum([3 * height * width for height, width in self._sizes]).tolist()
        self._places = [0, *ends]
        self._room, where = room_for(ends[-1], self.share.step or 1)
        if self.crops:
            gigabytes = f"{len(self.images):,} training images are decoded once, {ends[-1] / 1e9:.2f} GB"
            how = where if self._room is not None else f"but {where}: they are decoded in every epoch"
            tqdm.write(f"task {self.task}: {gigabytes} {how}", file=sys.stdout)

    def _keep(self, rows: Sequence[int], flat: Tensor) -> dict[int, Tensor]:
        """Keep decoded images, if there is room; ``flat`` has them one after the other, each [H, W, 3]."""
        images = {}
        parts = flat.split([3 * self._sizes[row][0] * self._sizes[row][1] for row in rows])
        for row, part in zip(rows, parts, strict=True):
            if self._room is not None:
                place = self._room[self._places[row] : self._places[row + 1]]
                part = place.copy_(part)
            images[row] = part.view(*self._sizes[row], 3).permute(2, 0, 1)
        if self._room is not None:
            self._kept |= images
        return images

    def _decode_rows(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images as the workers scale them."""
        key = (self.seed, "decode")  # nothing is drawn
        self._batches.batches = [[(*self.images[row], key) for row in rows] for rows in batches]
        return self._decode()


def _size(path: str) -> Size:
    """(H, W) of an image, of which only the head is read.

    Raises:
        UserError: it cannot be read.
    """
    from PIL import Image  # takes a while to import, and only wanted here

    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # a damaged file can make Pillow raise nearly anything; the one who decodes it tells of it
        width, height = read_image(path).size
    return height, width
