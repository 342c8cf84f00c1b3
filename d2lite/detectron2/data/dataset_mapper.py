"""The default way from a record of a dataset to a model's input."""
from __future__ import annotations

import copy
import logging

import numpy as np
import torch

from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T

__all__ = ["DatasetMapper"]


class DatasetMapper:
    """Reads a record's image, augments it together with its annotations, and makes tensors of both.

    Args:
        is_train: annotations are used; otherwise they are dropped.
        augmentations: Augmentations or transforms, applied in order.
        image_format: as for `detection_utils.read_image`.
        use_instance_mask, use_keypoint: whether masks and keypoints are kept.
        instance_mask_format: "polygon" or "bitmask".
        keypoint_hflip_indices: from `detection_utils.create_keypoint_hflip_indices`.
        precomputed_proposal_topk: keep so many precomputed proposals; None: the records have none.
        recompute_boxes: take boxes from the transformed masks, tighter than transformed boxes after a crop.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: list[T.Augmentation | T.Transform], image_format: str,
        use_instance_mask: bool = False, use_keypoint: bool = False, instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None, precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ):
        assert use_instance_mask or not recompute_boxes, "recompute_boxes needs use_instance_mask."
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.instance_mask_format = instance_mask_format
        self.use_keypoint = use_keypoint
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.proposal_topk = precomputed_proposal_topk
        self.recompute_boxes = recompute_boxes
        mode = "training" if is_train else "inference"
        logging.getLogger(__name__).info(f"Augmentations used in {mode}: {augmentations}")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
        }
        if cfg.MODEL.KEYPOINT_ON:
            arguments["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        if cfg.MODEL.LOAD_PROPOSALS:
            split = "TRAIN" if is_train else "TEST"
            arguments["precomputed_proposal_topk"] = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
        return arguments

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances"; crowds and what became empty are left out."""
        used = {"segmentation": self.use_instance_mask, "keypoints": self.use_keypoint}
        unused = [name for name in used if not used[name]]
        transformed = []
        for annotation in dataset_dict.pop("annotations"):
            for name in unused:
                annotation.pop(name, None)
            if annotation.get("iscrowd", 0) == 0:
                transformed.append(
                    utils.transform_instance_annotations(
                        annotation, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                    )
                )
        instances = utils.annotations_to_instances(transformed, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: a record in Detectron2's format. It is not changed.

        Returns:
            The record with "image", (C, H, W) uint8; for training "instances" and, if the record names a
            "sem_seg_file_name", "sem_seg", (H, W) int64. "height" and "width" stay those of the file.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = utils.read_image(dataset_dict.pop("sem_seg_file_name"), "L").squeeze(2)

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image, sem_seg = aug_input.image, aug_input.sem_seg
        image_shape = image.shape[:2]
        # Negative strides, which flips leave, cannot become a tensor.
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, image_shape, transforms, proposal_topk=self.proposal_topk)

        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image_shape)
        return dataset_dict
