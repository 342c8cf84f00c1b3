"""What the command lines share: configuration files and KEY VALUE words, argument parsers, errors and exit codes."""
import argparse
import importlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Callable, List, Mapping, Optional, Sequence, Union

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils.logger import setup_logger
from fvcore.common.registry import Registry

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.engine.config_file import FILE_ENDINGS, Setting, read_settings, settings_of_words
from lowrank_d2.engine.config_values import merge_settings, nearest
from lowrank_d2.engine.interrupt import Interrupted, raise_on_terminate
from lowrank_d2.errors import ConfigError, LowRankError, OutputError

# Meta-architecture -> its package below projects/, "FOLDER/package". Importing the package registers the models; its
# `add_config(cfg)` declares their keys.
PROJECTS: Mapping[str, str] = {
    "AdaMixer": "LORS/lors",
    "DeformableDETR": "LoRA-DETR/lora_detr",
    "RelationDETR": "LoRA-DETR/lora_detr",
    "SEEM": "SEEM/seem",
    "YOLOS": "YOLOS/yolos",
}

# Keys that name what somebody registered.
REGISTRIES = {"MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY, "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY}

LOGGERS = ("detectron2", "fvcore", "lowrank_d2", *sorted({place.split("/")[1] for place in PROJECTS.values()}))

logger = logging.getLogger(__name__)


def load_config(files: Union[str, Sequence[str]], opts: Sequence[str] = ()) -> CfgNode:
    """Composes a configuration: Detectron2's defaults, ours, the project's, then `files` in order, then `opts`.

    The keys that exist depend on the meta-architecture, so that is read from all files first. Without any value for
    MODEL.DEVICE the GPU is used where there is one.

    Args:
        files: yaml or .py files, or one of them.
        opts: KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: a file, key or value that cannot be used; the message names the file and line.
    """
    settings: List[Setting] = []
    for file in [files] if isinstance(files, (str, os.PathLike)) else files:
        settings += read_settings(file)
    settings += settings_of_words(list(opts))

    written = {setting.key: setting for setting in settings}
    cfg = get_cfg()
    add_lowrank_config(cfg)
    architecture = written.get("MODEL.META_ARCHITECTURE")
    if architecture is not None:
        _add_project(cfg, str(architecture.value))
    merge_settings(cfg, settings)
    for key, registry in REGISTRIES.items():
        if key in written:
            _check_registered(key, str(written[key].value), registry, written[key].where)
    if "MODEL.DEVICE" not in written:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        logger.info("MODEL.DEVICE is not set: running on %s.", cfg.MODEL.DEVICE)
    return cfg


def check_device(cfg: CfgNode) -> None:
    """Raises ConfigError when MODEL.DEVICE does not exist here or cannot compute in SOLVER.AMP.DTYPE."""
    name = cfg.MODEL.DEVICE
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"MODEL.DEVICE is {name!r}, which is no device. Use cuda, cuda:0 or cpu.") from error
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ConfigError(f"MODEL.DEVICE is {name!r}, but {found} GPUs are found. Add MODEL.DEVICE cpu.")
        if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "bfloat16" and not torch.cuda.is_bf16_supported():
            raise ConfigError("This GPU does not compute in bfloat16. Set SOLVER.AMP.DTYPE float16.")


def prepare_output_dir(folder: str) -> None:
    """Makes `folder` and tries to write there.

    Raises:
        OutputError: it is a file, or nothing can be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if os.path.isfile(folder) else error.strerror
        raise OutputError(f"OUTPUT_DIR {folder} cannot be written: {reason}. Name another folder.") from error


def tool_parser(description: str) -> argparse.ArgumentParser:
    """A parser with what every tool has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def config_parser(description: str, *, json_output: bool = False) -> argparse.ArgumentParser:
    """A parser for `--config-file F [F ...] ... [KEY VALUE ...]`; `args.config_file` is a list, `args.opts` the words."""
    parser = tool_parser(description)
    parser.add_argument(
        "--config-file", action="append", required=True, metavar="F",
        help="one or several .yaml, .yml or .py files; later ones win",
    )
    if json_output:
        parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration keys and values, after all options"
    )
    return parser


