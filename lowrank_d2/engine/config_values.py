"""Which values a configuration key may take: types, lists of words, ranges; and the nearest key to a mistyped one."""
import ast
import difflib
import math
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional

import yaml
from detectron2.config import CfgNode

from lowrank_d2.engine.config_file import Setting
from lowrank_d2.errors import ConfigError
from lowrank_d2.peft.config import METHODS, TRAIN

CHOICES = {
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.EXIF": ("apply", "ignore"),
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("none", "horizontal", "vertical"),
    "MODEL.LORA_DETR.INIT": ("zero", "xavier"),
    "MODEL.LORA_DETR.KIND": ("lora", "ffn"),
    "MODEL.LORA_DETR.RULE": ("released", "paper"),
    "MODEL.MaskDINO.DN": ("no", "standard", "seg"),
    "MODEL.MaskDINO.INITIALIZE_BOX_TYPE": ("no", "mask2box", "bitmask"),
    "MODEL.PEFT.ADAPTER.INIT": ("bert", "xavier"),
    "MODEL.PEFT.ADAPTER.RESIDUAL": ("kappa", "lambda", "kappa+lambda"),
    "MODEL.PEFT.METHODS": tuple(METHODS),
    "MODEL.PEFT.TRAIN": TRAIN,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.SEM_SEG_HEAD.FEATURE_ORDER": ("low2high", "high2low"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SOLVER.OPTIMIZER": ("ADAMW", "SGD"),
}


