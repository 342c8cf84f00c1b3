"""A SEEM small enough to be built for every test."""
from pathlib import Path

import torch

from seem import configure

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = CONFIGS.parents[2] / "configs" / "methods"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.CLASS_NAMES": ["ball", "box", "star"],
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.SEEM.FOCAL.EMBED_DIM": 8,
    "MODEL.SEEM.FOCAL.DEPTHS": [1, 1, 1, 1],
    "MODEL.SEEM.FOCAL.FOCAL_LEVELS": [2, 2, 2, 2],
    "MODEL.SEEM.FOCAL.DROP_PATH_RATE": 0.0,
    "MODEL.SEEM.HIDDEN_DIM": 32,
    "MODEL.SEEM.MASK_DIM": 24,
    "MODEL.SEEM.ENC_LAYERS": 2,
    "MODEL.SEEM.DEC_LAYERS": 4,
    "MODEL.SEEM.NHEADS": 4,
    "MODEL.SEEM.DIM_FEEDFORWARD": 48,
    "MODEL.SEEM.NUM_OBJECT_QUERIES": 10,
    "MODEL.SEEM.TRAIN_NUM_POINTS": 40,
    "MODEL.SEEM.TEXT.WIDTH": 16,
    "MODEL.SEEM.TEXT.HEADS": 2,
    "MODEL.SEEM.TEXT.LAYERS": 2,
    "MODEL.SEEM.TEXT.EMBED_DIM": 20,
    "MODEL.SEEM.TEXT.VOCABULARY_SIZE": 30,
    "MODEL.SEEM.TEXT.CONTEXT_LENGTH": 9,
}
TEMPLATES = 5


def toy_tokens(classes: int, seed: int = 0) -> torch.Tensor:
    """(classes + 1, TEMPLATES, 9): start 28, up to seven words, end 29 and padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(28, (classes + 1, TEMPLATES, 9), generator=generator)
    length = torch.randint(1, 8, (classes + 1, TEMPLATES, 1), generator=generator)
    place = torch.arange(9)
    return tokens.where(place <= length, torch.tensor(29)).where(place > 0, torch.tensor(28))


def without_vocabulary(monkeypatch) -> None:
    """Lets models be built with toy tokens for their classes."""
    monkeypatch.setattr(configure, "_tokens", lambda cfg, names: toy_tokens(len(names)))
