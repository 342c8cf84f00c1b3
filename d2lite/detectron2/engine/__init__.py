"""Training loops, hooks, and the defaults that scripts build on."""
from detectron2.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase  # isort: skip
from detectron2.engine.defaults import (
    DefaultPredictor, DefaultTrainer, create_ddp_model, default_argument_parser, default_setup, default_writers,
)
from detectron2.engine.hooks import (
    AutogradProfiler, BestCheckpointer, CallbackHook, EvalHook, IterationTimer, LRScheduler, PeriodicCheckpointer,
    PeriodicWriter, PreciseBN, TorchMemoryStats, TorchProfiler,
)
from detectron2.engine.launch import DEFAULT_TIMEOUT, launch
