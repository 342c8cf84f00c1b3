"""Hugging Face peft's files, both ways: a folder with adapter_config.json and adapter_model.safetensors.

Names there are `base_model.model.` + the tensor's name in the model, with `.weight` behind LoRA's two factors. Base
parameters that trained stand under their plain names, their modules in `modules_to_save`.
"""
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.files import PathLike, replacing, write_text
from lowrank_d2.peft import exports
from lowrank_d2.peft.adapted import ADAPTABLE, adapted_modules, can_adapt
from lowrank_d2.peft.config import METHODS
from lowrank_d2.peft.inject import inject
from lowrank_d2.peft.method import LowRankMethod, matches

CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

_INPUT = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora"}
_ROWS = {"r": "rank", "alpha": "alpha", "rank_dropout": "rank_dropout", "module_dropout": "module_dropout",
         "use_effective_conv2d": "effective_conv2d"}
_BUDGET = {"target_r": "target_rank", "tinit": "tinit", "tfinal": "tfinal", "deltaT": "delta_t", "beta1": "beta1",
           "beta2": "beta2", "orth_reg_weight": "orthogonality", "total_step": "total_steps"}
# Method -> {peft's option: ours}.
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "lora": _INPUT,
    "dora": _INPUT,
    "adalora": {"init_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", **_BUDGET},
    "loha": _ROWS,
    "lokr": {**_ROWS, "decompose_factor": "factor", "decompose_both": "decompose_both",
             "rank_dropout_scale": "rank_dropout_scale"},
}
# Options of peft that change the function and have no counterpart here, with the value that leaves them out.
_WITHOUT_COUNTERPART = {
    "bias": "none", "fan_in_fan_out": False, "lora_bias": False, "use_qalora": False, "use_bdlora": None,
    "layer_replication": None, "target_parameters": None, "trainable_token_indices": None,
    "alora_invocation_tokens": None, "arrow_config": None, "kasa_config": None, "velora_config": None,
    "monteclora_config": None,
}
_REWRITE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that move a part of W into B A
_TENSOR = re.compile(
    r"(?P<path>.+)\.(?:lora_[AB](?:\.weight)?|lora_E|lora_magnitude_vector|(?:hada|lokr)_[wt][12](?:_[ab])?)"
)


def load_peft(model: nn.Module, folder: PathLike) -> nn.Module:
    """Adapts a plain `model`, whose base weights are loaded, as a folder written by peft says; returns it.

    Everything is checked before anything changes. Afterwards the methods' tensors and what was saved whole
    (modules_to_save) train, the rest of the base is frozen.

    Raises:
        DeltaError: a file is missing or damaged, a tensor is missing, left over or of another shape, or the adapter
            uses something of peft that has no counterpart here.
        ConfigError: the model is adapted already, or a module cannot take the method.
    """
    config, tensors = _read(Path(folder))
    method = _method_of(config, folder)
    saved = _saved_entries(model, config, folder)
    paths = {match["path"] for name in tensors.keys() - saved if (match := _TENSOR.fullmatch(name))}
    _check_targets(model, config, paths, tensors, folder)
    targets = tuple(_exactly(path) for path in sorted(paths))
    method = dataclasses.replace(method, targets=targets, **_patterns(model, config, paths))
    modules = {path: model.get_submodule(path) for path in sorted(paths)}
    kept = exports.kept_triplets(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in saved}
    for path, module in modules.items():
        exports.check_exchangeable(path, module, method)
        shapes.update(exports.expected_shapes(path, module, method.at(path), kept.get(path)))
    _check_tensors(shapes, tensors, folder)
    inject(model, [method], "none", train_label_embedding=False)
    with torch.no_grad():
        for path, module in modules.items():
            exports.copy_in(path, module, tensors, kept.get(path))
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in saved:
                tensor.copy_(tensors[name])
                tensor.requires_grad_(isinstance(tensor, nn.Parameter))  # so that saving it again stores it again
    return model


