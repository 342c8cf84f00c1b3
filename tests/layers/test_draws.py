import numpy as np
import pytest
import torch

from lowrank_d2.layers import draws
from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws, many_uniform


def test_fresh_draws_follow_torchs_seed_and_their_ranges():
    torch.manual_seed(3)
    first = Draws().uniform("a", (1000, 2)), Draws().integers("b", 4, (1000,))
    torch.manual_seed(3)
    again = Draws().uniform("a", (1000, 2)), Draws().integers("b", 4, (1000,))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[0].dtype == torch.float32 and 0 <= first[0].min() and first[0].max() < 1
    assert first[1].unique().tolist() == [0, 1, 2, 3]


def test_a_recording_replays_in_any_order():
    recording = RecordingDraws(Draws())
    a, b = recording.uniform("a", (2, 3)), recording.integers("b", 7, (5,))
    replay = ReplayDraws(recording.recorded)
    assert torch.equal(replay.integers("b", 7, (5,)), b)
    assert torch.equal(replay.uniform("a", (2, 3)), a)


def test_a_replayed_array_is_a_copy():
    recorded = {"a": np.zeros(3, np.float32)}
    ReplayDraws(recorded).uniform("a", (3,)).add_(1)
    assert recorded["a"].tolist() == [0, 0, 0]


def test_replay_refuses_what_was_not_recorded():
    replay = ReplayDraws({"a": np.zeros((2, 3), np.float32)})
    with pytest.raises(KeyError, match="matcher/layer_0"):
        replay.uniform("matcher/layer_0/image_0/point_coords", (2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3, 2\)"):
        replay.uniform("a", (3, 2))


def test_many_numbers_are_uniform_follow_the_seed_and_differ_from_draw_to_draw():
    torch.manual_seed(3)
    first, second = (Draws().uniform("a", (3, 200_001)) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(Draws().uniform("a", (3, 200_001)), first)
    assert not torch.equal(first, second)
    counts = torch.histc(first, bins=100, min=0, max=1)
    assert counts.sum() == 600_003 and 0 <= first.min() and first.max() < 1
    assert (counts - 6000).abs().max() < 5 * 6000**0.5
    assert len(first.unique()) > 0.98 * len(first.flatten())  # no piece repeats another


def test_many_numbers_do_not_depend_on_the_number_of_threads():
    threads, drawn = torch.get_num_threads(), []
    for torch_threads in (1, 3):
        torch.set_num_threads(torch_threads)
        torch.manual_seed(3)
        drawn.append(Draws().uniform("a", (700_000,)))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("seed, count", [(0, 2), (5, 1), (2**63 - 2, 700_001), (-3, 262_145)])
def test_many_numbers_are_the_same_compiled_and_in_numpy(monkeypatch, seed, count):
    if not draws.has_kernel("cpu"):
        pytest.skip("no compiled operator on this machine")
    compiled = many_uniform(seed, count)
    monkeypatch.setattr(draws, "has_kernel", lambda device: False)
    assert torch.equal(many_uniform(seed, count), compiled)


def test_many_numbers_are_those_of_splitmix64():
    """The generator of https://prng.di.unimi.it/splitmix64.c by plain integers."""
    state, expected = 77, []
    for _ in range(4):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        expected += [(z % 2**32 >> 8) / 2**24, (z >> 40) / 2**24]
    assert many_uniform(77, 8).tolist() == expected


def test_an_empty_recording_has_the_strides_of_a_tensor():
    replayed = ReplayDraws({"a": np.zeros((3, 0, 2), np.float32)}).uniform("a", (3, 0, 2))
    assert replayed.stride() == torch.empty(3, 0, 2).stride()
