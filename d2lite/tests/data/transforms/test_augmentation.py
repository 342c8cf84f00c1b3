import numpy as np
import pytest

from detectron2.data import transforms as T


@pytest.fixture
def image():
    return np.random.RandomState(0).rand(20, 30, 3).astype(np.float32)


class UpperHalfOf(T.Augmentation):
    """Crops to the rows that a label occupies: looks at two inputs."""

    def get_transform(self, image, sem_seg):
        return T.CropTransform(0, 0, image.shape[1], int(sem_seg.any(axis=1).sum()))


class TestInputs:
    def test_asked_for_by_name(self, image):
        labels = np.zeros((20, 30), np.uint8)
        labels[:5] = 1
        aug_input = T.AugInput(image, sem_seg=labels, boxes=np.array([[1.0, 2, 3, 4]]))
        transforms = aug_input.apply_augmentations([UpperHalfOf(), T.HFlipTransform(30)])
        assert aug_input.image.shape == (5, 30, 3)
        assert aug_input.sem_seg.shape == (5, 30)
        assert np.allclose(aug_input.boxes, [[27, 2, 29, 4]])
        assert [type(t) for t in transforms.transforms] == [T.CropTransform, T.HFlipTransform]

    def test_a_missing_input(self, image):
        class Wants(T.Augmentation):
            def get_transform(self, image, depth):
                return T.NoOpTransform()

        with pytest.raises(AttributeError, match="depth"):
            T.AugInput(image).apply_augmentations([Wants()])

    def test_unnamed_inputs(self, image):
        class Greedy(T.Augmentation):
            def get_transform(self, image, *inputs):
                return T.NoOpTransform()

        with pytest.raises(TypeError):
            Greedy()(T.AugInput(image))

    def test_a_single_one_of_any_name_is_the_image(self, image):
        class Trim(T.Augmentation):
            def get_transform(self, img):
                return T.CropTransform(0, 0, img.shape[1] - 1, img.shape[0])

        assert T.apply_augmentations([Trim()], image)[0].shape == (20, 29, 3)

    @pytest.mark.parametrize("bad", [np.zeros(4, np.uint8), np.zeros((1, 2, 3, 4), np.uint8), [[1, 2]]])
    def test_bad_images(self, bad):
        with pytest.raises(AssertionError):
            T.AugInput(bad)


class TestApply:
    def test_an_array_gives_an_array(self, image):
        out, transforms = T.apply_augmentations([T.Resize((10, 12)), T.VFlipTransform(10)], image)
        assert out.shape == (10, 12, 3)
        assert np.allclose(transforms.apply_coords(np.array([[30.0, 0.0]])), [[12, 10]])

    def test_an_input_is_changed_in_place(self, image):
        aug_input = T.AugInput(image)
        out, _ = T.apply_augmentations([T.Resize(10)], aug_input)
        assert out is aug_input and aug_input.image.shape == (10, 10, 3)

    def test_lists_nest(self, image):
        inner = T.AugmentationList([T.Resize(10), T.Resize((4, 5))])
        out, _ = T.apply_augmentations([inner, T.Resize((6, 7))], image)
        assert out.shape == (6, 7, 3)


class TestRepr:
    def test_shows_what_is_not_default(self):
        assert str(T.RandomCrop("absolute", (3, 4))) == "RandomCrop(crop_type='absolute', crop_size=(3, 4))"
        assert str(T.RandomFlip()) == "RandomFlip()"
        assert str(T.RandomFlip(vertical=True, horizontal=False)) == "RandomFlip(horizontal=False, vertical=True)"

    def test_of_a_list(self):
        augmentations = T.AugmentationList([T.RandomFlip(), T.Resize(3)])
        assert str(augmentations) == "AugmentationList[RandomFlip(), Resize(shape=(3, 3))]"
