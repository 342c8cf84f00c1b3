"""What the data say to the configuration: a user's own COCO files, the classes, the number of images of an epoch."""
import argparse
import logging
import math
from typing import List, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from lowrank_d2.data.check import check_num_classes
from lowrank_d2.data.datasets.own import TRAIN, VAL, register_own
from lowrank_d2.data.mapper import boxes_only
from lowrank_d2.engine.config_values import nearest
from lowrank_d2.engine.defaults import tool_parser
from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.modeling.delta_file import local_delta
from lowrank_d2.peft import read_header

logger = logging.getLogger(__name__)

_CLASS_SECTIONS = ("SEM_SEG_HEAD", "ROI_HEADS", "RETINANET")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of own data."""
    group = parser.add_argument_group("own data in COCO format, instead of DATASETS.TRAIN and DATASETS.TEST")
    group.add_argument("--train-json", metavar="A.json", help="annotations to train on")
    group.add_argument("--train-images", metavar="DIR", help="the folder of their images")
    group.add_argument("--val-json", metavar="B.json", help="annotations to evaluate on; else a seeded tenth of A.json")
    group.add_argument("--val-images", metavar="DIR", help="the folder of their images; else --train-images")
    group.add_argument("--skip-missing", action="store_true", help="leave out images that are not there")
    parser.add_argument("--epochs", type=_positive, metavar="N", help="train for N epochs, evaluating after each")


def dataset_parser(description: str) -> argparse.ArgumentParser:
    """A parser for tools that look at one dataset: `--dataset NAME`, or `--json A.json --images DIR`."""
    parser = tool_parser(description)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset", metavar="NAME", help="a registered dataset, such as ndd20_train")
    what.add_argument("--json", dest="json_file", metavar="A.json", help="a COCO file; needs --images")
    parser.add_argument("--images", metavar="DIR", help="the folder that the file names of --json start from")
    return parser


def check_images_given(args: argparse.Namespace) -> None:
    """Raises ConfigError when --json of `dataset_parser` lacks its --images."""
    if args.json_file is not None and args.images is None:
        raise ConfigError("--json needs --images DIR, the folder that its file names start from.")


def use_own_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Registers the files that `args` names and points DATASETS at them; does nothing when it names none.

    Raises:
        ConfigError: one of the options needs another.
        DataError: a file cannot be used.
    """
    if args.train_json is None:
        given = [name for name in ("train_images", "val_json", "val_images") if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} needs --train-json A.json --train-images DIR.")
        return
    if args.train_images is None:
        raise ConfigError("--train-json needs the folder of its images: --train-images DIR.")
    if args.val_images is not None and args.val_json is None:
        raise ConfigError("--val-images needs the annotations of these images: --val-json B.json.")
    data = register_own(
        args.train_json, args.train_images, args.val_json, args.val_images,
        seed=max(cfg.SEED, 0), skip_missing=args.skip_missing, masks=not boxes_only(cfg),
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (data.train,), (data.val,)


def check_names(cfg: CfgNode) -> None:
    """Raises ConfigError when DATASETS names no data, or a dataset that nobody registered."""
    known = DatasetCatalog.list()
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name in (TRAIN, VAL) and name not in known:
                raise ConfigError(
                    f"DATASETS.{key} names {name!r}: the run that wrote this configuration had its own files. "
                    "Name them again: --train-json A.json --train-images DIR, and --val-json, --val-images if it had them."
                )
            if name not in known:
                near = ", ".join(nearest(name, known, 3)) or ", ".join(sorted(known)[:3])
                raise ConfigError(f"DATASETS.{key} names {name!r}, which is not registered. The nearest names: {near}.")


def take_classes(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Sets the classes to those of the data, and checks the number that stands on the command line (`opts`).

    With MODEL.PEFT.DELTA the classes are the delta's, and the data must have the same.

    Raises:
        ConfigError: the user's number differs.
        DeltaError: the delta has other classes than the data.
    """
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    classes = _classes(names)
    if not classes:
        return
    if cfg.MODEL.PEFT.DELTA:
        _compare(cfg.MODEL.PEFT.DELTA, list(read_header(local_delta(cfg.MODEL.PEFT.DELTA)).class_names), classes, names[0])
        return
    for section in _CLASS_SECTIONS:
        if f"MODEL.{section}.NUM_CLASSES" in opts[::2]:
            check_num_classes(cfg.MODEL[section].NUM_CLASSES, classes, names[0])
        cfg.MODEL[section].NUM_CLASSES = len(classes)
    cfg.MODEL.CLASS_NAMES = classes


def with_classes(cfg: CfgNode, names: Sequence[str]) -> CfgNode:
    """A copy of `cfg` for these classes, whatever the meta-architecture reads."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.CLASS_NAMES = list(names)
    for section in _CLASS_SECTIONS:
        cfg.MODEL[section].NUM_CLASSES = len(names)
    return cfg


def reads_words(cfg: CfgNode) -> bool:
    """Whether the classes of the model are words, so that any others do."""
    return "CLASS_PROMPTS" in cfg.MODEL.get(cfg.MODEL.META_ARCHITECTURE, {})


def with_words(cfg: CfgNode, words: Sequence[str]) -> CfgNode:
    """A copy of `cfg` whose model looks for `words` instead of its classes.

    Raises:
        ConfigError: the model's classes are no words, or there are none.
    """
    architecture = cfg.MODEL.META_ARCHITECTURE
    if not reads_words(cfg):
        raise ConfigError(
            f"--classes needs a model that reads words, and {architecture} has the classes that it was trained with. "
            "Leave --classes out, or use a SEEM."
        )
    if not any(words):
        raise ConfigError('--classes names no class. Write for example --classes "dolphin,calf".')
    cfg = with_classes(cfg, words)
    cfg.MODEL[architecture].CLASS_PROMPTS = []
    return cfg


def use_epochs(cfg: CfgNode, epochs: int, opts: Sequence[str]) -> None:
    """Sets MAX_ITER to `epochs`, one evaluation and checkpoint an epoch unless `opts` say else, the rest in proportion."""
    images = _count_images(cfg)
    solver = cfg.SOLVER
    epoch = images / (solver.IMS_PER_BATCH * solver.ACCUMULATE)
    before, solver.MAX_ITER = solver.MAX_ITER, max(math.ceil(epochs * epoch), 1)
    period = max(math.ceil(epoch), 1)
    solver.STEPS = tuple(step * solver.MAX_ITER // before for step in solver.STEPS)
    solver.WARMUP_ITERS = min(solver.WARMUP_ITERS, solver.MAX_ITER // 10)
    if "TEST.EVAL_PERIOD" not in opts[::2]:
        cfg.TEST.EVAL_PERIOD = period
    if "SOLVER.CHECKPOINT_PERIOD" not in opts[::2]:
        solver.CHECKPOINT_PERIOD = period
    logger.info("%d epochs of %d images: %d iterations.", epochs, images, solver.MAX_ITER)


def check_share(cfg: CfgNode, processes: int) -> None:
    """Raises ConfigError when there are fewer training images than processes."""
    images = _count_images(cfg) if processes > 1 else 1
    if processes > max(images, 1):
        raise ConfigError(
            f"{processes} processes are more than the {images} images of {', '.join(cfg.DATASETS.TRAIN)}. "
            f"Use at most {images} (--num-gpus, --num-processes)."
        )


def _count_images(cfg: CfgNode) -> int:
    return len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS))


def _classes(names: Sequence[str]) -> List[str]:
    return list(MetadataCatalog.get(names[0]).get("thing_classes", [])) if names else []


def _compare(path: str, ours: List[str], theirs: List[str], dataset: str) -> None:
    if ours == theirs:
        return
    only_ours, only_theirs = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    if only_ours or only_theirs:
        raise DeltaError(
            f"The delta {path} has {len(ours)} classes, the dataset {dataset} has {len(theirs)}: only in the delta "
            f"{only_ours}, only in the dataset {only_theirs}. Use data of the same classes."
        )
    raise DeltaError(
        f"The classes of the dataset {dataset} stand in another order, {theirs}, than those of the delta {path}, {ours}. "
        "Number the categories of the data as the delta has them."
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
