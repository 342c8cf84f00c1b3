"""The optimizer: Mask DINO's parameter groups, AdamW or SGD, gradient clipping inside `step`."""
from typing import Dict, List, Tuple

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowrank_d2.engine import schedules
from lowrank_d2.errors import ConfigError
from lowrank_d2.peft.trainable import below

_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch, instance and synchronised norms
    nn.GroupNorm,
    nn.LayerNorm,
)
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that require gradients, clipped as SOLVER.CLIP_GRADIENTS says.

    Raises:
        ConfigError: nothing in the model trains.
    """
    groups = parameter_groups(cfg, model)
    if not groups:
        raise ConfigError("Nothing in the model trains: check MODEL.PEFT.METHODS and MODEL.PEFT.TRAIN.")
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    else:
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, betas=tuple(solver.BETAS), eps=solver.EPS)
    if solver.CLIP_GRADIENTS.ENABLED:
        node = solver.CLIP_GRADIENTS
        clip_type, value, norm_type = node.CLIP_TYPE, node.CLIP_VALUE, node.NORM_TYPE

        def clip(stepping: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
            clip_gradients([p for g in stepping.param_groups for p in g["params"]], clip_type, value, norm_type)

        optimizer.register_step_pre_hook(clip)
    return optimizer


def parameter_groups(cfg: CfgNode, model: nn.Module) -> List[dict]:
    """Groups of equal learning rate and weight decay.

    The backbone learns at BACKBONE_MULTIPLIER. Norms decay by WEIGHT_DECAY_NORM, embeddings by WEIGHT_DECAY_EMBED,
    Swin's position tables and what the model's `no_weight_decay()` names not at all, biases by WEIGHT_DECAY_BIAS where
    that is set, all else by WEIGHT_DECAY. A model's `learning_rates()`, {module or parameter: factor}, come on top.
    """
    solver = cfg.SOLVER
    model = model.module if isinstance(model, DistributedDataParallel) else model
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    relative = model.learning_rates() if hasattr(model, "learning_rates") else {}
    groups: Dict[Tuple[float, float], List[nn.Parameter]] = {}
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            path = f"{module_name}.{name}".lstrip(".")
            rate, decay = solver.BASE_LR, solver.WEIGHT_DECAY
            rate *= next((factor for prefix, factor in relative.items() if below(path, prefix)), 1.0)
            if "backbone" in module_name:
                rate *= solver.BACKBONE_MULTIPLIER
            if name == "bias":
                rate *= solver.BIAS_LR_FACTOR
                decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
            if isinstance(module, _NORMS):
                decay = solver.WEIGHT_DECAY_NORM
            elif isinstance(module, nn.Embedding):
                decay = solver.WEIGHT_DECAY_EMBED
            elif name in _POSITION_TABLES or path in exempt:
                decay = 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def clip_gradients(parameters: List[nn.Parameter], clip_type: str, value: float, norm_type: float) -> None:
    """Clips in place: "full_model" by one norm over all, "norm" by that of each parameter, "value" each element."""
    if clip_type == "full_model":
        nn.utils.clip_grad_norm_(parameters, value, norm_type)
    elif clip_type == "norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, value, norm_type)
    else:
        nn.utils.clip_grad_value_(parameters, value)


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Detectron2's schedules, WarmupPolyLR of its DeepLab project, and those of `schedules.NAMES`."""
    if cfg.SOLVER.LR_SCHEDULER_NAME in schedules.NAMES:
        return schedules.build_epoch_schedule(cfg, optimizer)
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupPolyLR":
        from detectron2.projects.deeplab import build_lr_scheduler
    else:
        from detectron2.solver import build_lr_scheduler
    try:
        return build_lr_scheduler(cfg, optimizer)
    except ValueError as error:
        raise ConfigError(f"SOLVER: {error}. Check LR_SCHEDULER_NAME, STEPS and MAX_ITER.") from error
