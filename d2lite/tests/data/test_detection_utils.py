import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks


@pytest.fixture
def pixels():
    return np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


class TestReadImage:
    def test_formats(self, tmp_path, pixels):
        file = str(tmp_path / "a.png")
        Image.fromarray(pixels).save(file)
        assert np.array_equal(utils.read_image(file), pixels)
        assert np.array_equal(utils.read_image(file, "RGB"), pixels)
        assert np.array_equal(utils.read_image(file, "BGR"), pixels[:, :, ::-1])
        grey = utils.read_image(file, "L")
        assert grey.shape == (6, 8, 1) and grey.dtype == np.uint8
        yuv = utils.read_image(file, "YUV-BT.601")
        assert np.allclose(yuv[..., 0], pixels @ [0.299, 0.587, 0.114] / 255)

    @pytest.mark.parametrize("format", ["RGB", "BGR", "YUV-BT.601"])
    def test_back_to_rgb(self, tmp_path, pixels, format):
        file = str(tmp_path / "a.png")
        Image.fromarray(pixels).save(file)
        assert np.allclose(utils.convert_image_to_rgb(utils.read_image(file, format), format), pixels, atol=1)

    def test_palette_without_format_gives_indices(self, tmp_path):
        indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
        picture = Image.fromarray(indices, mode="P")
        picture.putpalette(list(range(60, 60 + 48)))
        picture.save(tmp_path / "p.png")
        assert np.array_equal(utils.read_image(str(tmp_path / "p.png")), indices)

    UPRIGHT = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
        9: lambda a: a,
    }

    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_exif(self, tmp_path, pixels, orientation):
        exif = Image.Exif()
        exif[274] = orientation
        file = str(tmp_path / "a.png")
        Image.fromarray(pixels).save(file, exif=exif)
        assert np.array_equal(utils.read_image(file, "RGB"), self.UPRIGHT[orientation](pixels))


class TestCheckImageSize:
    def test_fills_in(self, pixels):
        record = {}
        utils.check_image_size(record, pixels)
        assert record == {"height": 6, "width": 8}

    def test_mismatch_names_file_and_sizes(self, pixels):
        with pytest.raises(utils.SizeMismatchError, match="x.jpg") as error:
            utils.check_image_size({"height": 8, "width": 6, "file_name": "x.jpg"}, pixels)
        assert isinstance(error.value, ValueError)


