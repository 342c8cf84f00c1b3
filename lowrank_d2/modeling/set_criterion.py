"""The losses of Mask DINO (arXiv:2206.02777): class, box and point-sampled mask losses, matched and denoising."""
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou
from lowrank_d2.layers.draws import Draws
from lowrank_d2.layers.linear import linear
from lowrank_d2.layers.points import labels_at, least_certain, mask_losses_at
from lowrank_d2.modeling.branch_settings import BranchSettings
from lowrank_d2.modeling.denoising import DenoisingLayout
from lowrank_d2.modeling.matcher import HungarianMatcher, Pairs
from lowrank_d2.modeling.one_to_many import Assignment, OneToManyAssigner, PaddedTargets
from lowrank_d2.modeling.predictions import Prediction, Predictions, Target

CLASS_LOSSES, BOX_LOSSES, MASK_LOSSES = ("loss_ce",), ("loss_bbox", "loss_giou"), ("loss_mask", "loss_dice")


@dataclass(frozen=True)
class _Step:
    """What all losses of a step share: the truth, every image's mask features pixel by pixel (h * w, M), and the draws."""

    targets: Sequence[Target]
    features: Sequence[Tensor]
    size: tuple[int, int]
    draws: Draws

    def masks(self, image: int, embed: Tensor) -> Tensor:
        """The masks (R, h, w) of embeddings (R, M)."""
        return linear(embed, self.features[image]).unflatten(1, self.size)


@dataclass(frozen=True)
class _Assigned:
    """A prediction set, its pairs in every image, what its sums are divided by, the losses that it has, their factor."""

    prediction: Prediction
    pairs: Sequence[Pairs]
    num: Tensor
    boxes: bool
    masks: bool
    weight: float = 1.0


