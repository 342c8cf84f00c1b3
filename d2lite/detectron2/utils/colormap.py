"""Colours that are easy to tell apart, for drawing."""
import colorsys
import random

import numpy as np

_GOLDEN_RATIO = 0.618033988749895


def _palette(size: int) -> np.ndarray:
    """(size, 3) RGB in [0, 1]. Hues advance by the golden ratio, so that neighbours in the list lie far apart."""
    shades = [(0.9, 0.95), (0.6, 0.95), (0.95, 0.65)]  # saturation and value, by turns
    return np.array([colorsys.hsv_to_rgb((0.58 + i * _GOLDEN_RATIO) % 1, *shades[i % 3]) for i in range(size)])


_COLORS = _palette(74).astype(np.float32)


def _scaled(colors: np.ndarray, rgb: bool, maximum: int) -> np.ndarray:
    assert maximum in (255, 1), f"Colours reach to 255 or to 1, not to {maximum}."
    return (colors if rgb else colors[..., ::-1]) * maximum


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """(74, 3) float32 colours in [0, maximum], BGR unless `rgb`."""
    return _scaled(_COLORS, rgb, maximum)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """(3,) a random colour of the map, drawn from numpy's global generator."""
    return _scaled(_COLORS[np.random.randint(0, len(_COLORS))], rgb, maximum)


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """N different colours of the map, drawn from Python's global generator."""
    return [_scaled(_COLORS[i], rgb, maximum) for i in random.sample(range(len(_COLORS)), N)]
