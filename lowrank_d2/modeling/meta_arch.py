"""What the meta-architectures here share: normalised images, low-rank methods, state dicts of other programs."""
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.layers.draws import Draws
from lowrank_d2.peft import PeftConfig, apply_peft, eval_frozen
from lowrank_d2.peft.trainable import added_names


class MetaArch(nn.Module):
    """A subclass makes its modules, and calls `finish` last.

    Attributes:
        draws: where a training step gets its random numbers; exchange it to record or replay a step.
    """

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float], size_divisibility: int = 0):
        """
        Args:
            pixel_mean, pixel_std: of the channels, on 0..255, in the order of INPUT.FORMAT.
            size_divisibility: the canvas of a batch is the largest image, rounded up to a multiple of this.
        """
        super().__init__()
        self.size_divisibility = size_divisibility
        self.draws = Draws()
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def finish(self, peft: PeftConfig) -> None:
        """Adapts the base, and prepares for the weights of other programs."""
        apply_peft(self, peft)
        self.register_load_state_dict_pre_hook(_adopt)

    @property
    def base_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor of the model without methods and branches, by its name; of the model as it is now, which
        `share_stack` may have changed."""
        apart = added_names(self) | training_only_names(self)
        return {name: tuple(tensor.shape) for name, tensor in self.state_dict().items() if name not in apart}

    @abstractmethod
    def adopt(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Collection[str]]:
        """A state dict of this model, of its original or of its backbone, judged before it is loaded.

        Returns:
            the tensors under our names, without those that cannot be loaded, and the names of what keeps its
            initialisation and has been reported to do so.

        Raises:
            CheckpointError: it would leave the model half loaded.
        """

    @abstractmethod
    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: a dict per image, with "image" (C, H, W) in INPUT.FORMAT and 0..255; in training "instances"
                with what the losses need; in evaluation optionally "height" and "width" of the wanted results.

        Returns:
            In training the weighted losses by name, in evaluation a dict per image with "instances".
        """

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "MetaArch":
        """Training mode, but for the parts that are frozen."""
        super().train(mode)
        if mode:
            eval_frozen(self)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; `missing_keys` leaves out what was reported to keep its initialisation, to be listed once."""
        self._reported: Collection[str] = ()
        incompatible = super().load_state_dict(state_dict, strict=strict, assign=assign)
        incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in self._reported]
        return incompatible

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> ImageList:
        """Detectron2's inputs -> normalised images, padded to one canvas."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)


def _adopt(model: MetaArch, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: what the model makes of the part of `state_dict` that is its own."""
    tensors = {name: state_dict.pop(name) for name in list(state_dict) if name.startswith(prefix)}
    tensors, model._reported = model.adopt({name[len(prefix) :]: tensor for name, tensor in tensors.items()})
    state_dict.update((prefix + name, tensor) for name, tensor in tensors.items())