class TestTransformAnnotation:
    def test_box_is_clipped(self):
        annotation = {"bbox": [10, 10, 190, 290], "bbox_mode": BoxMode.XYWH_ABS}
        out = utils.transform_instance_annotations(annotation, [T.HFlipTransform(150)], (200, 150))
        assert out["bbox"].tolist() == [0, 10, 140, 200]
        assert out["bbox_mode"] == BoxMode.XYXY_ABS

    def test_polygons(self):
        annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [[1, 1, 5, 1, 5, 5]]}
        out = utils.transform_instance_annotations(annotation, [T.HFlipTransform(10)], (10, 10))
        assert np.allclose(out["segmentation"][0], [9, 1, 5, 1, 5, 5])

    def test_polygons_may_vanish(self):
        annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [[1, 1, 5, 1, 5, 5]]}
        out = utils.transform_instance_annotations(annotation, [T.CropTransform(6, 6, 4, 4)], (4, 4))
        assert len(out["segmentation"]) == 0

    def test_rle(self):
        mask = np.zeros((6, 8), np.uint8)
        mask[:, :3] = 1
        annotation = {"bbox": [0, 0, 3, 6], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": rle(mask)}
        out = utils.transform_instance_annotations(annotation, [T.HFlipTransform(8)], (6, 8))
        assert np.array_equal(out["segmentation"], mask[:, ::-1])

    def test_other_segmentations(self):
        annotation = {"bbox": [0, 0, 3, 6], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": 3}
        with pytest.raises(ValueError):
            utils.transform_instance_annotations(annotation, [T.NoOpTransform()], (6, 8))


class TestKeypoints:
    INDICES = [0, 2, 1]  # nose, left, right

    def test_flip_swaps_sides(self):
        out = utils.transform_keypoint_annotations(
            [4, 1, 2, 2, 3, 2, 6, 3, 1], T.TransformList([T.HFlipTransform(10)]), (10, 10), self.INDICES
        )
        assert out.tolist() == [[6, 1, 2], [4, 3, 1], [8, 3, 2]]

    def test_two_flips_swap_nothing(self):
        flips = T.TransformList([T.HFlipTransform(10), T.HFlipTransform(10)])
        out = utils.transform_keypoint_annotations([4, 1, 2, 2, 3, 2, 6, 3, 1], flips, (10, 10), self.INDICES)
        assert out.tolist() == [[4, 1, 2], [2, 3, 2], [6, 3, 1]]

    def test_outside_becomes_unlabelled(self):
        out = utils.transform_keypoint_annotations(
            [4, 1, 2, 2, 3, 2, 6, 3, 1], T.TransformList([T.CropTransform(3, 0, 5, 5)]), (5, 5)
        )
        assert out.tolist() == [[1, 1, 2], [0, 0, 0], [3, 3, 1]]

    def test_indices_must_fit(self):
        flip = T.TransformList([T.HFlipTransform(10)])
        with pytest.raises(ValueError):
            utils.transform_keypoint_annotations([4, 1, 2], flip, (10, 10), [0, 1])

    def test_from_metadata(self):
        MetadataCatalog.get("test_kp").set(
            keypoint_names=("nose", "left_eye", "right_eye"), keypoint_flip_map=(("left_eye", "right_eye"),)
        )
        assert list(utils.create_keypoint_hflip_indices("test_kp")) == self.INDICES
        MetadataCatalog.remove("test_kp")


class TestAnnotationsToInstances:
    BOX = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2}

    def test_empty(self):
        instances = utils.annotations_to_instances([], (10, 10))
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert len(instances) == 0

    def test_polygons(self):
        instances = utils.annotations_to_instances([{**self.BOX, "segmentation": [[1.0, 1, 5, 1, 5, 5]]}], (10, 10))
        assert isinstance(instances.gt_masks, PolygonMasks)
        assert instances.gt_classes.tolist() == [2]

    def test_bitmasks_of_three_kinds(self):
        square = np.zeros((10, 10), np.uint8)
        square[2:4, 2:4] = 1
        kinds = [[[2.0, 2, 4, 2, 4, 4, 2, 4]], rle(square), square]
        annotations = [{**self.BOX, "segmentation": kind} for kind in kinds]
        instances = utils.annotations_to_instances(annotations, (10, 10), mask_format="bitmask")
        assert isinstance(instances.gt_masks, BitMasks)
        for mask in instances.gt_masks.tensor:
            assert np.array_equal(mask.numpy(), square.astype(bool))

    def test_arrays_are_no_polygons(self):
        with pytest.raises(ValueError):
            utils.annotations_to_instances([{**self.BOX, "segmentation": np.zeros((10, 10), np.uint8)}], (10, 10))


class TestFilterEmpty:
    @pytest.fixture
    def instances(self):
        boxes = np.array([[0.0, 0, 5, 5], [3, 3, 3, 5], [1, 1, 2, 2]])
        masks = np.zeros((3, 6, 6), bool)
        masks[:2] = True
        return Instances((6, 6), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))

    def test_by_box_and_mask(self, instances):
        kept, mask = utils.filter_empty_instances(instances, return_mask=True)
        assert mask.tolist() == [True, False, False]
        assert len(kept) == 1

    def test_one_criterion(self, instances):
        assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
        assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
        with pytest.raises(AssertionError):
            utils.filter_empty_instances(instances, by_box=False, by_mask=False)


class TestMisc:
    def test_crop_around_an_instance(self):
        instance = {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYXY_ABS}
        for seed in range(20):
            np.random.seed(seed)
            crop = utils.gen_crop_transform_with_instance((15, 25), (60, 50), instance)
            assert crop.x0 <= 20 <= crop.x0 + 25 <= 50 and crop.y0 <= 30 <= crop.y0 + 15 <= 60

    def test_metadata_must_agree(self):
        MetadataCatalog.get("test_a").thing_classes = ["a"]
        MetadataCatalog.get("test_b").thing_classes = ["b"]
        utils.check_metadata_consistency("thing_classes", ["test_a", "test_a"])
        with pytest.raises(ValueError):
            utils.check_metadata_consistency("thing_classes", ["test_a", "test_b"])
        MetadataCatalog.remove("test_a"), MetadataCatalog.remove("test_b")

    def test_augmentations_of_a_config(self):
        cfg = get_cfg()
        assert [type(a) for a in utils.build_augmentation(cfg, True)] == [T.ResizeShortestEdge, T.RandomFlip]
        (resize,) = utils.build_augmentation(cfg, False)
        assert (tuple(np.atleast_1d(resize.short_edge_length))[0], resize.max_size) == (800, 1333)
        cfg.INPUT.RANDOM_FLIP = "none"
        assert len(utils.build_augmentation(cfg, True)) == 1
