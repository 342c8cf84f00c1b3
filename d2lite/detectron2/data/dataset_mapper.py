"""The default way from a record of a dataset to a model's input."""
import copy
import logging

import numpy as np
import torch

from detectron2.config import configurable

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Reads a record's image, augments it together with its annotations, and makes tensors of both.

    Args:
        instance_mask_format: "polygon" or "bitmask"; image_format: as for `detection_utils.read_image`.
        keypoint_hflip_indices: from `detection_utils.create_keypoint_hflip_indices`.
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
        self.is_train, self.image_format = is_train, image_format
        self.use_instance_mask, self.instance_mask_format = use_instance_mask, instance_mask_format
        self.use_keypoint, self.keypoint_hflip_indices = use_keypoint, keypoint_hflip_indices
        self.recompute_boxes, self.proposal_topk = recompute_boxes, precomputed_proposal_topk
        self.augmentations = T.AugmentationList(augmentations)
        purpose = "Training" if is_train else "Testing"
        logging.getLogger(__name__).info(f"{purpose} augments images by {augmentations}.")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = dict(
            is_train=is_train, augmentations=augmentations, image_format=cfg.INPUT.FORMAT,
            use_instance_mask=cfg.MODEL.MASK_ON, instance_mask_format=cfg.INPUT.MASK_FORMAT,
            recompute_boxes=crops and cfg.MODEL.MASK_ON, use_keypoint=cfg.MODEL.KEYPOINT_ON,
        )
        if cfg.MODEL.KEYPOINT_ON:
            arguments["keypoint_hflip_indices"] = utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        if cfg.MODEL.LOAD_PROPOSALS:
            split = "TRAIN" if is_train else "TEST"
            arguments["precomputed_proposal_topk"] = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
        return arguments

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape: tuple[int, int]) -> None:
        """Replace "annotations" by "instances"; crowds and what became empty are left out."""
        unused = {"segmentation": not self.use_instance_mask, "keypoints": not self.use_keypoint}
        transformed = []
        for annotation in dataset_dict.pop("annotations"):
            if annotation.get("iscrowd", 0) == 0:
                kept = {name: value for name, value in annotation.items() if not unused.get(name)}
                moved = utils.transform_instance_annotations(
                    kept, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                )
                transformed.append(moved)
        instances = utils.annotations_to_instances(transformed, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)

    def __call__(self, dataset_dict: dict) -> dict:
        """A copy of a record with "image", (C, H, W) uint8, and for training "instances".

        If the record names a "sem_seg_file_name" also "sem_seg", (H, W) int64. "height" and "width" stay the file's.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        pixels = utils.read_image(dataset_dict["file_name"], self.image_format)
        utils.check_image_size(dataset_dict, pixels)
        label_file = dataset_dict.pop("sem_seg_file_name", None)
        labels = None if label_file is None else utils.read_image(label_file, "L")[:, :, 0]

        both = T.AugInput(pixels, sem_seg=labels)
        transforms = self.augmentations(both)
        size = both.image.shape[:2]
        # Negative strides, which flips leave, cannot become a tensor.
        channels_first = np.ascontiguousarray(np.moveaxis(both.image, 2, 0))
        dataset_dict["image"] = torch.as_tensor(channels_first)
        if labels is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(both.sem_seg.astype(np.int64))
        if self.proposal_topk:
            utils.transform_proposals(dataset_dict, size, transforms, proposal_topk=self.proposal_topk)

        if self.is_train and "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, size)
        dataset_dict.pop("annotations", None)
        return dataset_dict
