"""Models of Detectron2's own, made small: narrow sampling and tiny pictures, layers as wide as they are published."""
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import LazyCall
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances

SIDE = 64  # pixels of a picture


def masks_of_two():
    """(2, SIDE, SIDE) bool: two rectangles that overlap."""
    masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    masks[0, 8:40, 6:34] = True
    masks[1, 28:60, 30:62] = True
    return masks


def batches(count=1):
    """`count` batches of one picture with two instances."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        instances = Instances((SIDE, SIDE), gt_masks=BitMasks(masks_of_two()), gt_classes=torch.tensor([1, 5]))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        image = torch.rand(3, SIDE, SIDE, generator=generator) * 255
        made.append([{"image": image, "height": SIDE, "width": SIDE, "instances": instances}])
    return made


def vitdet(depth):
    """The LazyConfig node of ViTDet-B Mask R-CNN; the published depth is 12."""
    from detectron2 import model_zoo

    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    global_blocks = {depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}
    windowed = [block for block in range(depth) if block not in global_blocks]
    model.backbone.net.update(img_size=SIDE, depth=depth, window_block_indexes=windowed)
    model.backbone.square_pad = SIDE
    return with_few_samples(model)


def swin(depths):
    """The LazyConfig node of Mask R-CNN on Swin-B; the published depths are [2, 2, 18, 2]."""
    from detectron2 import model_zoo
    from detectron2.modeling import SwinTransformer

    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up = LazyCall(SwinTransformer)(
        depths=depths, drop_path_rate=0.4, embed_dim=128, num_heads=[4, 8, 16, 32]
    )
    model.backbone.in_features = ("p0", "p1", "p2", "p3")
    return with_few_samples(model)


def with_few_samples(model):
    """Few proposals and samples; every score counts, as random weights give only low ones."""
    model.proposal_generator.update(pre_nms_topk=(20, 20), post_nms_topk=(10, 6))
    model.roi_heads.batch_size_per_image = 8
    model.roi_heads.box_predictor.update(test_score_thresh=0.0, test_topk_per_image=5)
    return model


FEW_SAMPLES = """
MODEL:
  DEVICE: cpu
  RPN: {PRE_NMS_TOPK_TRAIN: 20, PRE_NMS_TOPK_TEST: 20, POST_NMS_TOPK_TRAIN: 10, POST_NMS_TOPK_TEST: 6}
  ROI_HEADS: {BATCH_SIZE_PER_IMAGE: 8, SCORE_THRESH_TEST: 0.0}
TEST: {DETECTIONS_PER_IMAGE: 5}
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}
SOLVER: {IMS_PER_BATCH: 1, BASE_LR: 0.0001, STEPS: []}
DATALOADER: {NUM_WORKERS: 0}
"""


def write_coco(folder: Path, classes: int = 80):
    """images/, train.json with two pictures and val.json with one, in the first classes of COCO."""
    (folder / "images").mkdir(parents=True)
    metadata = MetadataCatalog.get("coco_2017_train")
    ids = sorted(metadata.thing_dataset_id_to_contiguous_id)
    categories = [{"id": key, "name": name} for key, name in zip(ids, metadata.thing_classes)][:classes]
    drawn = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        content = {"images": [], "annotations": [], "categories": categories}
        for number in range(1, count + 1):
            name = f"{split}{number}.png"
            cv2.imwrite(str(folder / "images" / name), drawn.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
            content["images"].append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            for x, y, category in ((6, 8, 1), (30, 28, 18)):
                content["annotations"].append({
                    "id": len(content["annotations"]) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
                    "bbox": [x, y, 28, 32], "area": 896,
                    "segmentation": [[x, y, x + 28, y, x + 28, y + 32, x, y + 32]],
                })
        (folder / f"{split}.json").write_text(json.dumps(content))


def write_pkl(model, path: Path):
    """The weights as the files of Detectron2's model zoo hold them."""
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with open(path, "wb") as stream:
        pickle.dump({"model": arrays, "__author__": "the test"}, stream)
