import numpy as np
import torch
from torch import nn

from lowrank_d2.layers.boxes import inverse_sigmoid
from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws
from lowrank_d2.modeling.denoising import DenoisingLayout, DenoisingQueries, make_contrastive_queries, make_queries
from lowrank_d2.modeling.predictions import Target

CLASSES = 5


def target(labels, boxes=None):
    labels = torch.tensor(labels, dtype=torch.int64)
    boxes = torch.rand(len(labels), 4) if boxes is None else torch.tensor(boxes)
    return Target(labels, boxes, torch.zeros(len(labels), 8, 8, dtype=torch.bool))


def test_every_instance_stands_in_its_slot_of_every_group():
    torch.manual_seed(0)
    targets = [target([1, 2, 0]), target([]), target([4])]
    embedding = nn.Embedding(CLASSES, 6)
    queries = make_queries(targets, embedding, num=7, noise_scale=0.0, num_classes=CLASSES, draws=Draws())
    assert queries.layout == DenoisingLayout(groups=2, slots=3, counts=(3, 0, 1))
    assert queries.content.shape == (3, 6, 6) and queries.boxes_unsigmoid.shape == (3, 6, 4)
    for image, truth in enumerate(targets):
        pairs = queries.layout.pairs(image, torch.device("cpu"))
        assert pairs.groups == 2
        torch.testing.assert_close(queries.content[image, pairs.queries], embedding(truth.labels[pairs.targets]))
        boxes = queries.boxes_unsigmoid[image, pairs.queries].sigmoid()
        torch.testing.assert_close(boxes, truth.boxes[pairs.targets], atol=2e-5, rtol=0)
        padding = torch.ones(6, dtype=torch.bool).index_fill(0, pairs.queries, False)
        assert not queries.content[image, padding].any() and not queries.boxes_unsigmoid[image, padding].any()
    assert queries.layout.pairs(0, torch.device("cpu")).queries.tolist() == [0, 1, 2, 3, 4, 5]
    assert queries.layout.pairs(2, torch.device("cpu")).queries.tolist() == [0, 3]
    queries.content.sum().backward()
    assert embedding.weight.grad[:, 0].tolist() == [2, 2, 2, 0, 2]


def test_noise_follows_the_draws():
    draws = {
        "dn/label_flip": np.array([0.19, 0.21, 0.0, 0.9], np.float32),  # two groups of two instances; flips below 0.2
        "dn/new_labels": np.array([3, 3, 2, 2]),
        "dn/box_noise": np.tile(np.float32([1.0, 0.0, 0.75, 0.5]), (4, 1)),
    }
    targets = [target([0], [[0.5, 0.5, 0.2, 0.4]]), target([1], [[0.9, 0.1, 0.4, 0.4]])]
    embedding = nn.Embedding(CLASSES, 6)
    queries = make_queries(targets, embedding, 2, noise_scale=0.4, num_classes=CLASSES, draws=ReplayDraws(draws))
    labels = torch.tensor([[3, 2], [1, 1]])
    torch.testing.assert_close(queries.content, embedding(labels))
    # cx + 0.4 w/2, cy - 0.4 h/2, w + 0.2 w, h; then clamped to [0, 1]
    expected = torch.tensor([[[0.54, 0.42, 0.24, 0.4]] * 2, [[0.98, 0.02, 0.48, 0.4]] * 2])
    torch.testing.assert_close(queries.boxes_unsigmoid.sigmoid(), expected)


def test_no_queries_without_instances_or_with_too_many():
    embedding = nn.Embedding(CLASSES, 6)
    arguments = dict(label_embedding=embedding, num=3, noise_scale=0.4, num_classes=CLASSES, draws=Draws())
    assert make_queries([target([]), target([])], **arguments) is None
    assert make_queries([target([0, 1, 2, 3])], **arguments) is None
    assert make_queries([target([0, 1, 2])], **arguments).layout.groups == 1


def test_attention_mask_hides_answers_and_other_groups():
    layout = DenoisingLayout(groups=2, slots=2, counts=(2, 1))
    queries = DenoisingQueries(torch.zeros(2, 4, 6), torch.zeros(2, 4, 4), layout)
    blocked = [[0, 0, 1, 1, 0, 0, 0]] * 2 + [[1, 1, 0, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0, 0]] * 3
    assert queries.attention_mask(3).int().tolist() == blocked


def test_without_noise_nothing_is_drawn():
    embedding = nn.Embedding(CLASSES, 6)
    truth = target([2], [[0.5, 0.5, 0.2, 0.4]])
    queries = make_queries([truth], embedding, 1, noise_scale=0.0, num_classes=CLASSES, draws=ReplayDraws({}))
    torch.testing.assert_close(queries.content[0], embedding(truth.labels))
    torch.testing.assert_close(queries.boxes_unsigmoid.sigmoid()[0], truth.boxes)


def test_contrastive_queries_are_near_and_far_in_turn():
    torch.manual_seed(0)
    targets = [
        Target(torch.tensor([1, 3]), torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.2, 0.2]])),
        Target(torch.tensor([2]), torch.tensor([[0.6, 0.5, 0.4, 0.2]])),
    ]
    embedding = torch.nn.Embedding(5, 4)
    draws = RecordingDraws(Draws())
    made = make_contrastive_queries(targets, embedding, 5, 0.5, 1.0, draws, eps=1e-3)
    assert (made.layout.groups, made.layout.slots, made.layout.pad) == (2, 4, 8)
    flip, new = draws.recorded["dn/label_flip"], draws.recorded["dn/new_labels"]
    sign, size = draws.recorded["dn/box_sign"], draws.recorded["dn/box_size"]
    assert flip.shape == new.shape == (12,) and sign.shape == size.shape == (12, 4)
    for group in range(2):
        for far in range(2):
            for index, (image, slot) in enumerate([(0, 0), (0, 1), (1, 0)]):
                drawn, place = (2 * group + far) * 3 + index, (2 * group + far) * 2 + slot
                label = int(new[drawn]) if flip[drawn] < 0.25 else int(targets[image].labels[slot])
                torch.testing.assert_close(made.content[image, place], embedding.weight[label])
                x, y, w, h = targets[image].boxes[slot].tolist()
                corners = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
                reach = torch.tensor([w, h, w, h]) / 2 * (torch.tensor(size[drawn]) + far)
                corners = (corners + (2 * torch.tensor(sign[drawn]) - 1) * reach).clamp(0, 1)
                box = torch.cat(((corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]))
                torch.testing.assert_close(made.boxes_unsigmoid[image, place], inverse_sigmoid(box, 1e-3))
    assert made.content[1, [1, 3, 5, 7]].eq(0).all() and made.boxes_unsigmoid[1, [1, 3, 5, 7]].eq(0).all()
    pairs = made.layout.pairs(0, "cpu")
    assert pairs.queries.tolist() == [0, 1, 4, 5] and pairs.targets.tolist() == [0, 1, 0, 1]


def test_more_objects_than_contrastive_queries_still_make_a_group():
    many = [Target(torch.zeros(7, dtype=torch.int64), torch.full((7, 4), 0.5))]
    embedding = torch.nn.Embedding(2, 4)
    assert make_contrastive_queries(many, embedding, 3, 0.5, 1.0, Draws()).layout.groups == 1
    none = [Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))]
    assert make_contrastive_queries(none, embedding, 3, 0.5, 1.0, Draws()) is None
