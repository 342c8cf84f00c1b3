"""The training loop and its hooks, and trainers for the usual step."""
import concurrent.futures
import logging
import math
import time
import weakref
from typing import List, Mapping, Optional

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

import detectron2.utils.comm as comm
from detectron2.utils.events import EventStorage, get_event_storage


class HookBase:
    """Something to do around the steps of `trainer`, a weak reference set on registering; override what is needed."""

    trainer: "TrainerBase" = None

    def before_train(self):
        """Before the first iteration."""

    def after_train(self):
        """After the last iteration, or after the exception that ended training."""

    def before_step(self):
        """Before every iteration."""

    def after_backward(self):
        """Between an iteration's backward pass and the optimizer's step."""

    def after_step(self):
        """After every iteration."""

    def state_dict(self):
        """What to keep in checkpoints; a hook that returns something needs load_state_dict too."""
        return {}


class TrainerBase:
    """An iterative loop with hooks; subclasses define run_step.

    `iter` goes from start_iter to max_iter when training is finished; `storage` is the EventStorage open meanwhile.
    """

    def __init__(self) -> None:
        self._hooks: List[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: List[Optional[HookBase]]) -> None:
        """Appends hooks, which are called in this order; None is skipped."""
        for hook in hooks:
            if hook is not None:
                assert isinstance(hook, HookBase), f"{hook!r} is no HookBase"
                # Two objects that own each other would live until the garbage collector comes by.
                hook.trainer = weakref.proxy(self)
                self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int):
        """Runs the iterations start_iter .. max_iter - 1, hooks around them; none of it if there is nothing to do."""
        logger = logging.getLogger(__name__)
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        if start_iter >= max_iter:
            logger.info("Training had already finished: iteration %d of %d", start_iter, max_iter)
            return
        logger.info("Training iterations %d to %d", start_iter, max_iter - 1)
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Hooks tell a finished training from a broken one by this.
                self.iter += 1
            except Exception:
                logger.exception("Training stopped in iteration %d", self.iter)
                raise
            finally:
                self.after_train()

    def _call_hooks(self, when):
        for hook in self._hooks:
            getattr(hook, when)()

    def before_train(self):
        self._call_hooks("before_train")

    def after_train(self):
        self.storage.iter = self.iter
        self._call_hooks("after_train")

    def before_step(self):
        self.storage.iter = self.iter
        self._call_hooks("before_step")

    def after_backward(self):
        self._call_hooks("after_backward")

    def after_step(self):
        self._call_hooks("after_step")

    def run_step(self):
        """One iteration."""
        raise NotImplementedError

    def state_dict(self):
        """{"iteration"} and {"hooks": {class name: state}}; of two hooks of one class the first is kept."""
        states = [(type(hook).__qualname__, hook.state_dict()) for hook in reversed(self._hooks)]
        hooks = {name: state for name, state in states if state}
        return {"iteration": self.iter, **({"hooks": hooks} if hooks else {})}

    def load_state_dict(self, state_dict):
        self.iter = state_dict["iteration"]
        hooks = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logging.getLogger(__name__).warning("No hook %s is registered: its saved state is ignored", name)


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one data loader: loss, gradients, step.

    Args:
        model: takes a batch, returns a loss or {name: loss}; put into training mode.
        gather_metric_period: losses are collected from all processes and stored every so many iterations.
        zero_grad_before_forward: clears gradients before the forward instead of the backward pass.
        async_write_metrics: stores the losses in a thread, without waiting for the GPU.
    """

    def __init__(
        self, model, data_loader, optimizer, gather_metric_period=1, zero_grad_before_forward=False,
        async_write_metrics=False,
    ):
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.gather_metric_period, self.async_write_metrics = gather_metric_period, async_write_metrics
        self.zero_grad_before_forward, self._data_loader_iter_obj = zero_grad_before_forward, None
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1) if async_write_metrics else None
        self._pending_metrics = None

    @property
    def _data_loader_iter(self):
        # Starting the loader's workers is left to the first step, so that a trainer that only evaluates has none.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder):
        """Replaces the data loader by `data_loader_builder()`; the old one is freed before."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def run_step(self):
        """Loads a batch, computes losses and gradients, stores the losses, then steps.

        A loss that is not finite raises FloatingPointError, before the weights change.
        """
        data, data_time = self._load_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        losses.backward()
        self.after_backward()
        self._record(loss_dict, data_time)
        self.optimizer.step()

    def _load_batch(self):
        """(batch, seconds waited for it)."""
        assert self.model.training, f"{type(self).__name__} needs the model in training mode: call model.train()"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _losses(self, data):
        """({name: loss}, their sum)."""
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return {"total_loss": loss_dict}, loss_dict
        return loss_dict, sum(loss_dict.values())

    def _record(self, loss_dict, data_time):
        if self._executor is None:
            self._write_metrics(loss_dict, data_time)
            return
        self._finish_pending_metrics()
        self._pending_metrics = self._executor.submit(self._write_metrics, loss_dict, data_time, iter=self.iter)

    def _finish_pending_metrics(self):
        """Waits for the thread, and raises what went wrong there."""
        pending, self._pending_metrics = self._pending_metrics, None
        if pending is not None:
            pending.result()

    def after_train(self):
        try:
            self._finish_pending_metrics()
        finally:
            super().after_train()

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: Optional[int] = None,
    ) -> None:
        iteration = self.iter if iter is None else iter
        if (iteration + 1) % self.gather_metric_period == 0:
            SimpleTrainer.write_metrics(loss_dict, data_time, iteration, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Stores the mean losses and longest data time (s) of all processes; FloatingPointError if not finite."""
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        local = {name: float(torch.as_tensor(loss).detach()) for name, loss in loss_dict.items()}
        gathered = comm.gather((data_time, local))
        if not comm.is_main_process():
            return
        storage.put_scalar("data_time", max(seconds for seconds, _ in gathered), cur_iter=cur_iter)
        means = {name: sum(losses[name] for _, losses in gathered) / len(gathered) for name in local}
        total = sum(means.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss is not finite in iteration {cur_iter}: {means}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=cur_iter, **means)

    def state_dict(self):
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """SimpleTrainer with automatic mixed precision, on the device where the model is.

    `precision` is the dtype of the forward pass where torch deems it safe; only float16 needs the `grad_scaler`.
    """

    def __init__(
        self, model, data_loader, optimizer, gather_metric_period=1, zero_grad_before_forward=False, grad_scaler=None,
        precision: torch.dtype = torch.float16, log_grad_scaler: bool = False, async_write_metrics=False,
    ):
        several = isinstance(model, DistributedDataParallel) and len(model.device_ids or [0]) > 1
        assert not (several or isinstance(model, DataParallel)), "AMPTrainer works with one device for each process"
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(self._device_type, enabled=precision == torch.float16)
        self.precision, self.log_grad_scaler = precision, log_grad_scaler

    def run_step(self):
        data, data_time = self._load_batch()
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with torch.autocast(self._device_type, dtype=self.precision):
            loss_dict, losses = self._losses(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())
        self.after_backward()
        self._record(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self):
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        scaler = state_dict.get("grad_scaler")
        if scaler:  # absent if mixed precision was turned on for the resumed part only
            self.grad_scaler.load_state_dict(scaler)
