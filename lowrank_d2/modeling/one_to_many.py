"""One-to-many assignment for branches: several queries answer for one object (LoRA-DETR, equation 7 and its code).

All prediction sets, images and branches are assigned at once. A *set* is one layer's predictions of all images.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lowrank_d2.layers.boxes import cxcywh_to_xyxy, iou
from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.matcher import Pairs
from lowrank_d2.modeling.predictions import Target

RULES = ("released", "paper")


@dataclass(frozen=True)
class PaddedTargets:
    """The boxes of N images with up to G objects each as whole tensors; G is at least 1.

    Attributes:
        labels: (N, G) int64, 0 where there is no object.
        boxes: (N, G, 4) cxcywh, 0 where there is no object.
        present: (N, G) bool.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor

    @classmethod
    def of(cls, targets: Sequence[Target]) -> "PaddedTargets":
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        if labels.shape[1] == 0:
            labels, boxes = labels.new_zeros(len(targets), 1), boxes.new_zeros(len(targets), 1, 4)
        counts = torch.tensor([len(target.labels) for target in targets], device=labels.device)
        return cls(labels, boxes, torch.arange(labels.shape[1], device=labels.device) < counts[:, None])


@dataclass(frozen=True)
class Assignment:
    """R pairs of a query and an object, over S sets of N images.

    Attributes:
        sets, images, queries, targets: (R,) int64 indices.
        decides: (R,) bool; of several pairs of one query, the one whose class the query has to answer with.
    """

    sets: Tensor
    images: Tensor
    queries: Tensor
    targets: Tensor
    decides: Tensor

    @classmethod
    def of_pairs(cls, pairs: Sequence[Sequence[Pairs]], device: torch.device) -> "Assignment":
        """Of a matcher's pairs, `pairs[set][image]`, in which every query occurs once."""
        flat = [(s, n, pair) for s, images in enumerate(pairs) for n, pair in enumerate(images)]
        counts = torch.tensor([len(pair.queries) for _, _, pair in flat], device=device)
        places = torch.tensor([(s, n) for s, n, _ in flat], device=device).reshape(-1, 2)
        sets, images = places.repeat_interleave(counts, dim=0).unbind(1)
        queries, targets = (torch.cat([getattr(pair, name) for _, _, pair in flat]) for name in ("queries", "targets"))
        return cls(sets, images, queries, targets, torch.ones_like(queries, dtype=torch.bool))

    @classmethod
    def of_table(cls, table: Tensor) -> "Assignment":
        """Of the object of every query (S, N, Q), -1 for none."""
        sets, images, queries = (table >= 0).nonzero(as_tuple=True)
        targets = table[sets, images, queries]
        return cls(sets, images, queries, targets, torch.ones_like(queries, dtype=torch.bool))

    def pairs(self, sets: int, images: int) -> list[list[Pairs]]:
        """The deciding pairs, `pairs[set][image]`, by query."""
        result = []
        for s in range(sets):
            of_set = []
            for n in range(images):
                mine = self.decides & (self.sets == s) & (self.images == n)
                queries, order = self.queries[mine].sort()
                of_set.append(Pairs(queries, self.targets[mine][order]))
            result.append(of_set)
        return result

    def table(self, shape: Sequence[int]) -> Tensor:
        """The object that decides over each query, of the given shape (S, N, Q); -1 for none."""
        where = [index[self.decides] for index in (self.sets, self.images, self.queries)]
        return self.targets.new_full(tuple(shape), -1).index_put(tuple(where), self.targets[self.decides])


def match_scores(logits: Tensor, boxes: Tensor, targets: PaddedTargets, alpha: Tensor) -> Tensor:
    """alpha * probability of the object's class + (1 - alpha) * IoU, for every object and query.

    Args:
        logits: (..., N, Q, C); boxes: (..., N, Q, 4) cxcywh.
        alpha: broadcasts against the result.

    Returns:
        (..., N, G, Q) float32; what stands for no object means nothing.
    """
    labels = targets.labels[:, None].expand(*logits.shape[:-1], -1)
    probability = logits.float().gather(-1, labels).sigmoid().transpose(-1, -2)
    true = cxcywh_to_xyxy(targets.boxes.float())[:, :, None]
    overlap = iou(true, cxcywh_to_xyxy(boxes.float())[..., None, :, :])
    return alpha * probability + (1 - alpha) * overlap