def parse(parser: argparse.ArgumentParser, words: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses a command line; after --config-file every word that ends like a configuration file is one."""
    return parser.parse_args(_repeat_config_option(sys.argv[1:] if words is None else list(words)))


def run_tool(
    main: Callable[[argparse.Namespace], Union[None, int, dict]],
    parser: argparse.ArgumentParser,
    words: Optional[Sequence[str]] = None,
) -> int:
    """Runs a tool's `main(args)` and returns the exit code: `sys.exit(run_tool(main, parser()))`.

    Args:
        main: returns nothing, an exit code, or the object that --json prints. With --json everything else that is
            written to stdout meanwhile, by Detectron2's loggers and child processes too, goes to stderr.

    Returns:
        0; 2 or 3 for a LowRankError, printed as one `error:` block; 128 + n after signal n; 1 for a bug of ours.
    """
    args = parse(parser, words)
    saved_stdout = _stdout_to_stderr() if getattr(args, "json", False) else None
    result: Union[None, int, dict] = None
    raise_on_terminate()
    try:
        show_log()
        result = main(args)
    except LowRankError as error:
        result = _report(f"{error}", error.exit_code, args.debug)
    except (Interrupted, KeyboardInterrupt) as stop:
        result = getattr(stop, "exit_code", 130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        result = 0
    except Exception as error:
        result = _report(
            f"{type(error).__name__}: {error}\nThis is a bug of lowrank_d2; please report it with the lines above.", 1, True
        )
    finally:
        if saved_stdout is not None:
            sys.stdout.flush()
            os.dup2(saved_stdout, 1)
            os.close(saved_stdout)
    if isinstance(result, dict):
        if getattr(args, "json", False):
            print(json.dumps(result), flush=True)
        return 0
    return result or 0


def show_log(rank: int = 0) -> None:
    """Shows on stdout what Detectron2, we and the projects log, in Detectron2's form; of several processes the first one's."""
    for name in LOGGERS:
        setup_logger(distributed_rank=rank, name=name)


def _report(message: str, exit_code: int, with_traceback: bool) -> int:
    sys.stdout.flush()
    if with_traceback:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr, flush=True)
    return exit_code


def _stdout_to_stderr() -> int:
    """Points file descriptor 1 at stderr; returns a descriptor of what it was."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    return saved


def _repeat_config_option(words: List[str]) -> List[str]:
    """`--config-file a.yaml b.yaml KEY 1` -> `--config-file a.yaml --config-file b.yaml KEY 1`."""
    spread, in_files = [], False
    for position, word in enumerate(words):
        previous = words[position - 1] if position else ""
        if in_files and previous != "--config-file" and word.endswith(FILE_ENDINGS) and not word.startswith("-"):
            spread.append("--config-file")
        else:
            in_files = word.split("=")[0] == "--config-file" or (in_files and previous == "--config-file")
        spread.append(word)
    return spread


def project_package(architecture: str) -> ModuleType:
    """The package of `PROJECTS` that brings a meta-architecture.

    Raises:
        ConfigError: the projects are not here.
    """
    folder, package = PROJECTS[architecture].split("/")
    place = Path(__file__).resolve().parents[2] / "projects" / folder
    if place.is_dir() and str(place) not in sys.path:
        sys.path.insert(0, str(place))
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {architecture} is the project {folder}, and {place} is not there: projects are "
            f"not installed with the library. Use a clone of the repository, or put projects/{folder} on PYTHONPATH."
        )
    return importlib.import_module(package)


def _add_project(cfg: CfgNode, architecture: str) -> None:
    if architecture in PROJECTS:
        project_package(architecture).add_config(cfg)


def _check_registered(key: str, name: str, registry: Registry, where: str) -> None:
    known = [entry for entry, _ in registry]
    if name not in known:
        guess = nearest(name, known) or sorted(known)
        raise ConfigError(f"{where}: {key} {name!r} is unknown. Did you mean {' or '.join(guess)}?")
