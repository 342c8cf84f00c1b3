"""Low-rank methods against the frozen layer and against Hugging Face peft: forward and backward, layers and models."""
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lowrank_d2.engine.benchmark.measure import in_fresh_process
from lowrank_d2.errors import ConfigError
from lowrank_d2.modeling.deformable_transformer import EncoderLayer
from lowrank_d2.peft import AdaLoRA, DoRA, LoHa, LoKr, LoRA, inject
from lowrank_d2.peft.method import LowRankMethod

WIDTHS, TOKENS = (256, 384, 1024), (300, 1250, 5376, 17821, 20000)
RANK = 8
METHODS: Mapping[str, Callable[[Sequence[str]], LowRankMethod]] = {
    "lora": lambda targets: LoRA(RANK, targets=tuple(targets)),
    "dora": lambda targets: DoRA(RANK, targets=tuple(targets)),
    "adalora": lambda targets: AdaLoRA(RANK, target_rank=RANK, targets=tuple(targets)),
    "loha": lambda targets: LoHa(RANK, targets=tuple(targets)),
    "lokr": lambda targets: LoKr(RANK, factor=8, targets=tuple(targets)),
}
LEVELS = ((64, 64), (32, 32), (16, 16))  # 5,376 cells: an image of 512 x 512
# Freed memory may go back to the kernel and return with page faults in the middle of a measurement, or may not.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40)}


def run(
    threads: int = 1,
    widths: Sequence[int] = WIDTHS,
    tokens: Sequence[int] = TOKENS,
    methods: Sequence[str] = tuple(METHODS),
    models: Sequence[str] = ("encoder", "vit"),
    seconds: float = 3.0,
) -> dict:
    """Measures everything in a process of its own. For each size all kinds take turns; the shortest times count.

    Args:
        threads: with one, CPU time is measured, which other programs hardly disturb; with more, wall-clock time.
        seconds: each size is repeated for about so long, but at least twice.

    Returns:
        "cases": [{"method", "width", "tokens", "relative_to_frozen", "peft_relative": times over that of the frozen
        layer with input gradient, torch's own; "saved_mb", "peft_saved_mb": what is kept for the backward pass beyond
        input and parameters, MB of 10^6 bytes}], "models": the same for whole models, "frozen_ms", "rank", "threads".

    Raises:
        ConfigError: peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "This benchmark compares with Hugging Face peft, which is not installed: pip install peft, or pip install "
            "-e '.[test]' for all that the tests need."
        ) from error
    result: dict[str, Any] = {"rank": RANK, "threads": threads, "torch": torch.__version__, "peft": peft.__version__}
    sizes = [(width, count) for width in widths for count in tokens]
    with _environment(MALLOC):
        return result | in_fresh_process(_measure_all, sizes, tuple(models), tuple(methods), threads, seconds)


def _measure_all(
    sizes: Sequence[tuple[int, int]], models: Sequence[str], methods: Sequence[str], threads: int, seconds: float
) -> dict:
    torch.set_num_threads(threads)
    result: dict[str, Any] = {"cases": [], "models": [], "frozen_ms": {}}
    for case in tqdm([*sizes, *models]):
        if case in models:
            build, targets, shape = MODELS[case]
            kind, label, into = case, {"model": case}, result["models"]
        else:
            width, count = case
            build, targets, shape = functools.partial(_one_layer, width), ["0"], (count, width)
            kind, label, into = f"{width} x {count}", {"width": width, "tokens": count}, result["cases"]
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        rows, result["frozen_ms"][kind] = _measure(build, targets, x, methods, threads, seconds)
        into += [{**label, **row} for row in rows]
    return result


def _one_layer(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width))


def _measure(
    build: Callable[[], nn.Module],
    targets: Sequence[str],
    x: Tensor,
    methods: Sequence[str],
    threads: int,
    seconds: float,
) -> tuple[list[dict], float]:
    """One row a method, and the frozen model's milliseconds."""
    nets = {"frozen": build().requires_grad_(False)}
    for name in methods:
        nets[name] = _with_values(inject(build(), [METHODS[name](targets)]))
        nets[f"peft {name}"] = _with_values(_by_peft(build(), name, targets))
    x.requires_grad_()
    grad = torch.randn_like(nets["frozen"](x))
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = _best({name: lambda net=net: _step(net, x, grad, clock) for name, net in nets.items()}, seconds)
    rows = []
    for name in methods:
        rows.append({
            "method": name,
            "relative_to_frozen": round(best[name] / best["frozen"], 3),
            "peft_relative": round(best[f"peft {name}"] / best["frozen"], 3),
            "saved_mb": round(_saved_mb(nets[name], nets["frozen"], x), 3),
            "peft_saved_mb": round(_saved_mb(nets[f"peft {name}"], nets["frozen"], x), 3),
        })
    return rows, round(1e3 * best["frozen"], 2)


