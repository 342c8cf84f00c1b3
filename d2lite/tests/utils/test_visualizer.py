import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

import detectron2
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer, _create_text_labels

H, W = 60, 80

is_lite = getattr(detectron2, "__runtime__", None) == "lite"
lite_only = pytest.mark.skipif(not is_lite, reason="a full Detectron2 has this")
mended = pytest.mark.skipif(not is_lite, reason="a defect of Detectron2 that the lite runtime mends")


@pytest.fixture
def image():
    return np.full((H, W, 3), 100, np.uint8)


@pytest.fixture
def metadata():
    return Metadata(
        name="test_visualizer",
        thing_classes=["cat", "dog"],
        thing_colors=[[255, 0, 0], [0, 0, 255]],
        stuff_classes=["sky", "road"],
        stuff_colors=[[0, 255, 0], [0, 0, 255]],
        keypoint_names=["left_eye", "right_eye"],
        keypoint_connection_rules=[("left_eye", "right_eye", (0, 0, 255))],
    )


def square(x0, y0, x1, y1):
    mask = np.zeros((H, W), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def changed(output, image):
    """(H, W) bool: where the picture differs from the plain image."""
    return (np.abs(output.get_image().astype(int) - image) > 2).any(axis=2)


class TestVisImage:
    @pytest.mark.parametrize("scale", [1.0, 0.5, 1.2, 3])
    def test_size(self, image, scale):
        assert VisImage(image, scale).get_image().shape == (int(H * scale), int(W * scale), 3)

    @mended
    def test_an_untouched_image_stays(self):
        pixels = np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)
        assert np.array_equal(Visualizer(pixels).get_output().get_image(), pixels)

    def test_save(self, image, tmp_path):
        VisImage(image, 2).save(str(tmp_path / "a.png"))
        assert Image.open(tmp_path / "a.png").size == (2 * W, 2 * H)


class TestGenericMask:
    POLYGON = [10.0, 10, 30, 10, 30, 20, 10, 20]

    def test_of_every_kind(self):
        mask = square(10, 10, 30, 20)
        rle = mask_util.encode(np.asfortranarray(mask))
        counts = [10 * H + 10] + [10, H - 10] * 19 + [10]
        uncompressed = {"size": [H, W], "counts": counts + [H * W - sum(counts)]}
        for kind in (mask, mask.astype(bool), rle, uncompressed, [self.POLYGON]):
            generic = GenericMask(kind, H, W)
            assert np.array_equal(generic.mask, mask)
            assert generic.area() == 200
            if is_lite:  # a full Detectron2 takes the outline's, half a pixel inside
                assert generic.bbox().tolist() == [10, 10, 30, 20]
            assert not generic.has_holes

    def test_outlines_run_through_pixel_centres(self):
        (outline,) = GenericMask(square(10, 10, 30, 20), H, W).polygons
        assert outline.reshape(-1, 2).min(axis=0).tolist() == [10.5, 10.5]
        assert outline.reshape(-1, 2).max(axis=0).tolist() == [29.5, 19.5]

    def test_holes(self):
        mask = square(10, 10, 30, 30) - square(15, 15, 20, 20)
        assert GenericMask(mask, H, W).has_holes

    def test_bad_masks(self):
        with pytest.raises(AssertionError):
            GenericMask(np.zeros((W, H), np.uint8), H, W)
        with pytest.raises((ValueError, AssertionError)):
            GenericMask("mask", H, W)


class TestPrimitives:
    def test_box(self, image):
        where = changed(Visualizer(image).draw_box((20, 15, 60, 45), edge_color="r", alpha=1), image)
        assert where[15, 20:60].all() and where[15:45, 20].all()
        assert not where[25:35, 30:50].any() and not where[:10].any()

    def test_circle_line_polygon(self, image):
        drawn = Visualizer(image)
        drawn.draw_circle((20, 20), color="r", radius=5)
        drawn.draw_line([40, 70], [50, 50], color="b")
        drawn.draw_polygon(np.array([[50, 10], [70, 10], [70, 30], [50, 30]]), color=(0, 1, 0), alpha=1)
        out = drawn.get_output().get_image()
        assert out[20, 20].tolist() == [255, 0, 0]
        assert out[50, 55, 2] > 150
        assert out[20, 60].tolist() == [0, 255, 0]

    def test_text(self, image):
        where = changed(Visualizer(image).draw_text("name", (40, 20), color="w"), image)
        rows, columns = where.nonzero()
        assert rows.min() >= 17 and abs(columns.mean() - 40) < 4

    def test_binary_mask(self, image):
        out = Visualizer(image).draw_binary_mask(square(20, 20, 40, 40), color="red", alpha=0.5).get_image()
        assert np.allclose(out[30, 30], [178, 50, 50], atol=2)
        assert (out[50:] == 100).all()

    def test_holes_stay_free(self, image):
        mask = square(10, 10, 50, 50) - square(20, 20, 40, 40)
        out = Visualizer(image).draw_binary_mask(mask, color="red", alpha=1.0).get_image()
        assert out[30, 30].tolist() == [100, 100, 100]
        assert out[15, 30].tolist() == [255, 0, 0]

    def test_small_parts_are_left_out(self, image):
        assert not changed(Visualizer(image).draw_binary_mask(square(5, 5, 8, 8), color="red", text="x"), image).any()

    def test_soft_mask(self, image):
        soft = np.linspace(0, 1, W)[None].repeat(H, axis=0)
        out = Visualizer(image).draw_soft_mask(soft, color="red", alpha=1.0).get_image()
        assert np.allclose(out[30, :, 0], 100 + 155 * soft[30], atol=3 if is_lite else 6)


