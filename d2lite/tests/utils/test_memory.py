import pytest
import torch
from detectron2.utils.memory import retry_if_cuda_oom

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_tried_three_times():
    calls = []

    @retry_if_cuda_oom
    def work(x, *, scale):
        calls.append(x.device.type)
        if len(calls) < 3:
            raise FULL
        return x * scale

    assert work(torch.ones(1), scale=3).item() == 3 and calls == ["cpu"] * 3
    assert work.__name__ == "work"


def test_other_errors_pass():
    @retry_if_cuda_oom
    def work():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        work()


def test_success_runs_once():
    calls = []
    retry_if_cuda_oom(calls.append)(1)
    assert calls == [1]
