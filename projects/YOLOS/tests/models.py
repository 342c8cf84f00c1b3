"""A YOLOS small enough to be built for every test, and the same model in transformers."""
from pathlib import Path

import pytest

from yolos.weights import to_transformers

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80,
    "MODEL.YOLOS.EMBED_DIM": 24,
    "MODEL.YOLOS.DEPTH": 3,
    "MODEL.YOLOS.NUM_HEADS": 2,
    "MODEL.YOLOS.MLP_DIM": 48,
    "MODEL.YOLOS.NUM_DET_TOKENS": 20,
    "MODEL.YOLOS.INITIAL_POSITION_SIZE": [64, 96],
    "MODEL.YOLOS.MID_POSITION_SIZE": [48, 96],
}


def peer_of(model):
    """transformers' model with the weights of `model`, in evaluation mode; skips the test where there is none."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    backbone = model.backbone
    patch, det = backbone.patch_size, backbone.num_det_tokens
    rows, columns = backbone.initial_grid
    assert backbone.mid_grid in (None, backbone.initial_grid), "transformers has one size for both position embeddings"
    config = transformers.YolosConfig(
        hidden_size=backbone.norm.normalized_shape[0],
        num_hidden_layers=len(backbone.blocks),
        num_attention_heads=backbone.blocks[0].attn.num_heads,
        intermediate_size=backbone.blocks[0].mlp.fc1.out_features,
        layer_norm_eps=backbone.norm.eps,
        image_size=[rows * patch, columns * patch],
        patch_size=patch,
        num_detection_tokens=det,
        use_mid_position_embeddings=backbone.mid_pos_embed is not None,
        num_labels=len(model.class_of_label),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    peer = transformers.YolosForObjectDetection(config)
    peer.load_state_dict(to_transformers(model.state_dict()), strict=True)
    return peer.eval()
