"""Normalisation layers: frozen, synchronised, channels first, and choosing one by name."""
import torch
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn import functional as F

from detectron2._lite import refused_class
from detectron2.utils import comm

CycleBatchNormList = refused_class("CycleBatchNormList", __name__, nn.ModuleList)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine map: ``y = (x - mean) / sqrt(var + eps) * w + b``.

    All four are buffers, so no optimizer finds them. Freshly made it is the identity.
    """

    _version = 3  # of the state dict; before 2 the statistics were folded into weight and bias

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = num_features, eps
        identity = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}
        for name, value in identity.items():
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x):
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # The fused kernel would keep more for the backward pass than this one multiplication.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(1, -1, 1, 1) + shift.to(x.dtype).view(1, -1, 1, 1)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if (local_metadata.get("version") or 1) < 2:
            state_dict.setdefault(f"{prefix}running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(f"{prefix}running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self):
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module):
        """``module`` with a frozen layer of the same numbers in place of every BatchNorm2d and SyncBatchNorm."""
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps)
            if module.affine:
                frozen.weight.data = module.weight.detach().clone()
                frozen.bias.data = module.bias.detach().clone()
            frozen.running_mean.data = module.running_mean.data
            frozen.running_var.data = module.running_var.data
            frozen.register_buffer("num_batches_tracked", module.num_batches_tracked)  # keeps the keys of checkpoints
            return frozen.train(module.training)
        return _replace_children(module, cls.convert_frozen_batchnorm)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """The opposite: replace every frozen layer in ``module`` by a trainable BatchNorm2d with the same numbers."""
        if isinstance(module, FrozenBatchNorm2d):
            thawed = nn.BatchNorm2d(module.num_features, module.eps)
            thawed.load_state_dict(module.state_dict(), strict=False)
            return thawed.train(module.training).to(module.weight.device)
        return _replace_children(module, cls.convert_frozenbatchnorm2d_to_batchnorm2d)


def _replace_children(module, convert):
    for name, child in module.named_children():
        converted = convert(child)
        if converted is not child:
            module.add_module(name, converted)
    return module


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are averaged over all processes, written with plain collectives.

    ``stats_mode`` "" weighs every process equally; "N" weighs it by its batch, which may then differ between
    processes and be empty.
    """

    def __init__(self, *args, stats_mode="", **kwargs):
        super().__init__(*args, **kwargs)
        assert stats_mode in ("", "N"), f"stats_mode is '' or 'N', not {stats_mode!r}."
        self._stats_mode = stats_mode

    def forward(self, input):
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(input)
        batch = input.shape[0]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        if batch == 0:
            assert self._stats_mode == "N", "An empty batch needs stats_mode 'N' (norm 'naiveSyncBN_N')."
            moments = x.new_zeros(2 * x.shape[1]) + x.sum() * 0  # keeps this process in the backward pass
        else:
            moments = torch.cat([x.mean(dim=[0, 2, 3]), (x * x).mean(dim=[0, 2, 3])])

        weight = x.new_tensor([float(batch)]) if self._stats_mode == "N" else x.new_ones(1)
        total = differentiable_all_reduce(torch.cat([moments * weight, weight]))
        mean, mean_square = (total[:-1] / total[-1].clamp(min=1)).chunk(2)
        var = mean_square - mean * mean
        if total[-1] > 0:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)

        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).to(input.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of an (N, C, H, W) tensor."""

    def __init__(self, normalized_shape, eps=1e-6):
        super().__init__()
        self.normalized_shape, self.eps = (normalized_shape,), eps
        self.weight, self.bias = nn.Parameter(torch.ones(normalized_shape)), nn.Parameter(torch.zeros(normalized_shape))

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
        normalised = (x - mean) / torch.sqrt(var + self.eps)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]


_NORMS = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "LN": LayerNorm,
}


def get_norm(norm, out_channels):
    """A normalisation layer for ``out_channels`` channels, or None for None and "".

    `norm` is a callable, called with ``out_channels``, or one of BN, SyncBN, FrozenBN, GN (32 groups), nnSyncBN,
    naiveSyncBN, naiveSyncBN_N, LN; KeyError for another name.
    """
    if norm is None or norm == "":
        return None
    return (_NORMS[norm] if isinstance(norm, str) else norm)(out_channels)
