"""Every random state of the process: seeded for one sample, captured into a checkpoint, restored from it."""
import contextlib
import random
from typing import Dict, Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int, position: int) -> Iterator[None]:
    """Inside, Python's, numpy's and torch's CPU generators are a function of (seed, position); afterwards as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence((seed, position)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def capture() -> Dict[str, object]:
    """The states as tensors, numbers and lists, which torch.load reads with weights_only."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: Dict[str, object]) -> None:
    """Sets what `capture` returned; GPUs that this machine has not are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the states afterwards are as before."""
    state = capture()
    try:
        yield
    finally:
        restore(state)
