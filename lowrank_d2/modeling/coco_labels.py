"""Which logit stands for which class: published weights count as COCO does, Detectron2 from 0 without gaps."""

COCO_UNUSED_IDS = frozenset((0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_NUM_LABELS = 91  # the largest category id, and one
COCO_IDS = tuple(label for label in range(COCO_NUM_LABELS) if label not in COCO_UNUSED_IDS)


def label_of_class(num_classes: int, coco_ids: bool) -> tuple[int, ...]:
    """The logit of every class of the data, in the order of the classes."""
    return COCO_IDS if _counts_as_coco(num_classes, coco_ids) else tuple(range(num_classes))


def num_labels(num_classes: int, coco_ids: bool) -> int:
    """How many logits there are, without "no object"."""
    return COCO_NUM_LABELS if _counts_as_coco(num_classes, coco_ids) else num_classes


def _counts_as_coco(num_classes: int, coco_ids: bool) -> bool:
    return coco_ids and num_classes == len(COCO_IDS)
