"""Optimizer and learning rate schedule from a config."""
import itertools
import logging
from enum import Enum
from typing import Any, Callable, Dict, Iterable, List, Optional, Type, Union

import torch
from fvcore.common.param_scheduler import (
    CosineParamScheduler, MultiStepParamScheduler, ParamScheduler, StepWithFixedGammaParamScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler

_GradientClipperInput = Union[torch.Tensor, Iterable[torch.Tensor]]
_GradientClipper = Callable[[_GradientClipperInput], None]

# Modules whose parameters take WEIGHT_DECAY_NORM. SyncBatchNorm is listed because it does not derive from BatchNorm1d.
_NORM_TYPES = (
    torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d, torch.nn.SyncBatchNorm, torch.nn.GroupNorm,
    torch.nn.InstanceNorm1d, torch.nn.InstanceNorm2d, torch.nn.InstanceNorm3d, torch.nn.LayerNorm,
    torch.nn.LocalResponseNorm,
)


class GradientClipType(Enum):
    """Values of SOLVER.CLIP_GRADIENTS.CLIP_TYPE."""

    VALUE = "value"
    NORM = "norm"


def _create_gradient_clipper(cfg: CfgNode) -> _GradientClipper:
    """The clipping function that a SOLVER.CLIP_GRADIENTS node asks for; ValueError for an unknown CLIP_TYPE."""
    limit, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda parameters: torch.nn.utils.clip_grad_value_(parameters, limit)
    return lambda parameters: torch.nn.utils.clip_grad_norm_(parameters, limit, norm_type)


def _generate_optimizer_class_with_gradient_clipping(
    optimizer: Type[torch.optim.Optimizer], *, per_param_clipper: Optional[_GradientClipper] = None,
    global_clipper: Optional[_GradientClipper] = None,
) -> Type[torch.optim.Optimizer]:
    """A subclass `<name>WithGradientClip` whose step() clips first: each parameter alone, or all of them together."""
    assert per_param_clipper is None or global_clipper is None, "clip each parameter or all together, not both"

    def step(self, closure=None):
        parameters = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        if per_param_clipper is not None:
            for parameter in parameters:
                per_param_clipper(parameter)
        else:
            global_clipper(list(parameters))
        return super(clipping, self).step(closure)

    clipping = type(f"{optimizer.__name__}WithGradientClip", (optimizer,), {"step": step, "__module__": __name__})
    return clipping


def maybe_add_gradient_clipping(cfg: CfgNode, optimizer: Type[torch.optim.Optimizer]) -> Type[torch.optim.Optimizer]:
    """Makes an optimizer, class or instance, clip every parameter's gradient if SOLVER.CLIP_GRADIENTS.ENABLED."""
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, torch.optim.Optimizer)
    kind, clipper = type(optimizer) if is_instance else optimizer, _create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    clipping = _generate_optimizer_class_with_gradient_clipping(kind, per_param_clipper=clipper)
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD over the trainable parameters, with the SOLVER section's rates, decays and gradient clipping."""
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model, base_lr=solver.BASE_LR, weight_decay_norm=solver.WEIGHT_DECAY_NORM, bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    momentum = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
    return sgd(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, foreach=True, **momentum)


