import numpy as np
import pytest
import torch

from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws


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