def save_peft(model: nn.Module, folder: PathLike, base_model: Optional[str] = None) -> None:
    """Writes what was trained in an adapted `model` as files that peft reads; the folder is made where it is missing.

    Slices of a packed projection become one stack of factors. Base parameters that train go to `modules_to_save`.

    Args:
        base_model: peft's base_model_name_or_path, for readers that load the base by it.

    Raises:
        ConfigError: the model is not adapted, or in a way that peft's files cannot say.
        OutputError: a file cannot be written.
    """
    method = _only_method(model)
    entries = exports.export(model, method)
    modules = _trained_modules(model)
    config = _config_of(method, entries, model)
    config.update(modules_to_save=modules or None, base_model_name_or_path=base_model)
    tensors = {f"{entry.path}.{name}": tensor for entry in entries for name, tensor in entry.tensors.items()}
    tensors.update((name, tensor) for name, tensor in model.state_dict().items() if _owner(name) in modules)
    stored = {PREFIX + name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / TENSOR_FILE) as temporary:
        save_file(stored, str(temporary), metadata={"format": "pt"})
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options, and the tensors by peft's names without its prefix and its wrapper around attention."""
    for name in (CONFIG_FILE, TENSOR_FILE):
        if not (folder / name).is_file():
            raise DeltaError(f"There is no {folder / name}. Name a folder that peft wrote.")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        loaded = load_file(folder / TENSOR_FILE)
    except (SafetensorError, OSError, ValueError) as error:
        raise DeltaError(f"{folder} cannot be read: {error}. Copy its two files again.") from error
    astray = min((name for name in loaded if not name.startswith(PREFIX)), default=None)
    if astray or not isinstance(config, dict):
        raise DeltaError(f"{folder}: {astray or CONFIG_FILE} is none of peft's. Name a folder that peft wrote.")
    tensors = {}
    for name, tensor in loaded.items():
        plain = name.removeprefix(PREFIX).replace(f".{exports.OUTPUT_IN_PEFT}.", ".out_proj.")
        doubled = exports.OUTPUT_IN_PEFT in name and name.endswith("lora_B.weight")
        tensors[plain] = tensor * exports.OUTPUT_GAIN if doubled else tensor
    return config, tensors


def _method_of(config: Mapping[str, Any], folder: PathLike) -> LowRankMethod:
    kind = str(config.get("peft_type", "")).lower()
    if kind == "lora" and config.get("use_dora"):
        kind = "dora"
    if kind not in _OPTIONS:
        raise DeltaError(f"{folder}: peft_type is {config.get('peft_type')!r}. Known are LORA, ADALORA, LOHA and LOKR.")
    for option, without in _WITHOUT_COUNTERPART.items():
        if config.get(option) not in (without, None):
            raise DeltaError(f"{folder}: {option} is {config[option]!r}, which has no counterpart here. Train without.")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_REWRITE_THE_BASE):
        raise DeltaError(
            f"{folder}: init_lora_weights is {start!r}, so it belongs to a base that peft has changed. Let peft convert it: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    values = {ours: config[theirs] for theirs, ours in _OPTIONS[kind].items() if config.get(theirs) is not None}
    if kind == "adalora":  # rank_pattern is something else there
        values["target_rank"] = min(values["target_rank"], values["rank"])
        if values["alpha"] <= 0:
            del values["alpha"]
    try:
        return METHODS[kind](**values)
    except ConfigError as error:
        raise DeltaError(f"{folder}/{CONFIG_FILE}: {error}") from error


def _patterns(model: nn.Module, config: Mapping[str, Any], paths: set[str]) -> dict[str, list[tuple[str, Any]]]:
    """The rank and alpha patterns, one entry for every module that they change."""
    if str(config["peft_type"]).lower() == "adalora":
        return {}  # its rank_pattern says which triplets are left
    found = {}
    for option in ("rank_pattern", "alpha_pattern"):
        found[option] = []
        for path in sorted(paths):
            whose = path.removesuffix(".out_proj") if path in _attention_outputs(model) else path
            hits = [value for key, value in (config.get(option) or {}).items() if re.match(rf"(.*\.)?({key})$", whose)]
            found[option] += [(_exactly(path), hits[0])] if hits else []
    return found


def _saved_entries(model: nn.Module, config: Mapping[str, Any], folder: PathLike) -> set[str]:
    """Names in the state dict of all that lies below the modules that were saved whole."""
    found = set()
    for word in config.get("modules_to_save") or ():
        paths = [path for path, _ in model.named_modules() if _hits(path, word)]
        if not paths:
            kind = type(model).__name__
            raise DeltaError(f"{folder}: modules_to_save names {word!r}, which is no module of this {kind}.")
        found.update(name for name in model.state_dict() if any(name.startswith(f"{path}.") for path in paths))
    return found


def _check_targets(
    model: nn.Module, config: Mapping[str, Any], paths: set[str], tensors: Mapping[str, Tensor], folder: PathLike
) -> None:
    """Compares the modules that have tensors with those that the options name."""
    kind = type(model).__name__
    modules = {name: module for name, module in model.named_modules() if can_adapt(module)}
    outputs = _attention_outputs(model)
    unknown = paths - modules.keys()
    if unknown:
        raise DeltaError(f"{folder} has tensors for {min(unknown)}, which is nothing to adapt in this {kind}.")
    if not paths:
        first = f"{PREFIX}{min(tensors)} is none" if tensors else "it is empty"
        raise DeltaError(f"{folder} has no tensors for a {ADAPTABLE}: {first}. Train other modules, or copy the file again.")
    targets, excluded = config.get("target_modules"), config.get("exclude_modules") or ()
    if targets in (None, "all-linear") or config.get("layers_to_transform") is not None:
        return  # which modules these mean depends on the model's kind: the tensors alone say it
    meant = {name for name in modules if _hits(name, targets) and not _hits(name, excluded)}
    meant |= {name for name in outputs if name.removesuffix(".out_proj") in meant}
    if meant != paths:
        name = min(meant ^ paths)
        which = "has no tensors for" if name in meant else "has tensors but no target_modules for"
        raise DeltaError(f"{folder} {which} {name}, a module of this {kind}. Use the model that it was trained in.")


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], folder: PathLike) -> None:
    astray = shapes.keys() ^ tensors.keys()
    if astray:
        name = min(astray)
        where = "is missing" if name in shapes else "belongs to nothing in this model"
        raise DeltaError(
            f"{folder}/{TENSOR_FILE}: {PREFIX}{name} {where}. Copy the file again, or use the model it was made for."
        )
    for name, shape in shapes.items():
        theirs = tuple(tensors[name].shape)
        if theirs != shape:
            raise DeltaError(f"{folder}/{TENSOR_FILE}: {PREFIX}{name} is {theirs}, this model needs {shape}.")
        if not tensors[name].isfinite().all():
            raise DeltaError(f"{folder}/{TENSOR_FILE}: {PREFIX}{name} holds NaN or Inf. Take an earlier adapter.")


