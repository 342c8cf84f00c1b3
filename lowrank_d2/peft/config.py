"""What a user asked for, in one checked object; and the one table of methods."""
import dataclasses
from dataclasses import dataclass
from typing import Any, Mapping, Sequence, Union

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.peft import checks
from lowrank_d2.peft.adalora import AdaLoRA
from lowrank_d2.peft.adapter import Adapter
from lowrank_d2.peft.dora import DoRA
from lowrank_d2.peft.loha import LoHa
from lowrank_d2.peft.lokr import LoKr
from lowrank_d2.peft.lora import LoRA
from lowrank_d2.peft.method import LowRankMethod

Method = Union[LowRankMethod, Adapter]

METHODS = {method.name: method for method in (LoRA, DoRA, AdaLoRA, LoHa, LoKr, Adapter)}
TRAIN = ("all", "full_head", "decoder", "embeddings", "none")
DELTA_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class PeftConfig:
    """Methods and trainable base parameters of a model.

    Attributes:
        methods: method objects, at most one of a kind.
        train: which base parameters train, one of `TRAIN`.
        train_label_embedding: with "embeddings" and "none" the denoising label embedding trains too.
        delta: path of a delta file to apply after the base's weights, or "".
        delta_dtype: in which deltas are written, one of `DELTA_DTYPES`.

    Raises:
        ConfigError: for a wrong value, by the name of its configuration key.
    """

    methods: tuple[Method, ...] = ()
    train: str = "all"
    train_label_embedding: bool = True
    delta: str = ""
    delta_dtype: str = "float32"

    def __post_init__(self):
        given = self.methods
        known = isinstance(given, (list, tuple)) and all(isinstance(each, Method) for each in given)
        if not known:
            raise ConfigError(f"The methods are {given!r}. Pass a list of method objects, for example [LoRA(rank=8)].")
        object.__setattr__(self, "methods", tuple(given))
        kinds = [method.name for method in self.methods]
        if len(set(kinds)) < len(kinds):
            raise ConfigError(f"MODEL.PEFT.METHODS is {kinds}. Name every method once.")
        checks.one_of("MODEL.PEFT.TRAIN", self.train, TRAIN)
        checks.boolean("MODEL.PEFT.TRAIN_LABEL_EMBEDDING", self.train_label_embedding)
        checks.one_of("MODEL.PEFT.DELTA_DTYPE", self.delta_dtype, DELTA_DTYPES)
        if not isinstance(self.delta, str):
            raise ConfigError(f"MODEL.PEFT.DELTA is {self.delta!r}. Use the path of a delta file, or ''.")

    @classmethod
    def from_node(cls, node: Any) -> "PeftConfig":
        """Reads cfg.MODEL.PEFT, or anything with the same attributes. Methods that are not asked for are not read.

        Raises:
            ConfigError: as the class; for METHODS also an unknown method.
        """
        names = checks.words("MODEL.PEFT.METHODS", node.METHODS)
        for name in names:
            checks.one_of("MODEL.PEFT.METHODS", name, tuple(METHODS))
        return cls(
            methods=tuple(_method_from_node(name, node) for name in names),
            train=node.TRAIN,
            train_label_embedding=node.TRAIN_LABEL_EMBEDDING,
            delta=node.DELTA,
            delta_dtype=node.DELTA_DTYPE,
        )

    @property
    def is_plain(self) -> bool:
        """Whether a model is to be left as it is."""
        return not self.methods and self.train == "all" and not self.delta

    def with_header(self, header: Any) -> "PeftConfig":
        """This configuration completed by a delta's header, a `delta.DeltaHeader`.

        Without METHODS the header's are taken; TRAIN "all", the default, becomes the header's.

        Raises:
            DeltaError: METHODS were given and differ from the header's.
        """
        if self.methods:
            found = difference(header.methods, self.methods)
            if found:
                raise DeltaError(f"The delta {self.delta} {found}. Drop MODEL.PEFT.METHODS: a delta brings its own.")
            return self
        if self.train != "all":
            return dataclasses.replace(self, methods=header.methods)
        return dataclasses.replace(
            self,
            methods=header.methods,
            train=header.train,
            train_label_embedding=header.train_label_embedding,
        )


def method_fields(method: Method) -> dict[str, Any]:
    """The method as plain values for JSON, all fields included: {"name": "lora", "rank": 8, ...}."""
    return {"name": method.name, **dataclasses.asdict(method)}


def method_from_fields(fields: Mapping[str, Any]) -> Method:
    """The inverse of `method_fields`.

    Raises:
        DeltaError: a method or field that this version does not know.
    """
    values = dict(fields)
    name = values.pop("name", None)
    known = {entry.name for entry in dataclasses.fields(METHODS[name])} if name in METHODS else set()
    if name not in METHODS or not values.keys() <= known:
        raise DeltaError(f"it was made with {dict(fields)}, which this version does not know. Update lowrank_d2")
    try:
        return METHODS[name](**values)
    except ConfigError as error:
        raise DeltaError(f"its header is damaged: {error}") from error


def difference(recorded: Sequence[Method], ours: Sequence[Method]) -> str:
    """Whether two sets of methods make the same function of the same tensors; what acts in training alone may differ.

    Returns:
        "" if they do, else the first difference with both values.
    """
    theirs_by_name = {method.name: method for method in recorded}
    ours_by_name = {method.name: method for method in ours}
    if theirs_by_name.keys() != ours_by_name.keys():
        return f"was made with METHODS {sorted(theirs_by_name)}, this model has {sorted(ours_by_name)}"
    for name, theirs in theirs_by_name.items():
        for entry in dataclasses.fields(theirs):
            was, now = getattr(theirs, entry.name), getattr(ours_by_name[name], entry.name)
            # Targets are compared tensor by tensor where a file is read: () and the model's own list mean the same.
            if was != now and entry.name not in theirs.training_only:
                key = f"MODEL.PEFT.{name.upper()}.{entry.name.upper()}"
                return f"was made with {key} {_shown(was)}, this model has {_shown(now)}"
    return ""


def _method_from_node(name: str, node: Any) -> Method:
    kind = METHODS[name]
    options = getattr(node, name.upper())
    values = {entry.name: getattr(options, entry.name.upper()) for entry in dataclasses.fields(kind)}
    return kind(**values)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