class SetCriterion:
    """Compares predictions with the ground truth.

    Args:
        num_classes: classes without "no object".
        matcher: pairs predictions with instances.
        weights: by loss name without suffix, the same for every prediction set.
        num_points: points per mask.
        oversample_ratio: candidates per point.
        importance_ratio: share of the points that is chosen from the candidates by uncertainty; the rest is random.
        denoising: "no", "standard" (class and box losses) or "seg" (mask losses too).
        deep_supervision: losses on the earlier layers' predictions too.
        box_loss: box losses on matched predictions; the denoising part always has them.
        class_loss: "focal" or "cross_entropy"; the latter expects num_classes + 1 logits, "no object" last.
        no_object_weight: weight of "no object" in the cross entropy.
        box_labels: instances of other labels have no box losses; None: all have.
        assigner: gives the branches of MODEL.LORA_DETR their pairs; None without branches.
        branch_weight: factor of the branches' losses.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        weights: dict[str, float],
        num_points: int,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        denoising: str = "seg",
        deep_supervision: bool = True,
        box_loss: bool = True,
        class_loss: str = "focal",
        no_object_weight: float = 0.1,
        box_labels: Optional[Collection[int]] = None,
        assigner: Optional[OneToManyAssigner] = None,
        branch_weight: float = 1.0,
    ):
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = weights
        self.num_points = num_points
        self.num_candidates = int(oversample_ratio * num_points)
        self.num_least_certain = int(importance_ratio * num_points)
        self.denoising = denoising
        self.deep_supervision = deep_supervision
        self.box_loss = box_loss
        self.class_loss = {"focal": self._focal, "cross_entropy": self._cross_entropy}[class_loss]
        self.no_object_weight = no_object_weight
        self.box_labels = box_labels
        self.assigner, self.branch_weight = assigner, branch_weight

    @classmethod
    def from_config(cls, cfg) -> "SetCriterion":
        """The criterion that MODEL.MaskDINO describes."""
        node, tasks = cfg.MODEL.MaskDINO, cfg.MODEL.MaskDINO.TEST
        cross_entropy = tasks.SEMANTIC_ON and node.SEMANTIC_CE_LOSS and not tasks.PANOPTIC_ON
        branches = BranchSettings.from_node(cfg.MODEL.LORA_DETR, node.NUM_OBJECT_QUERIES)
        return cls(
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            matcher=HungarianMatcher(
                cost_class=node.COST_CLASS_WEIGHT,
                cost_box=node.COST_BOX_WEIGHT,
                cost_giou=node.COST_GIOU_WEIGHT,
                cost_mask=node.COST_MASK_WEIGHT,
                cost_dice=node.COST_DICE_WEIGHT,
                num_points=node.TRAIN_NUM_POINTS,
            ),
            weights={
                "loss_ce": node.CLASS_WEIGHT,
                "loss_mask": node.MASK_WEIGHT,
                "loss_dice": node.DICE_WEIGHT,
                "loss_bbox": node.BOX_WEIGHT,
                "loss_giou": node.GIOU_WEIGHT,
            },
            num_points=node.TRAIN_NUM_POINTS,
            oversample_ratio=node.OVERSAMPLE_RATIO,
            importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
            denoising=node.DN,
            deep_supervision=node.DEEP_SUPERVISION,
            box_loss=node.BOX_LOSS,
            class_loss="cross_entropy" if cross_entropy else "focal",
            no_object_weight=node.NO_OBJECT_WEIGHT,
            box_labels=_box_labels(cfg),
            assigner=branches.assigner() if branches else None,
            branch_weight=branches.loss_weight / branches.count if branches else 1.0,
        )

    def __call__(
        self, predictions: Predictions, targets: Sequence[Target], layout: Optional[DenoisingLayout], draws: Draws
    ) -> dict[str, Tensor]:
        """The weighted losses of a step, in float32 also under autocast.

        Args:
            predictions: of N images.
            targets: one per image.
            layout: where the denoising queries stand; None in a step without them.
            draws: source of the points.

        Returns:
            scalars by Mask DINO's names: "loss_ce", "loss_ce_0", "loss_ce_interm", "loss_ce_dn", "loss_ce_dn_0" and so on;
            of branch 1 "loss_ce_lora_1", "loss_ce_0_lora_1". Denoising losses are zeros when there is no layout.

        Raises:
            ValueError: when a matching cost is not a number.
        """
        with torch.autocast(predictions.mask_features.device.type, enabled=False):
            # One table per image, made once: selecting anew would give every use a gradient of the whole batch's size.
            maps = predictions.mask_features.float()
            tables = [table.contiguous() for table in maps.flatten(2).transpose(1, 2).unbind()]
            step = _Step(targets, tables, tuple(maps.shape[-2:]), draws)
            num = self._num_targets(targets, predictions.mask_features.device)
            sets = dict(self._matched_sets(predictions))
            named = {_purpose(suffix): prediction for suffix, prediction in sets.items()}
            pairs = self.matcher(named, targets, predictions.mask_features, draws)
            assigned = {
                suffix: _Assigned(prediction, pairs[_purpose(suffix)], num, boxes=self.box_loss, masks=True)
                for suffix, prediction in sets.items()
            }
            assigned |= self._branch_sets(predictions, assigned, targets, num, draws)
            if self.denoising == "no":
                return self._losses(step, assigned)
            suffixes = self._denoising_suffixes(predictions)
            if layout is None:
                names = CLASS_LOSSES + BOX_LOSSES + (MASK_LOSSES if self.denoising == "seg" else ())
                zeros = {name + suffix: num.new_zeros(()) for suffix in suffixes for name in names}
                return self._losses(step, assigned) | zeros
            return self._losses(step, assigned | self._denoising_sets(predictions, suffixes, layout, num))

    def _matched_sets(self, predictions: Predictions) -> Iterator[tuple[str, Prediction]]:
        """Suffix and prediction of everything that is matched."""
        yield "", predictions.last
        if self.deep_supervision:
            for i, prediction in enumerate(predictions.aux):
                yield f"_{i}", prediction
        if predictions.interm is not None:
            yield "_interm", predictions.interm

    def _branch_sets(
        self,
        predictions: Predictions,
        assigned: Mapping[str, _Assigned],
        targets: Sequence[Target],
        num: Tensor,
        draws: Draws,
    ) -> dict[str, _Assigned]:
        """The branches of every supervised layer, with the one-to-many pairs that stand beside the layer's own.

        A query that several instances take answers for the one with the highest score.
        """
        if self.assigner is None:
            return {}
        depth = len(predictions.branches[0])
        first = len(predictions.aux) + 1 - depth  # with INITIAL_PRED the predictions begin before the first layer
        suffixes = [f"_{first + i}" for i in range(depth - 1)] if self.deep_supervision else []
        suffixes.append("")
        sets = [branch[depth - len(suffixes) :] for branch in predictions.branches]
        logits, boxes = (
            torch.stack([torch.stack([getattr(one, name).float() for one in branch]) for branch in sets])
            for name in ("logits", "boxes")
        )
        matched = Assignment.of_pairs([assigned[suffix].pairs for suffix in suffixes], num.device)
        found, _ = self.assigner(logits, boxes, PaddedTargets.of(targets), matched, draws)
        pairs = iter(found.pairs(len(sets) * len(suffixes), len(targets)))
        return {
            f"{suffix}_lora_{branch}": _Assigned(
                prediction, next(pairs), num, boxes=self.box_loss, masks=True, weight=self.branch_weight
            )
            for branch, layers in enumerate(sets)
            for suffix, prediction in zip(suffixes, layers)
        }

    def _denoising_suffixes(self, predictions: Predictions) -> dict[str, int]:
        """Suffix of every prediction set with denoising losses -> its layer, -1 for the last."""
        # Without two stages the first prediction has no denoising losses, as upstream.
        first = 0 if predictions.interm is not None else 1
        layers = range(first, len(predictions.aux)) if self.deep_supervision else ()
        return {"_dn": -1} | {f"_dn_{i}": i for i in layers}

    def _denoising_sets(
        self, predictions: Predictions, suffixes: Mapping[str, int], layout: DenoisingLayout, num: Tensor
    ) -> dict[str, _Assigned]:
        pairs = [layout.pairs(image, num.device) for image in range(len(layout.counts))]
        num, masks = num * layout.groups, self.denoising == "seg"
        return {
            suffix: _Assigned(
                predictions.dn_last if i < 0 else predictions.dn_aux[i], pairs, num, boxes=True, masks=masks
            )
            for suffix, i in suffixes.items()
        }

    def _losses(self, step: _Step, assigned: Mapping[str, _Assigned]) -> dict[str, Tensor]:
        """The weighted losses of all prediction sets, by suffix."""
        masks = _assigned_masks(step, {suffix: own for suffix, own in assigned.items() if own.masks})
        losses = {}
        for suffix, own in assigned.items():
            values = {"loss_ce": self._class_loss(step, own)}
            if own.boxes:
                values["loss_bbox"], values["loss_giou"] = self._box_losses(step, own)
            if own.masks:
                values["loss_mask"], values["loss_dice"] = self._mask_losses(step, _purpose(suffix), own, masks[suffix])
            losses |= {name + suffix: self.weights[name] * own.weight * value for name, value in values.items()}
        return losses

    def _class_loss(self, step: _Step, assigned: _Assigned) -> Tensor:
        logits = assigned.prediction.logits.float()
        labels = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        for row, pair, target in zip(labels, assigned.pairs, step.targets):
            row[pair.queries] = target.labels[pair.targets]
        return self.class_loss(logits, labels, assigned.num)

    def _focal(self, logits: Tensor, labels: Tensor, num: Tensor) -> Tensor:
        # "No object" is a row of zeros, unless there is a logit for it, which is then trained as a class (quirk Q11).
        columns = torch.arange(logits.shape[-1], device=logits.device)
        one_hot = (labels[..., None] == columns).to(logits.dtype)
        return sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2.0, reduction="sum") / num

    def _cross_entropy(self, logits: Tensor, labels: Tensor, num: Tensor) -> Tensor:
        weight = logits.new_ones(self.num_classes + 1)
        weight[-1] = self.no_object_weight
        return F.cross_entropy(logits.transpose(1, 2), labels, weight)

    def _box_losses(self, step: _Step, assigned: _Assigned) -> tuple[Tensor, Tensor]:
        """L1 distance of cxcywh, and one minus GIoU; summed over the pairs, divided by `num`."""
        pairs, num = assigned.pairs, assigned.num
        predicted = torch.cat([boxes[pair.queries] for boxes, pair in zip(assigned.prediction.boxes.float(), pairs)])
        true = torch.cat([target.boxes[pair.targets] for target, pair in zip(step.targets, pairs)])
        if self.box_labels is not None:
            labels = torch.cat([target.labels[pair.targets] for target, pair in zip(step.targets, pairs)])
            kept = torch.isin(labels, torch.tensor(sorted(self.box_labels), device=labels.device))
            predicted, true = predicted[kept], true[kept]
        overlap = giou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(true))
        return F.l1_loss(predicted, true, reduction="sum") / num, (1 - overlap).sum() / num

    def _mask_losses(
        self, step: _Step, name: str, assigned: _Assigned, masks: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and dice at the least certain and some random points; summed over the pairs, over `num`.

        Args:
            masks: of every image (R, h, w).
        """
        counts, device = [len(own) for own in masks], assigned.num.device
        shape = (sum(counts), self.num_candidates, 2)
        candidates = step.draws.uniform(f"loss/{name}/oversampled_coords", shape, device)
        random = candidates[:, :0]
        if self.num_points > self.num_least_certain:  # an IMPORTANCE_SAMPLE_RATIO of 1 draws none, as upstream
            shape = (sum(counts), self.num_points - self.num_least_certain, 2)
            random = step.draws.uniform(f"loss/{name}/random_coords", shape, device)
        bce, dice = [], []
        drawn = zip(candidates.split(counts), random.split(counts))
        for own, (own_candidates, own_random), pair, target in zip(masks, drawn, assigned.pairs, step.targets):
            points = torch.cat((least_certain(own, own_candidates, self.num_least_certain), own_random), dim=1)
            losses = mask_losses_at(own, points, labels_at(target.masks, pair.targets, points, pair.groups))
            bce.append(losses[0])
            dice.append(losses[1])
        return torch.cat(bce).sum() / assigned.num, torch.cat(dice).sum() / assigned.num

    @staticmethod
    def _num_targets(targets: Sequence[Target], device: torch.device) -> Tensor:
        """Instances of a batch, averaged over the processes; at least one."""
        num = torch.tensor(float(sum(len(target.labels) for target in targets)), device=device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(num)
            num /= dist.get_world_size()
        return num.clamp(min=1)


def _purpose(suffix: str) -> str:
    """How the draws call a prediction set: "" is "layer_last", "_3" "layer_3", "_dn_3" "dn_layer_3".

    Of branch 1 "_3_lora_1" is "branch_1/layer_3".
    """
    if suffix == "_interm":
        return "interm"
    suffix, of_branch, branch = suffix.partition("_lora_")
    if of_branch:
        return f"branch_{branch}/{_purpose(suffix)}"
    prefix, layer = ("dn_", suffix[4:]) if suffix.startswith("_dn") else ("", suffix[1:])
    return f"{prefix}layer_{layer or 'last'}"


def _assigned_masks(step: _Step, assigned: Mapping[str, _Assigned]) -> dict[str, list[Tensor]]:
    """The masks of the paired queries, for every prediction set those of each image.

    All of an image come from one product: a product for each set would make and add up as many gradients of the
    image's features.
    """
    embeds = {
        suffix: [embed[pair.queries] for embed, pair in zip(own.prediction.mask_embed.float(), own.pairs)]
        for suffix, own in assigned.items()
    }
    images = []
    for image, own in enumerate(zip(*embeds.values())):
        images.append(step.masks(image, torch.cat(own)).split([len(embed) for embed in own]))
    return dict(zip(embeds, map(list, zip(*images))))


def _box_labels(cfg) -> Optional[Collection[int]]:
    node = cfg.MODEL.MaskDINO
    if not node.PANO_BOX_LOSS:
        return None
    if node.FIX.PANO_THINGS:
        return MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_dataset_id_to_contiguous_id.values()
    return range(80)  # COCO's things, whatever the dataset: as upstream (quirk Q15)
