"""The first five minutes: a small pretrained base learns a generated data set, with LoRA and without, and shows what it gained."""
import contextlib
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from tabulate import tabulate
from tqdm import tqdm

from lowrank_d2.data import mini
from lowrank_d2.data.datasets.catalog import VARIABLE
from lowrank_d2.data.image_files import read_image
from lowrank_d2.data.pictures import draw_record
from lowrank_d2.engine.checkpoint import LowRankCheckpointer
from lowrank_d2.engine.defaults import LOGGERS, load_config
from lowrank_d2.engine.evaluators import headline_ap
from lowrank_d2.engine.predict import Predictor, draw_instances, write_png
from lowrank_d2.engine.report import report
from lowrank_d2.engine.trainer import LowRankTrainer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mask_dino" / "quickstart_lora.yaml"
SHOWN = 10  # instances in a picture at most
EMBEDDINGS_ONLY = ["MODEL.PEFT.METHODS", "[]", "MODEL.PEFT.TRAIN", "embeddings"]


@dataclass(frozen=True)
class Run:
    """A finished run: its configuration, mask AP 0..100 on the validation set, and how long it took."""

    cfg: CfgNode
    ap: float
    seconds: float


def quickstart(output: Path, opts: list[str], pictures: int = 6, train: int = 200, val: int = 50) -> dict:
    """Makes the data, evaluates the base, trains embeddings only and LoRA, draws pictures; everything lies below `output`.

    Args:
        opts: KEY VALUE words on top of the quickstart's configuration, for every run alike.
        pictures: how many validation images to draw.
        train, val: images of the generated data set.

    Returns:
        ap_base, ap_embeddings_only, ap_lora: mask AP, 0..100; trainable, percent_trainable: of the LoRA run;
        delta_bytes: size of its delta file; out: `output`.
    """
    output = Path(output).resolve()
    os.environ[VARIABLE] = str(output / "datasets")
    print("1/4  generating an X-ray data set", flush=True)
    mini.build(output / "datasets", "wixray", train=train, val=val)
    with _logging_to(output / "log.txt"):
        print("2/4  the base, before it has seen any of it", flush=True)
        base = _evaluate(_config(output / "base", [*opts, *EMBEDDINGS_ONLY]))
        print("3/4  training class, mask and box embeddings only", flush=True)
        embeddings = _train(_config(output / "embeddings_only", [*opts, *EMBEDDINGS_ONLY]))
        print("4/4  training LoRA and the embeddings, as many iterations", flush=True)
        lora = _train(_config(output / "lora", opts))
        _draw(base.cfg, lora.cfg, output / "pictures", pictures)

    counts = report(lora.cfg)
    delta = Path(lora.cfg.OUTPUT_DIR, "delta_final.safetensors")
    rows = [
        ("base, untouched", 0, base.ap, base.seconds),
        ("embeddings only", report(embeddings.cfg).trainable, embeddings.ap, embeddings.seconds),
        ("LoRA and embeddings", counts.trainable, lora.ap, lora.seconds),
    ]
    print()
    print(tabulate(rows, headers=["", "trained parameters", "mask AP", "seconds"], floatfmt=("", "", ".1f", ".0f"), intfmt=","))
    print(f"LoRA and embeddings are {counts.percent_trainable:.2f} % of the model; the file to ship is {delta}")
    print(f"ground truth, base and LoRA side by side: {output / 'pictures'}")
    return {
        "ap_base": base.ap,
        "ap_embeddings_only": embeddings.ap,
        "ap_lora": lora.ap,
        "trainable": counts.trainable,
        "percent_trainable": counts.percent_trainable,
        "delta_bytes": delta.stat().st_size,
        "out": str(output),
    }


def _config(folder: Path, opts: list[str]) -> CfgNode:
    return load_config([str(CONFIG)], [*opts, "OUTPUT_DIR", str(folder)])


def _evaluate(cfg: CfgNode) -> Run:
    since = time.perf_counter()
    seed_all_rng(cfg.SEED)  # the class head starts anew on other classes
    model = LowRankTrainer.build_model(cfg)
    LowRankCheckpointer(model, cfg.OUTPUT_DIR).load(cfg.MODEL.WEIGHTS)
    with _quiet_stdout():
        results = LowRankTrainer.test(cfg, model)
    return Run(cfg, headline_ap(results) or 0.0, time.perf_counter() - since)


def _train(cfg: CfgNode) -> Run:
    """Trains, or continues what an earlier quickstart with the same configuration began, or takes over its end."""
    since = time.perf_counter()
    trainer = LowRankTrainer(cfg)
    written = Path(cfg.OUTPUT_DIR, "config.yaml")
    same = written.exists() and written.read_text(encoding="utf-8") == trainer.cfg.dump()
    trainer.resume_or_load(resume=same)
    if trainer.start_iter:
        print(f"     from iteration {trainer.start_iter} of an earlier run; delete {cfg.OUTPUT_DIR} to start anew", flush=True)
    trainer.register_hooks([_Bar()])
    with _quiet_stdout():
        results = trainer.train()
    return Run(cfg, headline_ap(results) or 0.0, time.perf_counter() - since)


class _Bar(HookBase):
    """A bar with the time to go; on anything but a terminal it stays silent."""

    def before_train(self) -> None:
        self._bar = tqdm(total=self.trainer.max_iter, unit="iteration", file=sys.stderr, disable=None)

    def after_step(self) -> None:
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Sends what Detectron2 and we log to `path` instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    saved = {name: logging.getLogger(name).handlers[:] for name in LOGGERS}
    try:
        for name in saved:
            logging.getLogger(name).handlers[:] = [handler]
        yield
    finally:
        for name, handlers in saved.items():
            logging.getLogger(name).handlers[:] = handlers
        handler.close()


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Hides what pycocotools prints; the same numbers are in the log."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _draw(base: CfgNode, tuned: CfgNode, folder: Path, count: int) -> None:
    """Writes `count` pictures: ground truth, the base's prediction, the tuned model's, from left to right."""
    name = tuned.DATASETS.TEST[0]
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    tuned = tuned.clone()
    tuned.MODEL.PEFT.DELTA = str(Path(tuned.OUTPUT_DIR, "delta_final.safetensors"))
    predictors = {"before": Predictor(base), "after": Predictor(tuned)}
    for record in tqdm(records[:count], "drawing", unit="image", disable=None):
        pixels = read_image(record["file_name"])
        panels = [np.asarray(draw_record(record, metadata, 2.0))]
        for predictor in predictors.values():
            instances = predictor(record["file_name"])
            best = instances.scores.argsort(descending=True)[:SHOWN]
            instances = instances[best[instances.scores[best] >= 0.3]]
            panels.append(draw_instances(pixels, instances, predictor.class_names, scale=2.0))
        stripe = np.concatenate([_titled(panel, title) for panel, title in zip(panels, ("ground truth", *predictors))], axis=1)
        write_png(folder / f"{Path(record['file_name']).stem}.png", stripe)


def _titled(panel: np.ndarray, title: str) -> np.ndarray:
    """A picture (h, w, 3) with a white margin and its title above."""
    framed = cv2.copyMakeBorder(panel[..., :3], 24, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(framed, title, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
