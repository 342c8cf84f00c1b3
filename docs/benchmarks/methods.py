#!/usr/bin/env python
"""Every method on the small base, equally long on two generated data sets: the tables of methods.md.

    python docs/benchmarks/methods.py --output output/methods

Two learning rates are tried on the first data set for LoRA and for the full head. All that adds parameters or trains
heads alone takes LoRA's better one, the decoder the full head's; --own-rate tries both for more methods. What is
finished is not run again, so that a call with more methods, data sets or seeds goes on where the last one ended.
"""
import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

from detectron2.engine import HookBase
from tabulate import tabulate

from lowrank_d2.data import mini
from lowrank_d2.data.datasets.catalog import VARIABLE
from lowrank_d2.engine.benchmark.measure import peak_mb, reset_peak
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.evaluators import headline_ap
from lowrank_d2.engine.report import report
from lowrank_d2.engine.trainer import LowRankTrainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RATES = (0.001, 0.004)
TARGETS = ("wixray", "ndd20")
# Adapters sit at every attention. The other methods act where the quickstart's LoRA does, with its scale of 2.
PLACES = load_config([str(CONFIGS / "mask_dino" / "quickstart_lora.yaml")], []).MODEL.PEFT.LORA.TARGETS
METHODS = {
    "embeddings": ["embeddings"],
    "decoder": ["decoder"],
    "full_head": ["full_head"],
    "adapters_2": ["adapters_2"],
    "lora, the paper's places": ["lora_r8", "LORA.TARGETS", "[]"],
    "lora": ["lora_r8"],
    "lora, rsLoRA's scale": ["lora_r8", "LORA.RSLORA", "True"],
    "dora": ["dora_r8", "DORA.ALPHA", "16", "DORA.TARGETS", str(PLACES)],
    "adalora, rank 12 to 8": ["adalora_r8", "ADALORA.ALPHA", "24", "ADALORA.TARGETS", str(PLACES)],
    "loha": ["loha_r8", "LOHA.ALPHA", "16", "LOHA.TARGETS", str(PLACES)],
    "lokr": ["lokr_r8", "LOKR.ALPHA", "16", "LOKR.TARGETS", str(PLACES)],
    "lora + adapters_2": ["lora_r8_adapters_2"],
}
OWN_RATE = ("lora", "full_head")


class Meter(HookBase):
    """The shortest CPU time of an iteration but the last, and the peak memory until then: without the evaluation."""

    def before_train(self) -> None:
        self.marks = []
        reset_peak()

    def before_step(self) -> None:
        self.marks.append(time.process_time())
        self.peak = peak_mb()

    @property
    def seconds(self) -> float:
        return min(end - start for start, end in zip(self.marks, self.marks[1:]))


def configuration(folder: Path, method: str, target: str, rate: float, seed: int, iterations: int):
    file, *options = METHODS[method]
    options = [word if index % 2 else f"MODEL.PEFT.{word}" for index, word in enumerate(options)]
    files = ["mask_dino/quickstart_lora.yaml", f"datasets/{target}.yaml", f"methods/{file}.yaml", "datasets/mini.yaml"]
    return load_config([str(CONFIGS / name) for name in files], [
        *options, "SOLVER.BASE_LR", str(rate), "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", str(iterations),
        "SOLVER.STEPS", f"({iterations * 4 // 5},)", "SOLVER.CHECKPOINT_PERIOD", str(iterations),
        "TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0", "SEED", str(seed), "OUTPUT_DIR", str(folder),
    ])


def in_a_process_of_its_own(function, cfg) -> dict:
    """`function(cfg)`, or what an earlier call left in OUTPUT_DIR."""
    written = Path(cfg.OUTPUT_DIR, "measured.json")
    if not written.exists():
        with multiprocessing.get_context("fork").Pool(1) as process:
            written.write_text(json.dumps(process.apply(function, (cfg,))))
        print(written.parent.relative_to(written.parents[2]), written.read_text(), flush=True)
    return json.loads(written.read_text())


def train(cfg) -> dict:
    """Mask AP on the validation images."""
    trainer = LowRankTrainer(cfg)
    trainer.resume_or_load(resume=False)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return {"ap": headline_ap(trainer.train()) or 0.0}


def weigh(cfg) -> dict:
    """What a step and the file of a run cost."""
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    trainer, meter = LowRankTrainer(cfg), Meter()
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([meter])
    trainer.train()
    counts, delta = report(cfg), Path(cfg.OUTPUT_DIR, "delta_final.safetensors")
    return {
        "seconds": meter.seconds, "peak_mb": meter.peak, "delta_bytes": delta.stat().st_size,
        "trainable": counts.trainable, "percent": counts.percent_trainable,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/methods"), help="folder of everything it makes")
    parser.add_argument("--iterations", type=int, default=80, help="of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="the first one chooses the rates")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), help="which data sets")
    for option, names, words in (("--methods", METHODS, "which rows"), ("--own-rate", OWN_RATE, "see above")):
        parser.add_argument(option, nargs="+", choices=METHODS, default=list(names), metavar="METHOD", help=words)
    args = parser.parse_args()
    output = args.output.resolve()
    os.environ[VARIABLE] = str(output / "datasets")
    for target in TARGETS:
        mini.build(output / "datasets", target)

    def ap(method, target, rate, seed):
        folder = output / target / f"{method.replace(' ', '_')}-{rate:g}-{seed}"
        return in_a_process_of_its_own(train, configuration(folder, method, target, rate, seed, args.iterations))["ap"]

    first, seed = TARGETS[0], args.seeds[0]
    costs = {}
    for method in args.methods:
        cfg = configuration(output / "costs" / method.replace(" ", "_"), method, first, RATES[0], seed, 8)
        costs[method] = in_a_process_of_its_own(weigh, cfg)
    tried = {method: {rate: ap(method, first, rate, seed) for rate in RATES} for method in args.own_rate}
    rates = {method: max(aps, key=aps.get) for method, aps in tried.items()}
    runs = {method: {} for method in args.methods}
    for target in args.targets:
        for method in args.methods:
            rate = rates.setdefault(method, rates["full_head" if method == "decoder" else "lora"])
            runs[method][target] = [ap(method, target, rate, seed) for seed in args.seeds]
    rows = []
    for method, measured in runs.items():
        cost = costs[method]
        rows.append([
            method, f"{cost['trainable']:,}", f"{cost['percent']:.2f}", f"{cost['delta_bytes'] / 1000:.0f}",
            f"{cost['seconds']:.2f}", f"{cost['peak_mb']:.0f}", f"{rates[method]:g}",
            *(", ".join(f"{each:.1f}" for each in several) for several in measured.values()),
            ", ".join(f"{rate:g}: {each:.1f}" for rate, each in tried.get(method, {}).items()),
        ])
    costs = ["trainable", "%", "delta, kB", "s / step", "peak, MB"]
    headers = ["method", *costs, "rate", *args.targets, f"tried on {first}"]
    print(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main())