def get_default_optimizer_params(
    model: torch.nn.Module, base_lr: Optional[float] = None, weight_decay: Optional[float] = None,
    weight_decay_norm: Optional[float] = None, bias_lr_factor: Optional[float] = 1.0,
    weight_decay_bias: Optional[float] = None, lr_factor_func: Optional[Callable] = None,
    overrides: Optional[Dict[str, Dict[str, float]]] = None,
) -> List[Dict[str, Any]]:
    """Parameter groups for an optimizer, one for each distinct set of hyperparameters.

    Frozen parameters are left out; a shared one is taken once. What is None is left to the optimizer's defaults.

    Args:
        weight_decay_norm: weight decay of the parameters that normalisation modules own.
        bias_lr_factor, weight_decay_bias: for parameters called "bias"; win over weight_decay_norm.
        lr_factor_func: full parameter name -> factor of its learning rate; needs base_lr, as bias_lr_factor.
        overrides: {last part of the name: {hyperparameter: value}}; wins over all above.
    """
    overrides = dict(overrides or {})
    bias_overrides = {}
    if bias_lr_factor is not None and bias_lr_factor != 1.0:
        if base_lr is None:
            raise ValueError("bias_lr_factor needs base_lr")
        bias_overrides["lr"] = base_lr * bias_lr_factor
    if weight_decay_bias is not None:
        bias_overrides["weight_decay"] = weight_decay_bias
    if bias_overrides:
        if "bias" in overrides:
            raise ValueError("overrides['bias'] conflicts with bias_lr_factor or weight_decay_bias: give one of them")
        overrides["bias"] = bias_overrides
    if lr_factor_func is not None and base_lr is None:
        raise ValueError("lr_factor_func needs base_lr")

    defaults = {"lr": base_lr, "weight_decay": weight_decay}
    defaults = {key: value for key, value in defaults.items() if value is not None}
    params, seen = [], set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            options = dict(defaults)
            if weight_decay_norm is not None and isinstance(module, _NORM_TYPES):
                options["weight_decay"] = weight_decay_norm
            if lr_factor_func is not None:
                options["lr"] *= lr_factor_func(f"{module_name}.{name}" if module_name else name)
            options.update(overrides.get(name, {}))
            params.append({"params": [parameter], **options})
    return reduce_param_groups(params)


def _expand_param_groups(params: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """One group for each parameter, in order of first mention; later groups add to and override earlier ones."""
    by_parameter: Dict[Any, Dict[str, Any]] = {}
    for group in params:
        assert "params" in group, f"a parameter group lacks 'params': {sorted(group)}"
        options = {key: value for key, value in group.items() if key != "params"}
        for parameter in group["params"]:
            by_parameter.setdefault(parameter, {"params": [parameter]}).update(options)
    return list(by_parameter.values())


def reduce_param_groups(params: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Joins the parameters of groups with equal hyperparameters: few large groups make an optimizer's step fast."""
    by_options: Dict[tuple, List[Any]] = {}
    for group in _expand_param_groups(params):
        options = tuple((key, value) for key, value in group.items() if key != "params")
        by_options.setdefault(options, []).extend(group["params"])
    return [{**dict(options), "params": parameters} for options, parameters in by_options.items()]


class _Clamped(ParamScheduler):
    """Keeps a schedule at its last value: the trainer steps once more after the last iteration."""

    def __init__(self, scheduler: ParamScheduler, max_iter: int):
        self._scheduler = scheduler
        self._last = (max_iter - 1) / max_iter

    def __call__(self, where: float) -> float:
        return self._scheduler(min(where, self._last))


def _multi_step(solver: CfgNode) -> ParamScheduler:
    steps = [step for step in solver.STEPS if step <= solver.MAX_ITER]
    if len(steps) < len(solver.STEPS):
        message = "SOLVER.STEPS %s contains values larger than SOLVER.MAX_ITER %d: these are ignored"
        logging.getLogger(__name__).warning(message, tuple(solver.STEPS), solver.MAX_ITER)
    values = [solver.GAMMA**passed for passed in range(len(steps) + 1)]
    return MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)


def _cosine(solver: CfgNode) -> ParamScheduler:
    end = solver.BASE_LR_END / solver.BASE_LR
    assert 0.0 <= end <= 1.0, f"SOLVER.BASE_LR_END {solver.BASE_LR_END} must lie between 0 and BASE_LR {solver.BASE_LR}"
    return CosineParamScheduler(1, end)


def _fixed_gamma(solver: CfgNode) -> ParamScheduler:
    scheduler = StepWithFixedGammaParamScheduler(1.0, solver.NUM_DECAYS, solver.GAMMA, solver.MAX_ITER)
    return _Clamped(scheduler, solver.MAX_ITER)


_SCHEDULES = {
    "WarmupMultiStepLR": _multi_step, "WarmupCosineLR": _cosine, "WarmupStepWithFixedGammaLR": _fixed_gamma,
}


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The schedule SOLVER.LR_SCHEDULER_NAME with its warm-up; ValueError for an unknown name."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in _SCHEDULES:
        raise ValueError(f"Unknown LR scheduler {solver.LR_SCHEDULER_NAME}; there are {', '.join(_SCHEDULES)}")
    multiplier = WarmupParamScheduler(
        _SCHEDULES[solver.LR_SCHEDULER_NAME](solver), solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0), solver.WARMUP_METHOD, solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier, max_iter=solver.MAX_ITER)