class TestLabels:
    def test_combinations(self):
        names = ["cat", "dog"]
        assert _create_text_labels([1, 0], [0.934, 0.5], names) == ["dog 93%", "cat 50%"]
        assert _create_text_labels([1], None, names, [1]) == ["dog|crowd"]
        assert _create_text_labels([1], None, None) == ["1"]
        assert _create_text_labels(None, [0.5], names) == ["50%"]
        assert _create_text_labels(None, None, names) is None


class TestInstances:
    def predictions(self):
        return Instances(
            (H, W),
            pred_boxes=Boxes(torch.tensor([[5.0, 25, 35, 55], [45, 25, 75, 55]])),
            pred_classes=torch.tensor([0, 1]),
            scores=torch.tensor([0.9, 0.6]),
            pred_masks=torch.from_numpy(np.stack([square(5, 25, 35, 55), square(45, 25, 75, 55)]).astype(bool)),
        )

    def test_class_colors(self, image, metadata):
        drawn = Visualizer(image, metadata, instance_mode=ColorMode.SEGMENTATION)
        out = drawn.draw_instance_predictions(self.predictions(), jittering=False).get_image()
        assert np.allclose(out[48, 20], [224, 20, 20], atol=2)
        assert np.allclose(out[48, 60], [20, 20, 224], atol=2)

    def test_without_metadata_and_masks(self, image):
        predictions = self.predictions()
        predictions.remove("pred_masks")
        where = changed(Visualizer(image).draw_instance_predictions(predictions), image)
        assert where[40, 5] and not where[45, 20]

    def test_grey(self, metadata):
        colorful = np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)
        drawn = Visualizer(colorful, metadata, instance_mode=ColorMode.IMAGE_BW)
        out = drawn.draw_instance_predictions(self.predictions()[:0]).get_image()
        assert np.ptp(out.astype(int), axis=2).max() <= 1
        drawn = Visualizer(colorful, metadata, instance_mode=ColorMode.IMAGE_BW)
        out = drawn.draw_instance_predictions(self.predictions()).get_image()
        assert np.ptp(out[:10].astype(int), axis=2).max() <= 1
        assert np.ptp(out[45:50, 10:30].astype(int), axis=2).max() > 50

    @pytest.mark.parametrize("kind", [lambda m: BitMasks(m), lambda m: list(m), lambda m: list(m.astype(bool))])
    def test_overlay_of_masks(self, image, kind):
        masks = kind(np.stack([square(5, 5, 25, 25), square(50, 5, 70, 25)]))
        out = Visualizer(image).overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1).get_image()
        assert out[15, 15].tolist() == [255, 0, 0] and out[15, 60].tolist() == [0, 0, 255]

    def test_overlay_of_polygons(self, image):
        masks = PolygonMasks([[np.array([5.0, 5, 25, 5, 25, 25, 5, 25])]])
        out = Visualizer(image).overlay_instances(masks=masks, assigned_colors=["r"], alpha=1).get_image()
        assert out[15, 15].tolist() == [255, 0, 0]

    def test_small_ones_on_top(self, image):
        masks = [square(20, 20, 30, 30), square(5, 5, 70, 55)]
        out = Visualizer(image).overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1).get_image()
        assert out[25, 25].tolist() == [255, 0, 0]

    def test_nothing(self, image):
        assert not changed(Visualizer(image).overlay_instances(boxes=np.zeros((0, 4))), image).any()

    def test_counts_must_agree(self, image):
        with pytest.raises(AssertionError):
            Visualizer(image).overlay_instances(boxes=np.array([[1, 1, 5, 5]]), labels=["a", "b"])

    def test_keypoints(self, image, metadata):
        keypoints = np.array([[[20.0, 30, 1], [60, 30, 1]], [[20, 50, 1], [60, 50, 0.01]]])
        out = Visualizer(image, metadata).overlay_instances(keypoints=keypoints).get_image()
        assert out[30, 40, 2] > 150  # the line between two visible points
        assert out[50, 20].tolist() == [255, 0, 0] and out[50, 60].tolist() == [100, 100, 100]

    @lite_only
    def test_rotated_boxes_refuse(self, image):
        with pytest.raises(detectron2.NotInLiteRuntime):
            Visualizer(image).overlay_instances(boxes=np.array([[30.0, 30, 10, 10, 45]]))
        with pytest.raises(detectron2.NotInLiteRuntime):
            Visualizer(image).draw_rotated_box_with_label((30, 30, 10, 10, 45))


