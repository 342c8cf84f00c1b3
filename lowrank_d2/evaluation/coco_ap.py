"""COCO's average precision in memory that images hardly add to: 22 bytes a detection.

pycocotools keeps every detection with its mask, every IoU and every match until the end, some 200 kilobytes an image.
Here images come in blocks; of a detection remain its score and whether it is right, wrong or ignored at each IoU
threshold and in each range of areas. Areas and IoUs are pycocotools' own; all numbers equal its own to the last bit.
"""

import itertools

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

_BELOW_ONE = 1 - 1e-10  # an IoU of 1 that rounding has lowered passes the threshold 1, as in pycocotools


class BlockwiseCOCOeval(COCOeval):
    """pycocotools' COCOeval, fed by `add` instead of `evaluate`; then `accumulate` and `summarize` as ever.

    `params` may be changed before the first `add`, with ascending maxDets.
    """

    def __init__(self, task: str, categories: list[dict]):
        """
        Args:
            task: "bbox", "segm" or "keypoints".
            categories: of the ground truth, COCO's objects.
        """
        super().__init__(iouType=task)
        self._categories = categories
        self.params.catIds = sorted(category["id"] for category in categories)
        self._kept = {category: bytearray() for category in self.params.catIds}  # a _row a detection, image after image
        self._positives = dict.fromkeys(self.params.catIds, 0)  # (A,) objects to be found, once there are any

    def add(self, images: list[dict], annotations: list[dict], results: list[dict]) -> None:
        """Judges the detections of a block of whole images. Blocks come by ascending image id.

        Args:
            images: COCO's objects, at least their id, height and width.
            annotations: of these images; they are changed.
            results: COCO results of these images; they are changed.
        """
        self.params.imgIds = sorted(image["id"] for image in images)
        self.cocoGt = _coco(images, annotations, self._categories)
        self.cocoDt = self.cocoGt.loadRes(results) if results else _coco(images, [], self._categories)
        self._prepare()
        ignored = {pair: self._ignored(truth) for pair, truth in self._gts.items()}
        for (_, category), flags in ignored.items():
            self._positives[category] = self._positives[category] + (~flags).sum(axis=1)
        if self._dts:
            self._judge(sorted(self._dts), ignored)
        self.cocoGt = self.cocoDt = None
        self._gts.clear()
        self._dts.clear()

    def accumulate(self) -> None:
        """Fills `eval`: precision and scores (T, R, K, A, M), recall (T, K, A, M), -1 where nothing is to be found."""
        params = self.params
        counts = [len(each) for each in (params.iouThrs, params.recThrs, params.catIds, params.areaRng, params.maxDets)]
        precision, scores = np.full(counts, -1.0), np.full(counts, -1.0)
        recall = np.full([count for axis, count in enumerate(counts) if axis != 1], -1.0)
        for k, category in enumerate(params.catIds):
            rows = np.frombuffer(self._kept[category], self._row)
            rows = rows[np.argsort(-rows["score"], kind="mergesort")]
            positives = np.broadcast_to(self._positives[category], counts[3])
            for m, limit in enumerate(params.maxDets):
                counted = rows[rows["place"] < limit]
                for a, t in itertools.product(np.flatnonzero(positives), range(counts[0])):
                    right, wrong = (_bit(counted[name], a * counts[0] + t) for name in ("right", "wrong"))
                    at = t, slice(None), k, a, m
                    precision[at], scores[at], recall[t, k, a, m] = _curve(
                        right, wrong, counted["score"], positives[a], params.recThrs
                    )
        self.eval = {"params": params, "counts": counts, "precision": precision, "recall": recall, "scores": scores}

    @property
    def _row(self) -> np.dtype:
        """A detection: score; place among the image's by score; a bit for each range of areas and IoU threshold."""
        size = (len(self.params.areaRng) * len(self.params.iouThrs) + 7) // 8
        return np.dtype([("score", "f8"), ("place", "u4"), ("right", "u1", size), ("wrong", "u1", size)])

    def _judge(self, pairs: list[tuple], ignored: dict[tuple, np.ndarray]) -> None:
        """Notes what becomes of all detections, of `pairs` (image, category); `ignored` has the pairs with objects."""
        found = [each for pair in pairs for each in self._dts[pair]]
        sizes = [len(self._dts[pair]) for pair in pairs]
        starts, pair_of = np.cumsum([0, *sizes]), np.repeat(np.arange(len(pairs)), sizes)
        scores = np.array([each["score"] for each in found])
        order = np.lexsort((-scores, pair_of))  # equal scores stay in order; so pair_of is that of the sorted ones, too

        shape = (len(self.params.areaRng), len(self.params.iouThrs), len(found))
        matched, skipped = np.zeros(shape, bool), np.zeros(shape, bool)
        compare = self.computeOks if self.params.iouType == "keypoints" else self.computeIoU
        for pair, start in zip(pairs, starts):
            if pair in ignored:
                ious = np.asarray(compare(*pair))
                part = np.s_[:, :, start : start + len(ious)]
                matched[part], skipped[part] = self._match(ious, self._gts[pair], ignored[pair])
        skipped |= ~matched & _outside(np.array([each["area"] for each in found])[order], self.params.areaRng)[:, None]

        rows = np.zeros(len(found), self._row)
        rows["score"], rows["place"] = scores[order], np.arange(len(found)) - starts[pair_of]
        for name, flags in {"right": matched & ~skipped, "wrong": ~matched & ~skipped}.items():
            rows[name] = np.packbits(flags.reshape(-1, len(found)), axis=0).T
        counts = rows["place"] < self.params.maxDets[-1]
        category_of = np.array([category for _, category in pairs])[pair_of]
        for category in {category for _, category in pairs}:
            self._kept[category] += rows[counts & (category_of == category)].tobytes()

    def _match(self, ious: np.ndarray, truth: list[dict], ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(A, T, D) bool each: which detections match an object, and which an ignored one."""
        crowd = np.array([bool(each["iscrowd"]) for each in truth])
        partner = match(ious, ignored, crowd, np.minimum(self.params.iouThrs, _BELOW_ONE))
        counts = np.array([each["id"] != 0 for each in truth])  # pycocotools notes the id, and takes 0 for no match
        return (partner >= 0) & counts[partner], (partner >= 0) & np.take_along_axis(ignored[:, None], partner, axis=2)

    def _ignored(self, truth: list[dict]) -> np.ndarray:
        """(A, G) bool: the objects that are not to be found."""
        outside = _outside(np.array([each["area"] for each in truth]), self.params.areaRng)
        return outside | np.array([bool(each["ignore"]) for each in truth])


def match(ious: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """COCO's greedy matching, for all ranges of areas and thresholds at once.

    By descending score each detection takes, of the objects that reach the threshold and are free, the one with the
    greatest IoU (the last of equal ones); an ignored object only where there is no other. A crowd stays free.

    Args:
        ious: (D, G), detections by descending score.
        ignored: (A, G) bool, objects that do not count, crowds among them.
        crowd: (G,) bool.
        thresholds: (T,).

    Returns:
        (A, T, D) int, the object of each detection, -1 for none.
    """
    count = ious.shape[1]
    partner = np.full((len(ignored), len(thresholds), len(ious)), -1)
    taken = np.zeros((len(ignored), len(thresholds), count), bool)
    bonus = np.where(ignored, 0, count)[:, None]
    rank = np.empty(count, int)
    for index in np.flatnonzero((ious >= thresholds.min()).any(axis=1)):  # few: most detections overlap no object
        rank[np.argsort(ious[index], kind="stable")] = np.arange(1, count + 1)
        free = (ious[index] >= thresholds[:, None]) & ~taken
        worth = np.where(free, rank + bonus, 0)
        best = worth.argmax(axis=2)
        a, t = np.nonzero(worth.max(axis=2))
        partner[a, t, index] = best[a, t]
        taken[a, t, best[a, t]] = ~crowd[best[a, t]]
    return partner


def _curve(
    right: np.ndarray, wrong: np.ndarray, scores: np.ndarray, positives: int, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Precision and score at the recalls `at` (R,), 0 where they are not reached, and the greatest recall.

    Args:
        right, wrong: (D,) bool, by descending score.
        scores: (D,).
        positives: number of objects to be found.
    """
    precision, score = np.zeros(len(at)), np.zeros(len(at))
    if not len(right):
        return precision, score, 0.0
    hits, misses = np.cumsum(right, dtype=float), np.cumsum(wrong, dtype=float)
    recall = hits / positives
    best = np.maximum.accumulate((hits / (misses + hits + np.spacing(1)))[::-1])[::-1]  # at this recall or above
    place = np.searchsorted(recall, at, side="left")
    reached = place < len(recall)
    precision[reached], score[reached] = best[place[reached]], scores[place[reached]]
    return precision, score, recall[-1]


def _outside(areas: np.ndarray, ranges: list[list[float]]) -> np.ndarray:
    """(A, N) bool: which of the `areas` (N,) lie outside each of the ranges (least, greatest)."""
    limits = np.array(ranges)
    return (areas < limits[:, :1]) | (areas > limits[:, 1:])


def _bit(packed: np.ndarray, index: int) -> np.ndarray:
    """(D,) bool: one of the bits in `packed` (D, bytes), as numpy's packbits orders them."""
    return (packed[:, index // 8] >> (7 - index % 8) & 1).astype(bool)


def _coco(images: list[dict], annotations: list[dict], categories: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    coco.createIndex()
    return coco
