"""Road users of the generated streets as coloured parts, in units of 1.5 m, standing on the origin with y pointing
down."""

import numpy as np

from lowrank_d2.data.mini import primitives as draw

Parts = list[tuple[np.ndarray, np.ndarray]]
TYRE = np.array([22, 22, 24])
GLASS = np.array([62, 74, 84])


def built(rng: np.random.Generator, name: str, ridden: float) -> list[tuple[str, Parts]]:
    """The labelled things of one road user, back to front, each with its parts (outline, colour).

    One thing except for a two-wheeler in use (with probability `ridden`), which brings a rider of its own label.
    """
    if name == "person":
        return [("person", _person(rng, 0.0, 0.0, seated=False))]
    if name in ("bicycle", "motorcycle"):
        machine = _BUILD[name](rng)
        if rng.random() < ridden:
            return [(name, machine), ("rider", _person(rng, 0.45, -0.42, seated=True))]
        return [(name, machine)]
    return [(name, _BUILD[name](rng))]


def _rect(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[x0, -y0], [x1, -y0], [x1, -y1], [x0, -y1]])


def _wheel(x: float, radius: float) -> np.ndarray:
    return draw.place(draw.disc(16), (x, -radius), (radius, radius))


def _muted(rng: np.random.Generator) -> np.ndarray:
    """Paint: mostly greyish, from dark to light."""
    return np.clip(rng.uniform(25, 185) + rng.normal(0, 28, 3), 12, 215)


def _vehicle(
    rng: np.random.Generator, body: list[np.ndarray], glass: list[np.ndarray], wheels: list[float], radius: float
):
    paint = _muted(rng)
    parts: Parts = [(outline, paint * (1 - 0.15 * (i % 2))) for i, outline in enumerate(body)]
    parts += [(outline, GLASS * rng.uniform(0.7, 1.2)) for outline in glass]
    return parts + [(_wheel(x, radius), TYRE) for x in wheels]


def _car(rng: np.random.Generator) -> Parts:
    body = [_rect(0, 0.15, 2.8, 0.6), np.array([[0.45, -0.55], [0.85, -1.0], [1.9, -1.0], [2.4, -0.55]])]
    glass = [np.array([[0.7, -0.6], [0.95, -0.93], [1.3, -0.93], [1.3, -0.6]]), _rect(1.4, 0.6, 1.85, 0.92)]
    return _vehicle(rng, body, glass, [0.6, 2.25], 0.24)


def _truck(rng: np.random.Generator) -> Parts:
    body = [_rect(1.1, 0.3, 3.4, 1.9), _rect(0, 0.25, 1.0, 1.5)]
    return _vehicle(rng, body, [_rect(0.1, 0.85, 0.6, 1.35)], [0.5, 2.2, 2.9], 0.3)


def _bus(rng: np.random.Generator) -> Parts:
    windows = [_rect(0.25 + 0.8 * i, 1.05, 0.85 + 0.8 * i, 1.6) for i in range(4)]
    return _vehicle(rng, [_rect(0, 0.2, 3.5, 1.95)], windows, [0.7, 2.8], 0.32)


def _train(rng: np.random.Generator) -> Parts:
    windows = [_rect(0.9 + 1.0 * i, 1.2, 1.6 + 1.0 * i, 1.75) for i in range(3)]
    nose = np.array([[0, -0.15], [0.9, -2.1], [4.6, -2.1], [4.6, -0.15]])
    return _vehicle(rng, [nose, _rect(0.2, 0.15, 4.6, 0.6)], windows, [], 0.0)


def _bicycle(rng: np.random.Generator) -> Parts:
    ink = _muted(rng) * 0.6
    frame = [
        np.array([[0.3, -0.3], [0.5, -0.72], [0.58, -0.72], [0.38, -0.27]]),
        np.array([[0.5, -0.68], [1.0, -0.68], [1.0, -0.6], [0.5, -0.6]]),
        np.array([[0.95, -0.85], [1.03, -0.85], [1.2, -0.3], [1.1, -0.3]]),
    ]
    wheels: Parts = []
    for x in (0.3, 1.15):
        wheels += [(_wheel(x, 0.32), TYRE)]
    return wheels + [(outline, ink) for outline in frame]


def _motorcycle(rng: np.random.Generator) -> Parts:
    ink = _muted(rng)
    tank = np.array([[0.3, -0.3], [0.25, -0.6], [0.8, -0.62], [1.1, -0.8], [1.2, -0.72], [1.05, -0.28]])
    return [(_wheel(0.25, 0.27), TYRE), (_wheel(1.2, 0.27), TYRE), (tank, ink), (_rect(0.15, 0.55, 0.6, 0.66), TYRE)]


def _person(rng: np.random.Generator, x: float, y: float, seated: bool) -> Parts:
    """A figure at (x, y); seated ones bend their legs forward."""
    coat, trousers, skin = _muted(rng), _muted(rng) * 0.7, np.array([112, 86, 74]) * rng.uniform(0.6, 1.1)
    stride = rng.uniform(0.0, 0.2)
    hip = 0.3 if seated else 0.55
    if seated:
        legs = [np.array([[-0.1, -hip], [0.1, -hip], [0.4, 0.15], [0.28, 0.2]])]
    else:
        legs = [
            np.array([[-0.12, -hip], [0.05, -hip], [0.02 - stride, 0], [-0.12 - stride, 0]]),
            np.array([[-0.05, -hip], [0.12, -hip], [0.12 + stride, 0], [-0.02 + stride, 0]]),
        ]
    torso = np.array([[-0.17, -hip - 0.38], [0.17, -hip - 0.38], [0.14, -hip + 0.04], [-0.14, -hip + 0.04]])
    head = draw.place(draw.disc(12), (0.02, -hip - 0.5), (0.1, 0.13))
    parts = [(leg, trousers) for leg in legs] + [(torso, coat), (head, skin)]
    if seated:
        parts.append(
            (np.array([[0.05, -hip - 0.32], [0.14, -hip - 0.36], [0.5, -hip - 0.02], [0.44, -hip + 0.05]]), coat)
        )
    return [(outline + [x, y], colour) for outline, colour in parts]


_BUILD = {"car": _car, "truck": _truck, "bus": _bus, "train": _train, "bicycle": _bicycle, "motorcycle": _motorcycle}