class TestDatasetDict:
    def test_instances(self, image, metadata):
        record = {
            "annotations": [
                {
                    "bbox": [10, 20, 20, 20],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": 0,
                    "segmentation": [[10, 20, 30, 20, 30, 40, 10, 40]],
                    "keypoints": [15, 25, 2, 25, 35, 0],
                }
            ]
        }
        where = changed(Visualizer(image, metadata).draw_dataset_dict(record), image)
        assert where[30, 20] and where[25, 15] and not where[:15].any() and not where[:, 50:].any()

    def test_label_files(self, image, metadata, tmp_path):
        labels = square(0, 0, 40, H) + 1
        Image.fromarray(labels % 2).save(tmp_path / "sem.png")
        record = {"sem_seg_file_name": str(tmp_path / "sem.png")}
        out = Visualizer(image, metadata).draw_dataset_dict(record).get_image()
        assert np.allclose(out[10, 10], [50, 178, 50], atol=2) and np.allclose(out[10, 60], [50, 50, 178], atol=2)

    @pytest.mark.skipif(not is_lite, reason="a full Detectron2 needs panopticapi for this")
    def test_panoptic_file(self, image, metadata, tmp_path):
        ids = np.zeros((H, W, 3), np.uint8)
        ids[:, :40, 1] = 1  # id 256
        Image.fromarray(ids).save(tmp_path / "pan.png")
        record = {
            "pan_seg_file_name": str(tmp_path / "pan.png"),
            "segments_info": [{"id": 256, "category_id": 0, "isthing": False}],
        }
        out = Visualizer(image, metadata).draw_dataset_dict(record).get_image()
        assert np.allclose(out[10, 10], [50, 178, 50], atol=2) and (out[10, 60] == 100).all()

    def test_nothing_to_draw(self, image):
        assert not changed(Visualizer(image).draw_dataset_dict({"annotations": []}), image).any()


class TestSegmentations:
    def test_semantic(self, image, metadata):
        labels = torch.from_numpy(square(40, 0, W, H).astype(np.int64))
        labels[:10] = 255
        out = Visualizer(image, metadata).draw_sem_seg(labels, draw_text=False, alpha=0.5).get_image()
        assert np.allclose(out[30, 10], [50, 178, 50], atol=2) and np.allclose(out[30, 70], [50, 50, 178], atol=2)
        assert (out[5] == 100).all()

    @pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
    def test_panoptic(self, image, metadata, mode):
        segments = torch.from_numpy(square(0, 0, 40, H).astype(np.int64))
        segments[20:40, 50:70] = 7
        infos = [
            {"id": 1, "category_id": 0, "isthing": False},
            {"id": 7, "category_id": 1, "isthing": True, "score": 0.8},
        ]
        out = Visualizer(image, metadata, instance_mode=mode).draw_panoptic_seg(segments, infos, alpha=0.5).get_image()
        assert np.allclose(out[50, 5], [50, 178, 50], atol=2)
        assert out[38, 68, 2] > 120 and (out[5, 75] == 100).all()

    def test_panoptic_ids_of_class_and_instance(self, image, metadata):
        metadata = Metadata(
            name="x",
            label_divisor=1000,
            thing_dataset_id_to_contiguous_id={5: 1},
            thing_classes=["cat", "dog"],
            thing_colors=[[255, 0, 0], [0, 0, 255]],
            stuff_classes=["sky", "road"],
            stuff_colors=[[0, 255, 0], [0, 0, 255]],
        )
        segments = np.full((H, W), -1)
        segments[:, :40] = 0
        segments[20:40, 50:70] = 1003
        out = Visualizer(image, metadata).draw_panoptic_seg(torch.from_numpy(segments), None, alpha=0.5).get_image()
        assert np.allclose(out[50, 5], [50, 178, 50], atol=2)
        assert (out[5, 75] == 100).all() and (out[38, 68] != 100).any()
