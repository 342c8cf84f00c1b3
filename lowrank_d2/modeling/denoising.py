"""Denoising queries: noised ground truth that the decoder learns to restore, unmatched (DN-DETR, arXiv:2203.01305)."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.matcher import Pairs
from lowrank_d2.modeling.predictions import Target


@dataclass(frozen=True)
class DenoisingLayout:
    """Where the denoising queries stand: `groups` runs of `slots`, the same for every image of the batch.

    Attributes:
        groups: how often every instance is repeated.
        slots: queries of one group, the largest number of instances in an image of the batch.
        counts: instances of each image; instance j of group g has slot g * slots + j, the rest of a group is padding.
    """

    groups: int
    slots: int
    counts: tuple[int, ...]

    @property
    def pad(self) -> int:
        """Number of denoising queries of an image."""
        return self.groups * self.slots

    def pairs(self, image: int, device: torch.device) -> Pairs:
        """The known assignment of an image, group by group."""
        targets = torch.arange(self.counts[image], device=device)
        starts = torch.arange(0, self.pad, self.slots, device=device)
        return Pairs((starts[:, None] + targets).flatten(), targets.repeat(self.groups), self.groups)


@dataclass(frozen=True)
class DenoisingQueries:
    """The queries that precede the matching ones.

    Attributes:
        content: (N, pad, D) embeddings of the noised labels, zero in padding slots.
        boxes_unsigmoid: (N, pad, 4) noised cxcywh before the sigmoid, zero in padding slots.
        layout: which slot belongs to which instance.
    """

    content: Tensor
    boxes_unsigmoid: Tensor
    layout: DenoisingLayout

    def attention_mask(self, num_queries: int) -> Tensor:
        """(T, T) bool with T = pad + num_queries, True where a query (row) must not look.

        Matching queries see no denoising query, which knows the answer; a group sees itself and the matching queries.
        """
        pad = self.layout.pad
        group = torch.arange(pad + num_queries, device=self.content.device) // self.layout.slots
        group[pad:] = self.layout.groups
        return (group[:, None] != group) & (group < self.layout.groups)


def make_queries(
    targets: Sequence[Target],
    label_embedding: nn.Embedding,
    num: int,
    noise_scale: float,
    num_classes: int,
    draws: Draws,
) -> Optional[DenoisingQueries]:
    """Noises the ground truth of a batch into denoising queries.

    A label is replaced with probability noise_scale / 2 by any class, perhaps the same; a center moves by up to
    noise_scale halves of its box, a size changes by up to noise_scale of itself. At 0 nothing is drawn.

    Args:
        targets: one per image.
        label_embedding: num_classes rows or more.
        num: queries per image, about: there are num // (most instances in an image) groups.

    Returns:
        None when the batch has no instances, or one image has more than `num`.
    """
    counts = tuple(len(target.labels) for target in targets)
    groups = num // max(counts) if any(counts) else 0
    if groups == 0:
        return None
    layout = DenoisingLayout(groups, max(counts), counts)

    labels = torch.cat([target.labels for target in targets]).repeat(groups)
    boxes = torch.cat([target.boxes for target in targets]).repeat(groups, 1)
    device, total = boxes.device, len(labels)
    if noise_scale > 0:
        flip = draws.uniform("dn/label_flip", (total,), device) < noise_scale / 2
        labels = torch.where(flip, draws.integers("dn/new_labels", num_classes, (total,), device), labels)
        reach = torch.cat((boxes[:, 2:] / 2, boxes[:, 2:]), dim=1) * noise_scale
        boxes = boxes + (2 * draws.uniform("dn/box_noise", (total, 4), device) - 1) * reach

    image, slot = _places(layout, device)
    embedded = label_embedding(labels)
    content = embedded.new_zeros(len(targets), layout.pad, embedded.shape[1]).index_put((image, slot), embedded)
    boxes_unsigmoid = boxes.new_zeros(len(targets), layout.pad, 4)
    boxes_unsigmoid[image, slot] = inverse_sigmoid(boxes)
    return DenoisingQueries(content, boxes_unsigmoid, layout)


def make_contrastive_queries(
    targets: Sequence[Target],
    label_embedding: nn.Embedding,
    num: int,
    label_noise: float,
    box_noise: float,
    draws: Draws,
    eps: float = 1e-5,
) -> Optional[DenoisingQueries]:
    """Noises the ground truth of a batch into pairs of queries: near ones to restore, far ones that are no object (DINO).

    In every group the near queries of all slots precede the far ones, so that `layout.pairs` are the near ones. A label
    is replaced with probability label_noise / 2. The sides of a near box move by up to box_noise halves of its width or
    height, in or out, those of a far box by at least as many and up to twice as many.

    Args:
        targets: one per image.
        label_embedding: a row for each class.
        num: near queries per image, about: there are num // (most instances in an image) groups, at least one.
        eps: of the inverse sigmoid.

    Returns:
        None when the batch has no instances.
    """
    counts = tuple(len(target.labels) for target in targets)
    most = max(counts)
    if most == 0:
        return None
    groups = max(num // most, 1)
    labels = torch.cat([target.labels for target in targets]).repeat(2 * groups)
    boxes = torch.cat([target.boxes for target in targets]).repeat(2 * groups, 1)
    device, total = boxes.device, len(labels)
    flip = draws.uniform("dn/label_flip", (total,), device) < label_noise / 2
    replaced = draws.integers("dn/new_labels", label_embedding.num_embeddings, (total,), device)
    labels = torch.where(flip, replaced, labels)
    sign = 2 * draws.integers("dn/box_sign", 2, (total, 4), device) - 1
    far = torch.arange(2 * groups, device=device).repeat_interleave(total // (2 * groups)) % 2
    size = draws.uniform("dn/box_size", (total, 4), device) + far[:, None]
    moved = cxcywh_to_xyxy(boxes) + sign * size * (boxes[:, 2:].repeat(1, 2) / 2) * box_noise
    boxes = xyxy_to_cxcywh(moved.clamp(0, 1))

    image, slot = _places(DenoisingLayout(2 * groups, most, counts), device)
    embedded = label_embedding(labels)
    layout = DenoisingLayout(groups, 2 * most, counts)
    content = embedded.new_zeros(len(targets), layout.pad, embedded.shape[1]).index_put((image, slot), embedded)
    boxes_unsigmoid = boxes.new_zeros(len(targets), layout.pad, 4)
    boxes_unsigmoid[image, slot] = inverse_sigmoid(boxes, eps)
    return DenoisingQueries(content, boxes_unsigmoid, layout)


def _places(layout: DenoisingLayout, device: torch.device) -> tuple[Tensor, Tensor]:
    """Image and slot of every noised instance, in the order of the draws: group by group, images in order within."""
    counts = torch.tensor(layout.counts, device=device)
    image = torch.arange(len(counts), device=device).repeat_interleave(counts, output_size=sum(layout.counts))
    index = torch.arange(len(image), device=device) - (counts.cumsum(0) - counts)[image]
    starts = torch.arange(0, layout.pad, layout.slots, device=device)
    return image.repeat(layout.groups), (starts[:, None] + index).flatten()
