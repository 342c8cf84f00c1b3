import threading

import numpy as np
import pytest
import torch

from lowrank_d2.layers.parallel import in_parallel


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_item_once(threads):
    out = np.zeros(7, int)

    def count(i):
        out[i] += i + 1

    in_parallel(count, range(7))
    assert out.tolist() == [1, 2, 3, 4, 5, 6, 7]
    in_parallel(count, [])


def test_as_many_threads_as_torch_has(threads):
    meeting = threading.Barrier(threads, timeout=20)  # passes when so many calls wait at the same time
    in_parallel(lambda item: meeting.wait(), range(2))


def test_an_error_of_one_call_is_raised(threads):
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda item: 1 // item, [1, 0, 1])