class _Range(NamedTuple):
    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def contains(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and math.isfinite(value) and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


_COUNT, _NATURAL, _POSITIVE = _Range(1), _Range(0), _Range(0, open_low=True)
# Of a number, or of every number in a list.
RANGES = {
    "DATALOADER.NUM_WORKERS": _NATURAL,
    "DATALOADER.TIMEOUT": _NATURAL,
    "INPUT.IMAGE_SIZE": _COUNT,
    "INPUT.MAX_PIXELS": _COUNT,
    "INPUT.MAX_SCALE": _POSITIVE,
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "INPUT.MIN_SCALE": _POSITIVE,
    "INPUT.MIN_SIZE_TEST": _NATURAL,
    "INPUT.MIN_SIZE_TRAIN": _COUNT,
    "INPUT.SIZE_MULTIPLE": _COUNT,
    "MODEL.LORA_DETR.ALPHA": _Range(0, 1),
    "MODEL.LORA_DETR.ALPHAS": _Range(0, 1),
    "MODEL.LORA_DETR.CAP": _Range(0, 1, open_low=True),
    "MODEL.LORA_DETR.LOSS_WEIGHT": _NATURAL,
    "MODEL.LORA_DETR.RANK": _COUNT,
    "MODEL.LORA_DETR.TAU": _Range(0, 1),
    "MODEL.LORA_DETR.TAUS": _Range(0, 1),
    "MODEL.MaskDINO.DEC_LAYERS": _COUNT,
    "MODEL.MaskDINO.DIM_FEEDFORWARD": _COUNT,
    "MODEL.MaskDINO.DN_NOISE_SCALE": _NATURAL,
    "MODEL.MaskDINO.DN_NUM": _NATURAL,
    "MODEL.MaskDINO.DROPOUT": _Range(0, 1, open_high=True),
    "MODEL.MaskDINO.HIDDEN_DIM": _COUNT,
    "MODEL.MaskDINO.IMPORTANCE_SAMPLE_RATIO": _Range(0, 1),
    "MODEL.MaskDINO.NUM_OBJECT_QUERIES": _COUNT,
    "MODEL.MaskDINO.OVERSAMPLE_RATIO": _Range(1),
    "MODEL.MaskDINO.TRAIN_NUM_POINTS": _COUNT,
    "MODEL.PEFT.ADAPTER.REDUCTION": _COUNT,
    "MODEL.PEFT.ADAPTER.REPEATS": _COUNT,
    "MODEL.PEFT.LORA.ALPHA": _POSITIVE,
    "MODEL.PEFT.LORA.DROPOUT": _Range(0, 1, open_high=True),
    "MODEL.PEFT.LORA.RANK": _COUNT,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _COUNT,
    "SOLVER.ACCUMULATE": _COUNT,
    "SOLVER.COSINE.T_MAX": _COUNT,
    "SOLVER.EPS": _POSITIVE,
    "SOLVER.PLATEAU.FACTOR": _Range(0, 1, open_low=True, open_high=True),
    "SOLVER.PLATEAU.PATIENCE": _NATURAL,
    "SOLVER.RESTARTS.T_0": _COUNT,
    "SOLVER.RESTARTS.T_MULT": _COUNT,
    "SOLVER.BACKBONE_MULTIPLIER": _NATURAL,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.MOMENTUM": _Range(0, 1, open_high=True),
    "SOLVER.STEPS": _NATURAL,
    "SOLVER.WARMUP_FACTOR": _NATURAL,
    "SOLVER.WARMUP_ITERS": _NATURAL,
    "SOLVER.WEIGHT_DECAY": _NATURAL,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "TEST.EARLY_STOP.MIN_DELTA": _NATURAL,
    "TEST.EARLY_STOP.PATIENCE": _NATURAL,
    "TEST.EVAL_PERIOD": _NATURAL,
}


def merge_settings(cfg: CfgNode, settings: List[Setting]) -> None:
    """Writes `settings` into `cfg`, in order, with Detectron2's conversions and an int where a float is meant.

    Raises:
        ConfigError: unknown key, wrong type, a word that is not in CHOICES, a number outside RANGES.
    """
    names = list(all_keys(cfg))
    for key, value, where in settings:
        node, _, leaf = key.rpartition(".")
        parent = _descend(cfg, node)
        if parent is None or leaf not in parent:
            raise ConfigError(f"{where}: there is no configuration key {key}.{_nearest(key, names)}")
        old = parent[leaf]
        if isinstance(old, CfgNode):
            if value is None:  # an empty section of a yaml file
                continue
            raise ConfigError(f"{where}: {key} is a section with the keys {', '.join(sorted(old))}; it takes no value.")
        new = _convert(key, value, old, where)
        _check(key, new, old, where)
        parent[leaf] = new


def all_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Every full key of `cfg`, leaves only."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from all_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def nearest(word: str, known: List[str], count: int = 1) -> List[str]:
    """Up to `count` of `known` that `word` may have been meant to be, best first; upper and lower case count alike."""
    folded = {}
    for name in known:
        folded.setdefault(name.lower(), name)
    return [folded[match] for match in difflib.get_close_matches(word.lower(), list(folded), count, 0.5)]


def _nearest(key: str, names: List[str]) -> str:
    found = nearest(key, names)
    if not found:  # the right name below the wrong section
        found = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f" Did you mean {found[0]}?" if found else " lowrank_d2/config.py lists every key."


def _descend(cfg: CfgNode, path: str) -> Optional[Mapping]:
    for name in path.split(".") if path else ():
        cfg = cfg.get(name) if isinstance(cfg, CfgNode) else None
    return cfg if isinstance(cfg, CfgNode) else None


def _convert(key: str, value: Any, old: Any, where: str) -> Any:
    """`value` in the type of the default `old`; None fits every key, and a key with default None takes anything."""
    if isinstance(value, str) and not isinstance(old, str):
        value = _literal(value)
    if value is False and "no" in CHOICES.get(key, ()):  # yaml reads a bare `no` as False
        return "no"
    if isinstance(value, str) and isinstance(old, str) and value[:1] in "'\"" and value[:1] == value[-1:]:
        return value[1:-1]
    if value is None or old is None or type(value) is type(old):
        return value
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(old)(value)
    listed = f" ({', '.join(CHOICES[key])})" if key in CHOICES else ""
    raise ConfigError(
        f"{where}: {key} expects {_type_name(old)}{listed}, like {old!r}, and got {_type_name(value)}: {value!r}."
    )


def _literal(text: str) -> Any:
    """Python literals as yacs reads them ("1e-4", "(1, 2)"), else what yaml makes of it ("[lora]", "true")."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check(key: str, value: Any, old: Any, where: str) -> None:
    if value is None and (key in CHOICES or key in RANGES) and old is not None:
        raise ConfigError(f"{where}: {key} cannot be None; its default is {old!r}.")
    if key in CHOICES:
        allowed = CHOICES[key]
        for word in value if isinstance(value, (list, tuple)) else [value]:
            if word not in allowed:
                raise ConfigError(f"{where}: {key} is {word!r}; it must be one of {', '.join(map(repr, allowed))}.")
    if key in RANGES and value is not None:
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not RANGES[key].contains(number):
                raise ConfigError(f"{where}: {key} is {value!r}; it must be {RANGES[key]}.")
    if key == "VERSION" and value != old:
        raise ConfigError(
            f"{where}: VERSION is {value!r}, and only files of version {old} are read. Load it with Detectron2's "
            "cfg.merge_from_file, which translates old keys, and write cfg.dump() to a new file."
        )


def _type_name(value: Any) -> str:
    names = {bool: "True or False", int: "an integer", float: "a number", str: "text", dict: "a mapping",
             list: "a list", tuple: "a list", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)
