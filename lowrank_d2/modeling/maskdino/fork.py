"""The paper authors' fork: its configuration keys translated to MODEL.PEFT, its tuned checkpoints taken over."""
from typing import Mapping

from detectron2.config import CfgNode
from torch import Tensor, nn

from lowrank_d2.errors import CheckpointError, ConfigError
from lowrank_d2.modeling.maskdino.weights import from_upstream
from lowrank_d2.peft.delta import copy_into

ADAPTER_MODULES = frozenset(
    {"pixel_decoder_self_attention_adapter", "decoder_self_attn_adapter", "decoder_cross_attn_adapter"}
)
# What is left of SOLVER.IGNORE_FIX (names that train) without the adapters' own -> MODEL.PEFT.TRAIN.
TRAIN_OF_NAMES = {
    frozenset({"mask_embed", "class_embed", "bbox_embed"}): "embeddings",
    frozenset({"predictor"}): "decoder",
    frozenset({"sem_seg_head"}): "full_head",
    frozenset({"sem_seg_head", "backbone"}): "all",
}


def translate_fork(cfg: CfgNode) -> CfgNode:
    """Replaces the fork's keys (USE_ADAPTERS, ADAPTER_*, SOLVER.IGNORE_FIX) by MODEL.PEFT's.

    Returns:
        `cfg` itself where none of them is used, else a translated copy.

    Raises:
        ConfigError: USE_LORA, or a set of trained names that no MODEL.PEFT.TRAIN stands for.
    """
    if cfg.USE_LORA:
        raise ConfigError(
            "USE_LORA True asks for the fork's LoRA, in which q, k and v of the decoder's self-attention share a pair "
            "of matrices: another function than the paper's. To train the recipe anew set USE_LORA False and "
            f"MODEL.PEFT.METHODS ['lora'] with LORA.RANK {cfg.LORA_RANK} and LORA.ALPHA {float(cfg.LORA_ALPHA)}."
        )
    names = frozenset(cfg.SOLVER.IGNORE_FIX) - ADAPTER_MODULES
    if not cfg.USE_ADAPTERS and not names:
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    peft = cfg.MODEL.PEFT
    if cfg.USE_ADAPTERS:
        peft.METHODS = ["adapter"]
        peft.ADAPTER.REPEATS = cfg.ADAPTER_NUM
        peft.ADAPTER.REDUCTION = cfg.ADAPTER_REDUCTION
        peft.ADAPTER.RESIDUAL = "kappa+lambda"
        peft.ADAPTER.INIT = "xavier"
    peft.TRAIN = _train(names, cfg.SOLVER.IGNORE_FIX)
    peft.TRAIN_LABEL_EMBEDDING = "label_enc" in names or peft.TRAIN in ("decoder", "full_head", "all")
    cfg.USE_ADAPTERS = False
    cfg.SOLVER.IGNORE_FIX = []
    cfg.freeze()
    return cfg


def _train(names: frozenset[str], written: list[str]) -> str:
    rest = names - {"label_enc"}
    if not rest:
        return "none"
    if rest in TRAIN_OF_NAMES:
        return TRAIN_OF_NAMES[rest]
    nearest = max(TRAIN_OF_NAMES, key=lambda known: len(known & rest) - len(known ^ rest))
    raise ConfigError(
        f"SOLVER.IGNORE_FIX {list(written)} trains a part of the model that MODEL.PEFT.TRAIN has no word for. "
        f"The nearest is {sorted(nearest)}, which is MODEL.PEFT.TRAIN '{TRAIN_OF_NAMES[nearest]}': write that instead, "
        "and leave SOLVER.IGNORE_FIX []."
    )


def load_tuned(model: nn.Module, checkpoint: Mapping[str, Tensor]) -> None:
    """Copies a checkpoint of the fork, which holds nothing but what was tuned, into a model whose base is loaded.

    Build the model from the config dump of the fork's run, load the base, call this; `peft.save_delta` then writes a
    delta file.

    Args:
        model: a Mask DINO, or another whose class has a `from_upstream` for its original's names.
        checkpoint: what the file has under "model".

    Raises:
        CheckpointError: it has other tensors than the config trains, or other shapes, or the fork's LoRA. Nothing is
            copied then.
    """
    tensors = getattr(model, "from_upstream", from_upstream)(checkpoint)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in trained.keys() | given.keys() if trained.get(name) != given.get(name))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{len(differing)} tensors of the tuned checkpoint do not fit what this model trains; the first is {name}: "
            f"{given.get(name, 'absent')} in the file, {trained.get(name, 'not trained')} in the model. "
            "Build the model from the config of the run that wrote the file."
        )
    copy_into(model, tensors)
