"""SEEM, measured as Mask DINO is: inference of one image, LoRA steps of two, with and without the text encoder in memory."""
from collections.abc import Sequence

from lowrank_d2.engine.benchmark import mask_dino

_LORA = mask_dino.TRAINING["lora"]
TRAINING = {"lora": _LORA, "lora_text_in_memory": [*_LORA, "MODEL.SEEM.TEXT.CACHE", "False"]}


def run(config_files: Sequence[str], rounds: int = 3) -> dict:
    """As `mask_dino.run`, for these two kinds of training; the words of the classes need CLIP's vocabulary."""
    return mask_dino.run(config_files, rounds, TRAINING)