def _best(calls: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, float]:
    """The shortest time of each call; they take turns, after one turn that is not counted."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(times["frozen"]) < 2 or time.perf_counter() - start < seconds:
        for name, call in calls.items():
            times[name].append(call())
    return {name: min(found) for name, found in times.items()}


def _step(net: nn.Module, x: Tensor, grad: Tensor, clock: Callable[[], float]) -> float:
    """Time of one forward and backward pass."""
    for parameter in (x, *net.parameters()):
        parameter.grad = None
    start = clock()
    net(x).backward(grad)
    return clock() - start


def _saved_mb(net: nn.Module, frozen: nn.Module, x: Tensor) -> float:
    """What the forward pass keeps beyond the frozen model's, its input and its parameters."""
    return (_kept_bytes(net, x) - _kept_bytes(frozen, x)) / 1e6


def _kept_bytes(net: nn.Module, x: Tensor) -> int:
    kept: dict[int, Tensor] = {}
    owned = {tensor.untyped_storage().data_ptr() for tensor in (x, *net.parameters(), *net.buffers())}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = tensor  # holding it keeps the address from being given away again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = net(x)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del y
    return size


@torch.no_grad()
def _with_values(net: nn.Module) -> nn.Module:
    """An untrained update is zero; give it values, so that no product is with zeros."""
    for parameter in net.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.01)
    return net


def _by_peft(net: nn.Module, method: str, targets: Sequence[str]) -> nn.Module:
    import peft

    where = {"target_modules": list(targets)}
    both = {"r": RANK, **where}
    config = {
        "lora": lambda: peft.LoraConfig(lora_alpha=RANK, **both),
        "dora": lambda: peft.LoraConfig(lora_alpha=RANK, use_dora=True, **both),
        "adalora": lambda: peft.AdaLoraConfig(init_r=RANK, target_r=RANK, lora_alpha=RANK, total_step=1, **where),
        "loha": lambda: peft.LoHaConfig(alpha=RANK, **both),
        "lokr": lambda: peft.LoKrConfig(alpha=RANK, decompose_factor=8, **both),
    }[method]()
    return peft.get_peft_model(net, config).base_model.model


class _Encoder(nn.Module):
    """Two layers of Mask DINO's deformable encoder."""

    def __init__(self):
        super().__init__()
        sizes = {"embed_dim": 256, "feedforward_dim": 1024, "num_heads": 8, "num_levels": len(LEVELS)}
        self.layers = nn.ModuleList(EncoderLayer(**sizes) for _ in range(2))
        cells = [torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in LEVELS]
        self.register_buffer("reference", torch.cat(cells).flip(-1)[None])
        self.register_buffer("pos", torch.zeros(1, len(self.reference[0]), 256))

    def forward(self, x: Tensor) -> Tensor:
        """(1, 5376, 256) -> the same."""
        for layer in self.layers:
            x = layer(x, self.pos, self.reference, LEVELS)
        return x


class _Block(nn.Module):
    """A pre-norm block of a vision transformer, YOLOS-S in size."""

    def __init__(self, width: int = 384, heads: int = 6):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, width) -> the same."""
        z = self.norm1(x)
        parts = (self.query, self.key, self.value)
        q, k, v = (part(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


# Name -> how to build it, targets, shape of its input.
MODELS: Mapping[str, tuple[Callable[[], nn.Module], Sequence[str], tuple[int, ...]]] = {
    "encoder": (_Encoder, ("sampling_offsets", "value_proj"), (1, sum(h * w for h, w in LEVELS), 256)),
    "vit": (lambda: nn.Sequential(*(_Block() for _ in range(3))), ("query", "value"), (1, 1829, 384)),
}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
