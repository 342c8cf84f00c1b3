import numpy as np
import pytest

from detectron2.utils.colormap import colormap, random_color, random_colors


def test_channels_and_range():
    bgr, rgb = colormap(), colormap(rgb=True, maximum=1)
    assert bgr.shape == rgb.shape == (74, 3)
    assert np.allclose(bgr[:, ::-1] / 255, rgb, atol=1e-6)
    assert rgb.min() >= 0 and 0.9 < rgb.max() <= 1
    with pytest.raises(AssertionError):
        colormap(maximum=100)


def test_colors_differ():
    colors = colormap(rgb=True, maximum=1)
    assert len(np.unique(colors.round(3), axis=0)) > 60


def test_random():
    np.random.seed(0)
    first = random_color(rgb=True, maximum=1)
    np.random.seed(0)
    assert np.array_equal(first, random_color(rgb=True, maximum=1))
    assert any(np.allclose(first, color) for color in colormap(rgb=True, maximum=1))
    assert len(random_colors(10)) == 10
