"""An AdaMixer small enough to be built for every test."""
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 5,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.ADAMIXER.EMBED_DIM": 32,
    "MODEL.ADAMIXER.NUM_QUERIES": 10,
    "MODEL.ADAMIXER.NUM_HEADS": 4,
    "MODEL.ADAMIXER.FEEDFORWARD_DIM": 48,
    "MODEL.ADAMIXER.IN_POINTS": 9,
    "MODEL.ADAMIXER.OUT_POINTS": 12,
    "MODEL.ADAMIXER.NUM_STAGES": 3,
    "MODEL.ADAMIXER.LORS.ADAPTIVE_RANK": 2,
    "MODEL.ADAMIXER.LORS.STATIC_RANK": 2,
}
KEEP = ("queries.boxes",)  # what stays as it starts when weights are made random
