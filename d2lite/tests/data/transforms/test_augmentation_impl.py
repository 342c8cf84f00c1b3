"""Seeded draws: the expected numbers are those a full Detectron2 gives for the same seed."""
import numpy as np
import pytest
import torch

from detectron2.data import transforms as T

H, W = 71, 103


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (H, W, 3)).astype(np.uint8)


def draw(augmentation, image, seed=0, **inputs):
    np.random.seed(seed)
    aug_input = T.AugInput(image.copy(), **inputs)
    return aug_input, aug_input.apply_augmentations([augmentation])


def draws_left(seed, count):
    """The number that numpy gives after `count` single draws."""
    np.random.seed(seed)
    np.random.rand(count)
    return np.random.rand()


class TestResizeShortestEdge:
    @pytest.mark.parametrize(
        "h, w, size, maximum, expected",
        [(333, 500, 800, 1333, (800, 1201)), (500, 333, 800, 1000, (1000, 666)), (100, 100, 50, 40, (40, 40))],
    )
    def test_output_shape(self, h, w, size, maximum, expected):
        assert T.ResizeShortestEdge.get_output_shape(h, w, size, maximum) == expected

    def test_range_draws_one_integer(self, image):
        np.random.seed(3)
        expected = np.random.randint(40, 61)
        aug_input, _ = draw(T.ResizeShortestEdge((40, 60)), image, seed=3)
        assert aug_input.image.shape[0] == expected

    def test_choice(self, image):
        np.random.seed(3)
        expected = np.random.choice((40, 50, 60))
        aug_input, _ = draw(T.ResizeShortestEdge((40, 50, 60), sample_style="choice"), image, seed=3)
        assert aug_input.image.shape[0] == expected

    def test_zero_leaves_the_image(self, image):
        aug_input, transforms = draw(T.ResizeShortestEdge((0,), sample_style="choice"), image)
        assert aug_input.image.shape == image.shape

    def test_bad_style(self):
        with pytest.raises(AssertionError):
            T.ResizeShortestEdge(3, sample_style="both")


class TestCrops:
    def test_relative(self, image):
        aug_input, transforms = draw(T.RandomCrop("relative", (0.4, 0.6)), image)
        assert aug_input.image.shape == (28, 62, 3)
        crop = transforms.transforms[0]
        assert np.array_equal(aug_input.image, image[crop.y0 : crop.y0 + 28, crop.x0 : crop.x0 + 62])
        np.random.seed(0)
        assert (crop.y0, crop.x0) == (np.random.randint(H - 28 + 1), np.random.randint(W - 62 + 1))

    def test_relative_range(self, image):
        np.random.seed(0)
        low = np.array([0.4, 0.6], dtype=np.float32)
        ch, cw = low + np.random.rand(2) * (1 - low)
        aug_input, _ = draw(T.RandomCrop("relative_range", (0.4, 0.6)), image)
        assert aug_input.image.shape[:2] == (int(H * ch + 0.5), int(W * cw + 0.5))

    def test_absolute(self, image):
        assert T.RandomCrop("absolute", (40, 300)).get_crop_size((H, W)) == (40, W)
        np.random.seed(5)
        expected = np.random.randint(30, 51), np.random.randint(30, 51)
        np.random.seed(5)
        assert T.RandomCrop("absolute_range", (30, 50)).get_crop_size((H, W)) == expected

    def test_unknown_type(self):
        with pytest.raises(AssertionError):
            T.RandomCrop("square", (1, 1))

    def test_fixed_size_pads(self, image):
        labels = np.zeros((H, W), np.uint8)
        aug_input, _ = draw(T.FixedSizeCrop((50, 120)), image, sem_seg=labels)
        assert aug_input.image.shape == (50, 120, 3)
        assert (aug_input.image[:, W:] == 128).all() and (aug_input.sem_seg[:, W:] == 255).all()
        np.random.seed(0)
        top = int(np.round((H - 50) * np.random.uniform()))
        assert np.array_equal(aug_input.image[:, :W], image[top : top + 50])
        assert draw(T.FixedSizeCrop((50, 120), pad=False), image)[0].image.shape == (50, W, 3)

    def test_category_area(self, image):
        labels = np.zeros((H, W), np.uint8)
        labels[:, : W // 2] = 1
        augmentation = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20), single_category_max_area=0.75)
        mixed = 0
        for seed in range(20):
            cropped = draw(augmentation, image, seed, sem_seg=labels)[0].sem_seg
            mixed += 0.25 < cropped.mean() < 0.75
        plain = T.RandomCrop_CategoryAreaConstraint("absolute", (20, 20))
        unconstrained = sum(
            0.25 < draw(plain, image, seed, sem_seg=labels)[0].sem_seg.mean() < 0.75 for seed in range(20)
        )
        assert mixed > unconstrained

    def test_min_iou(self, image):
        boxes = np.array([[40.0, 30, 60, 45]])
        for seed in range(20):
            aug_input, transforms = draw(T.MinIoURandomCrop(min_ious=(0.1,)), image, seed, boxes=boxes.copy())
            crop = transforms.transforms[0] if transforms.transforms else T.NoOpTransform()
            if isinstance(crop, T.CropTransform):
                assert crop.x0 < 50 <= crop.x0 + crop.w + 1 and crop.y0 < 37.5 <= crop.y0 + crop.h + 1
                assert crop.w >= int(0.3 * W) and crop.h >= int(0.3 * H)