def _only_method(model: nn.Module) -> LowRankMethod:
    peft = getattr(model, "peft_config", None)
    methods = peft.methods if peft else ()
    if len(methods) != 1 or not isinstance(methods[0], LowRankMethod):
        names = [method.name for method in methods]
        raise ConfigError(
            f"peft's files hold one low-rank method, this {type(model).__name__} has {names or 'none'}. Save a delta "
            "instead (lowrank_d2.peft.save_delta)."
        )
    return methods[0]


def _trained_modules(model: nn.Module) -> list[str]:
    """Modules whose own base parameters train."""
    adapted = {name: module for name, module in adapted_modules(model)}
    trained = set()
    for name, parameter in model.named_parameters():
        path = _owner(name)
        added = path in adapted and name.rpartition(".")[2] in adapted[path].added_names()
        if not parameter.requires_grad or added:
            continue
        if path in adapted or not path:
            raise ConfigError(
                f"{name} trains itself and has a method too, which peft's files cannot say. Save a delta instead."
            )
        trained.add(path)
    return sorted(trained)


def _config_of(method: LowRankMethod, entries: Sequence[exports.Export], model: nn.Module) -> dict[str, Any]:
    config = {theirs: _number(getattr(method, ours)) for theirs, ours in _OPTIONS[method.name].items()}
    kind = "lora" if method.name == "dora" else method.name
    paths = sorted({entry.path for entry in entries})
    others = [name for name, module in model.named_modules() if can_adapt(module) and name not in paths]
    exact = not any(_hits(name, paths) for name in others)
    config.update(
        peft_type=kind.upper(),
        target_modules=paths if exact else "|".join(re.escape(path) for path in paths),
        inference_mode=True,
        task_type=None,
        rank_pattern={},
        alpha_pattern={},
    )
    if kind == "lora":
        config["use_dora"] = method.name == "dora"
    if kind == "adalora":
        config.update(exports.budget_options(method, entries))
        return config
    alpha = "lora_alpha" if kind == "lora" else "alpha"
    for option, pattern in (("r", "rank_pattern"), (alpha, "alpha_pattern")):
        for entry in entries:
            value = _number(entry.rank if option == "r" else entry.alpha)
            if value != config[option]:
                config[pattern]["^" + re.escape(entry.path)] = value
    return config


def _hits(name: str, words: Any) -> bool:
    """Whether a module's name is meant by peft's option: a list of names and endings, or one regular expression."""
    if isinstance(words, str):
        return re.fullmatch(words, name) is not None
    return any(matches(name, word, "target_modules") for word in words)


def _exactly(path: str) -> str:
    """The target that means this module alone."""
    return f"re:{re.escape(path)}"


def _attention_outputs(model: nn.Module) -> set[str]:
    """Output projections of torch's attention, which peft adapts with it and under its name."""
    return {f"{name}.out_proj" for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}


def _number(value: Any) -> Any:
    """Whole numbers as int, which is the type of most of peft's options."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
