import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import detectron2
from detectron2.data import transforms as T

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)


class TestResize:
    def test_uint8_is_antialiased(self):
        stripes = np.zeros((8, 8), np.uint8)
        stripes[:, ::2] = 200
        small = T.ResizeTransform(8, 8, 2, 2).apply_image(stripes)
        assert small.dtype == np.uint8
        assert (abs(small.astype(int) - 100) < 20).all()

    def test_float_is_interpolated(self):
        ramp = np.arange(16, dtype=np.float32).reshape(4, 4)
        expected = torch.nn.functional.interpolate(torch.from_numpy(ramp)[None, None], (2, 2), mode="bilinear")
        assert np.allclose(T.ResizeTransform(4, 4, 2, 2).apply_image(ramp), expected[0, 0].numpy())

    @pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3)])
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_axes_are_kept(self, shape, dtype):
        out = T.ResizeTransform(30, 40, 15, 50).apply_image(np.ones(shape, dtype))
        assert out.shape == (15, 50, *shape[2:]) and out.dtype == dtype

    def test_flipped_views(self, image):
        flipped = image.astype(np.float32)[:, ::-1]
        assert T.ResizeTransform(30, 40, 60, 80, Image.NEAREST).apply_image(flipped)[0, 0, 0] == image[0, -1, 0]

    def test_labels_stay_labels(self):
        labels = np.random.RandomState(0).choice([0, 7, 255], (20, 20)).astype(np.uint8)
        assert set(np.unique(T.ResizeTransform(20, 20, 33, 47).apply_segmentation(labels))) <= {0, 7, 255}

    def test_coordinates_and_inverse(self):
        transform = T.ResizeTransform(30, 40, 60, 20)
        assert np.allclose(transform.apply_coords(np.array([[40.0, 30.0], [10, 6]])), [[20, 60], [5, 12]])
        assert np.allclose(transform.inverse().apply_coords(np.array([[20.0, 60.0]])), [[40, 30]])
        with pytest.raises(AssertionError):
            transform.apply_image(np.zeros((40, 30), np.uint8))

    def test_rotated_boxes(self):
        boxes = T.ResizeTransform(400, 200, 800, 800).apply_rotated_box(np.array([[150.0, 100, 40, 20, 30]]))
        assert np.allclose(boxes, [[600, 200, 144.22205, 52.91503, 49.10661]])


class TestExtent:
    def test_window_and_outside(self, image):
        transform = T.ExtentTransform((-10, 0, 30, 30), (30, 40))
        out = transform.apply_image(image)
        assert np.array_equal(out[:, 10:], image[:, :30])
        assert (out[:, :10] == 0).all()
        assert np.allclose(transform.apply_coords(np.array([[0.0, 0.0], [20, 10]])), [[10, 0], [30, 10]])

    @mended
    def test_fill(self, image):
        transform = T.ExtentTransform((-10, 0, 30, 30), (30, 40), fill=9)
        assert (transform.apply_image(image)[:, :10] == 9).all()
        assert (transform.apply_image(image[:, :, 0])[:, :10] == 9).all()

    @mended
    def test_labels_stay_labels(self):
        labels = np.random.RandomState(0).choice([0, 7, 255], (20, 20)).astype(np.uint8)
        out = T.ExtentTransform((1.3, 2.7, 15.1, 18.2), (33, 47)).apply_segmentation(labels)
        assert set(np.unique(out)) <= {0, 7, 255}


class TestRotation:
    def test_quarter_turn(self):
        image = np.random.RandomState(0).rand(4, 6)
        transform = T.RotationTransform(4, 6, 90)
        assert np.allclose(transform.apply_image(image), np.rot90(image))
        assert np.allclose(transform.apply_coords(np.array([[6.0, 0.0], [0, 0]])), [[0, 0], [0, 6]])

    def test_full_turn_changes_nothing(self, image):
        transform = T.RotationTransform(30, 40, 360)
        assert transform.apply_image(image) is image
        assert np.allclose(transform.apply_coords([[3, 4]]), [[3, 4]])

    def test_expand_makes_the_centre_irrelevant(self, image):
        outs = [T.RotationTransform(30, 40, 33, center=center).apply_image(image) for center in (None, (0, 0), (9, 1))]
        assert np.array_equal(outs[0], outs[1]) and np.array_equal(outs[0], outs[2])
        diagonal = np.deg2rad(33)
        width = 40 * np.cos(diagonal) + 30 * np.sin(diagonal)
        height = 40 * np.sin(diagonal) + 30 * np.cos(diagonal)
        assert outs[0].shape[:2] == (round(height), round(width))

    def test_about_a_given_centre(self):
        transform = T.RotationTransform(30, 40, 90, expand=False, center=(10, 20))
        assert np.allclose(transform.apply_coords(np.array([[10.0, 20.0], [15, 20]])), [[10, 20], [10, 15]])

    def test_inverse(self):
        coords = np.array([[0.0, 0.0], [40, 30], [13, 7]])
        transform = T.RotationTransform(30, 40, 65)
        assert np.allclose(transform.inverse().apply_coords(transform.apply_coords(coords)), coords, atol=1)
        with pytest.raises(NotImplementedError):
            T.RotationTransform(30, 40, 65, expand=False).inverse()


class TestColor:
    def test_only_the_image_changes(self, image):
        transform = T.ColorTransform(lambda img: 255 - img)
        assert np.array_equal(transform.apply_image(image), 255 - image)
        labels, coords = np.ones((3, 3)), np.ones((2, 2))
        assert transform.apply_segmentation(labels) is labels
        assert transform.apply_coords(coords) is coords
        assert isinstance(transform.inverse(), T.NoOpTransform)

    def test_pil_operation(self, image):
        expected = np.asarray(ImageOps.posterize(Image.fromarray(image), 2))
        assert np.array_equal(T.PILColorTransform(lambda img: ImageOps.posterize(img, 2)).apply_image(image), expected)

    def test_needs_a_function(self):
        with pytest.raises(ValueError):
            T.ColorTransform(3)