class OneToManyAssigner:
    """Assigns up to k queries to each object, with a k, a threshold and a weighting for every branch.

    The released rule: a query is positive if its best object scores at least tau, or if it is the best query of some
    object. Of more than `cap` of all queries a random part stays positive. An object that is the best one of c positive
    queries then takes its min(c, k) best queries, be they positive for it or not; so an object may get none, and a
    query several objects. The paper's rule: every object takes its up to k best queries that score more than tau.

    Args:
        k: for every branch, the most queries of an object.
        tau: the thresholds.
        alpha: the weights of the class probability in the score; the rest is IoU.
        cap: the largest share of positive queries, with the released rule.
        rule: "released" or "paper".
        merge_indices: queries that are left free take their one-to-one pair, and a query keeps one object alone.
    """

    def __init__(
        self,
        *,
        k: Sequence[int],
        tau: Sequence[float],
        alpha: Sequence[float],
        cap: float = 0.25,
        rule: str = "released",
        merge_indices: bool = False,
    ):
        self.k, self.tau, self.alpha = tuple(k), tuple(tau), tuple(alpha)
        self.cap, self.rule, self.merge_indices = cap, rule, merge_indices

    @torch.no_grad()
    def __call__(
        self, logits: Tensor, boxes: Tensor, targets: PaddedTargets, one_to_one: Assignment, draws: Draws
    ) -> tuple[Assignment, Tensor]:
        """The pairs of all branches and layers.

        Args:
            logits: (branches, layers, N, Q, C); boxes: (branches, layers, N, Q, 4).
            one_to_one: of the layers' primary predictions.

        Returns:
            the pairs, over branches * layers sets, and the scores (branches * layers, N, G, Q).
        """
        scores = match_scores(logits, boxes, targets, self._by_branch(self.alpha, scores_dim=5, like=boxes))
        keep = self._draw(scores, targets, draws) if self.rule == "released" else None
        paired = self.assign(scores, targets.present, keep).flatten(0, 1)
        scores = scores.flatten(0, 1)
        if not self.merge_indices:
            return assignment_of(paired, scores), scores
        table = one_to_one.table(logits.shape[1:-1])
        return merged(paired, scores, table.repeat(len(logits), 1, 1)), scores

    def assign(self, scores: Tensor, present: Tensor, keep: Optional[Tensor] = None) -> Tensor:
        """Which pairs belong together.

        Args:
            scores: (branches, ..., G, Q).
            present: (..., G) bool, the objects that exist; broadcasts against the scores.
            keep: (branches, ..., Q), random numbers; of too many positive queries those with the smallest stay.

        Returns:
            (branches, ..., G, Q) bool

        Raises:
            ValueError: with the released rule, a k above Q.
        """
        scores = scores.masked_fill(~present[..., None], -1.0)
        tau = self._by_branch(self.tau, scores.dim() - 1, scores)
        k = self._by_branch(self.k, scores.dim() - 1, scores)
        if self.rule == "paper":
            values, order = scores.sort(dim=-1, descending=True, stable=True)
            chosen = (torch.arange(scores.shape[-1], device=scores.device) < k[..., None]) & (values > tau[..., None])
        else:
            if max(self.k) > scores.shape[-1]:
                raise ValueError(f"k is {max(self.k)}, but there are only {scores.shape[-1]} queries")
            taken = torch.minimum(self._owned(scores, present, tau, keep), k)
            order = scores.topk(max(self.k), dim=-1).indices
            chosen = torch.arange(max(self.k), device=scores.device) < taken[..., None]
        chosen = chosen & present[..., None]
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, chosen)

    def _owned(self, scores: Tensor, present: Tensor, tau: Tensor, keep: Tensor) -> Tensor:
        """How many positive queries have an object as their best one: (branches, ..., G)."""
        score, owner = scores.max(-2)
        favourite = scores.argmax(-1)
        forced = torch.zeros_like(score).scatter_reduce(-1, favourite, present.to(score).expand_as(favourite), "amax")
        positive = (score >= tau) | (forced > 0)
        rank = keep.masked_fill(~positive, torch.inf).argsort(-1).argsort(-1)
        kept = positive & (rank < int(self.cap * scores.shape[-1]))
        return torch.zeros_like(favourite).scatter_add(-1, owner, kept.long())

    @staticmethod
    def _by_branch(values: Sequence[float], scores_dim: int, like: Tensor) -> Tensor:
        return torch.tensor(values, device=like.device).view(-1, *(1,) * (scores_dim - 1))

    @staticmethod
    def _draw(scores: Tensor, targets: PaddedTargets, draws: Draws) -> Tensor:
        """(branches, layers, N, Q); images without objects need no numbers."""
        keep = scores.new_zeros(*scores.shape[:3], scores.shape[-1])
        filled = targets.present.any(1).tolist()
        for branch, layers in enumerate(keep):
            for layer, images in enumerate(layers):
                for image, row in enumerate(images):
                    if filled[image]:
                        purpose = f"assigner/branch_{branch}/layer_{layer}/image_{image}/keep"
                        row.copy_(draws.uniform(purpose, row.shape, row.device))
        return keep


def assignment_of(paired: Tensor, scores: Tensor) -> Assignment:
    """The pairs of (S, N, G, Q) bool; of several objects of one query that with the highest score decides."""
    sets, images, targets, queries = paired.nonzero(as_tuple=True)
    winner = _winner(paired, scores)
    return Assignment(sets, images, queries, targets, winner[sets, images, queries] == targets)


def merged(paired: Tensor, scores: Tensor, one_to_one: Tensor) -> Assignment:
    """One-to-many pairs (S, N, G, Q), and the one-to-one pairs of all queries that have none.

    Every query keeps one object, that with the highest score.

    Args:
        one_to_one: (S, N, Q), the object of every query, -1 for none.
    """
    winner = _winner(paired, scores)
    return Assignment.of_table(torch.where(winner >= 0, winner, one_to_one))


def _winner(paired: Tensor, scores: Tensor) -> Tensor:
    """The object that decides over each query, (S, N, Q), of equal ones the last; -1 for none."""
    from_last = scores.masked_fill(~paired, -torch.inf).flip(-2).argmax(-2)
    return torch.where(paired.any(-2), scores.shape[-2] - 1 - from_last, -1)