class TestScaleAndExtent:
    def test_resize_scale_then_crop(self):
        np.random.seed(125)
        image = np.random.rand(900, 800)
        augmentations = [T.ResizeScale(0.2, 2.0, 1100, 1000), T.FixedSizeCrop((1100, 1000)), T.RandomFlip()]
        out, transforms = T.apply_augmentations(augmentations, image)
        assert out.shape == (1100, 1000)
        box = transforms.apply_box(np.array([[91.0, 46, 144, 111]]))
        assert np.allclose(box, [[895.42, 33.42666667, 933.91125, 80.66]])

    def test_extent(self, image):
        np.random.seed(0)
        scale, x, y = np.random.uniform(0.5, 1.5), np.random.rand() - 0.5, np.random.rand() - 0.5
        aug_input, transforms = draw(T.RandomExtent((0.5, 1.5), (0.3, 0.2)), image)
        assert aug_input.image.shape[:2] == (int(H * scale), int(W * scale))
        center = transforms.apply_coords(np.array([[W / 2 + 0.3 * W * x, H / 2 + 0.2 * H * y]]))
        assert np.allclose(center, [[int(W * scale) / 2, int(H * scale) / 2]], atol=1e-3)

    def test_random_resize(self, image):
        np.random.seed(1)
        expected = [(20, 30), (40, 50), (60, 70)][np.random.choice(3)]
        assert draw(T.RandomResize([(20, 30), (40, 50), (60, 70)]), image, seed=1)[0].image.shape[:2] == expected


class TestFlipAndApply:
    @pytest.mark.parametrize("seed", range(4))
    def test_flip_draws_once(self, image, seed):
        np.random.seed(seed)
        flips = np.random.uniform() < 0.5
        aug_input, _ = draw(T.RandomFlip(), image, seed)
        assert np.array_equal(aug_input.image, image[:, ::-1] if flips else image)
        assert np.random.rand() == draws_left(seed, 1)

    def test_vertical(self, image):
        aug_input, _ = draw(T.RandomFlip(1.0, horizontal=False, vertical=True), image)
        assert np.array_equal(aug_input.image, image[::-1])

    @pytest.mark.parametrize("both", [True, False])
    def test_one_direction(self, both):
        with pytest.raises(ValueError):
            T.RandomFlip(horizontal=both, vertical=both)

    def test_apply(self, image):
        sizes = {draw(T.RandomApply(T.Resize((9, 9)), 0.5), image, seed)[0].image.shape for seed in range(10)}
        assert sizes == {(9, 9, 3), image.shape}
        assert draw(T.RandomApply(T.HFlipTransform(W), 1.0), image)[0].image.shape == image.shape
        with pytest.raises(AssertionError):
            T.RandomApply(T.Resize(3), 1.1)


class TestRotation:
    def test_range(self, image):
        np.random.seed(2)
        angle = np.random.uniform(-60, 60)
        _, transforms = draw(T.RandomRotation((-60, 60)), image, seed=2)
        assert transforms.transforms[0].angle == angle

    def test_fixed_zero(self, image):
        assert np.array_equal(draw(T.RandomRotation([0], sample_style="choice"), image)[0].image, image)


class TestColors:
    def test_contrast(self):
        image = np.array([[[0.0], [100.0]]], dtype=np.float32)
        np.random.seed(0)
        weight = np.random.uniform(0.5, 1.5)
        out = draw(T.RandomContrast(0.5, 1.5), image)[0].image
        assert np.allclose(out.ravel(), [50 * (1 - weight), 50 * (1 - weight) + 100 * weight])

    def test_brightness_clips_uint8(self, image):
        out = draw(T.RandomBrightness(2.0, 2.0), image)[0].image
        assert np.array_equal(out, np.clip(image.astype(int) * 2, 0, 255))

    def test_saturation_zero_is_grey(self, image):
        out = draw(T.RandomSaturation(0.0, 0.0), image.astype(np.float32))[0].image
        assert np.allclose(out, out[:, :, :1])
        assert np.allclose(out[..., 0], image @ [0.299, 0.587, 0.114], atol=1e-3)

    def test_lighting(self, image):
        np.random.seed(0)
        weights = np.random.normal(scale=0.1, size=3)
        out = draw(T.RandomLighting(0.1), np.zeros((2, 2, 3), np.float32))[0].image
        values = weights * [0.2175, 0.0188, 0.0045]
        assert np.allclose(out[0, 0], T.RandomLighting(0.1).eigen_vecs @ values)


def test_torch_generators_are_not_touched(image):
    state = torch.get_rng_state()
    draw(T.AugmentationList([T.RandomFlip(), T.RandomCrop("relative_range", (0.5, 0.5))]), image)
    assert torch.equal(state, torch.get_rng_state())
