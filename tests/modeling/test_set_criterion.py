from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.layers.boxes import cxcywh_to_xyxy, giou
from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws
from lowrank_d2.modeling.denoising import DenoisingLayout
from lowrank_d2.modeling.predictions import Prediction, Predictions, Target
from lowrank_d2.modeling.set_criterion import SetCriterion

CLASSES, QUERIES, EMBED, POINTS = 5, 9, 6, 40
LAYOUT = DenoisingLayout(groups=2, slots=3, counts=(3, 0, 2))


def config(**switches):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = CLASSES
    cfg.MODEL.MaskDINO.TRAIN_NUM_POINTS = POINTS
    for name, value in switches.items():
        cfg.merge_from_list(["MODEL.MaskDINO." + name.replace("__", "."), value])
    return cfg


def prediction(images, queries, columns=CLASSES):
    return Prediction(
        torch.randn(images, queries, columns, requires_grad=True),
        torch.rand(images, queries, 4).requires_grad_(),
        torch.randn(images, queries, EMBED, requires_grad=True),
    )


def target(count):
    return Target(torch.randint(CLASSES, (count,)), torch.rand(count, 4), torch.rand(count, 32, 48) > 0.5)


def step(layout=LAYOUT, aux=2, two_stage=True, counts=(3, 0, 2), columns=CLASSES):
    torch.manual_seed(0)
    images = len(counts)
    predictions = Predictions(
        torch.randn(images, EMBED, 8, 12, requires_grad=True),
        prediction(images, QUERIES, columns),
        tuple(prediction(images, QUERIES, columns) for _ in range(aux)),
        prediction(images, QUERIES, columns) if two_stage else None,
        prediction(images, layout.pad, columns) if layout else None,
        tuple(prediction(images, layout.pad, columns) for _ in range(aux)) if layout else (),
    )
    return predictions, [target(count) for count in counts]


def plain_losses(single, features, targets, pairs, num, draws, name):
    """The same five losses, unweighted, from whole masks and one pair after the other."""
    labels = torch.zeros(single.logits.shape)
    boxes, overlaps, bce, dice, row = [], [], [], [], 0
    masks = single.mask_logits(features)
    oversampled, random = (draws.recorded[f"loss/{name}/{kind}_coords"] for kind in ("oversampled", "random"))
    for image, truth in enumerate(targets):
        for query, index in zip(pairs[image].queries.tolist(), pairs[image].targets.tolist()):
            labels[image, query, truth.labels[index]] = 1
            own, true = single.boxes[image, query], truth.boxes[index]
            boxes.append((own - true).abs().sum())
            overlaps.append(1 - giou(cxcywh_to_xyxy(own), cxcywh_to_xyxy(true)))
            candidates = torch.as_tensor(oversampled[row])
            kept = at(masks[image, query], candidates).abs().argsort()[: int(0.75 * POINTS)]
            points = torch.cat((candidates[kept], torch.as_tensor(random[row])))
            logit, label = at(masks[image, query], points), at(truth.masks[index].float(), points)
            bce.append(F.binary_cross_entropy_with_logits(logit, label))
            p = logit.sigmoid()
            dice.append(1 - (2 * (p * label).sum() + 1) / (p.sum() + label.sum() + 1))
            row += 1
    p = single.logits.sigmoid()
    agreement = torch.where(labels > 0, p, 1 - p)
    focal = torch.where(labels > 0, 0.25, 0.75) * (1 - agreement) ** 2 * -agreement.log()
    names = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")
    return {n: sum(v) / num for n, v in zip(names, (focal.flatten(), boxes, overlaps, bce, dice))}


def at(mask, points):
    return F.grid_sample(mask[None, None], 2 * points[None, None] - 1, align_corners=False).flatten()


def test_losses_and_gradients_equal_the_plain_computation():
    predictions, targets = step()
    criterion, recording = SetCriterion.from_config(config()), RecordingDraws(Draws())
    losses = criterion(predictions, targets, LAYOUT, recording)
    weights = {"loss_ce": 4, "loss_mask": 5, "loss_dice": 5, "loss_bbox": 5, "loss_giou": 2}
    matched = {"layer_last": predictions.last, "layer_0": predictions.aux[0], "layer_1": predictions.aux[1]}
    matched["interm"] = predictions.interm
    pairs = criterion.matcher(matched, targets, predictions.mask_features, recording_replay(recording))
    known = [LAYOUT.pairs(image, torch.device("cpu")) for image in range(3)]
    cases = [
        ("", "layer_last", predictions.last, pairs["layer_last"], 5),
        ("_1", "layer_1", predictions.aux[1], pairs["layer_1"], 5),
        ("_interm", "interm", predictions.interm, pairs["interm"], 5),
        ("_dn", "dn_layer_last", predictions.dn_last, known, 10),
        ("_dn_0", "dn_layer_0", predictions.dn_aux[0], known, 10),
    ]
    for suffix, name, single, own, num in cases:
        expected = plain_losses(single, predictions.mask_features, targets, own, num, recording, name)
        inputs = [single.logits, single.boxes, single.mask_embed, predictions.mask_features]
        mine = {n: losses[n + suffix] for n in expected}
        for n, value in expected.items():
            torch.testing.assert_close(mine[n], weights[n] * value, msg=lambda m: f"{n + suffix}: {m}")
        grads = torch.autograd.grad(sum(mine.values()), inputs, retain_graph=True)
        plain = torch.autograd.grad(sum(weights[n] * v for n, v in expected.items()), inputs)
        for a, b in zip(grads, plain):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def recording_replay(recording):
    return ReplayDraws(recording.recorded)


def test_a_replay_repeats_the_losses_exactly():
    predictions, targets = step()
    criterion, recording = SetCriterion.from_config(config()), RecordingDraws(Draws())
    first = criterion(predictions, targets, LAYOUT, recording)
    again = criterion(predictions, targets, LAYOUT, recording_replay(recording))
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in again.items()}
    assert len(recording.recorded) == 4 * 2 + (4 + 3) * 2  # matcher: 4 sets x 2 images with instances; points of 7 sets


@pytest.mark.parametrize("ratio, kinds", [(0.0, ["oversampled", "random"]), (1.0, ["oversampled"])])
def test_random_points_are_drawn_only_where_there_are_some(ratio, kinds):
    predictions, targets = step(two_stage=False, aux=0)
    recording = RecordingDraws(Draws())
    criterion = SetCriterion.from_config(config(IMPORTANCE_SAMPLE_RATIO=ratio, DN="no"))
    losses = criterion(predictions, targets, None, recording)
    drawn = [purpose for purpose in recording.recorded if purpose.startswith("loss/")]
    assert drawn == [f"loss/layer_last/{kind}_coords" for kind in kinds]
    assert recording.recorded[drawn[0]].shape == (5, 3 * POINTS, 2)
    assert losses["loss_mask"] > 0


@pytest.mark.parametrize(
    "switches, count",
    [
        ({}, 35),
        ({"DN": "standard"}, 29),
        ({"DN": "no"}, 20),
        ({"DEEP_SUPERVISION": False}, 15),
        ({"BOX_LOSS": False}, 27),
    ],
)
def test_which_losses_there_are(switches, count):
    predictions, targets = step()
    losses = SetCriterion.from_config(config(**switches))(predictions, targets, LAYOUT, Draws())
    assert len(losses) == count
    assert ("loss_mask_dn" in losses) == (switches.get("DN", "seg") == "seg")
    assert ("loss_bbox" in losses) == switches.get("BOX_LOSS", True)
    assert ("loss_ce_0" in losses) == switches.get("DEEP_SUPERVISION", True)
    assert ("loss_giou_dn" in losses) == (switches.get("DN") != "no")


def test_one_stage_has_no_denoising_losses_on_the_first_prediction():
    predictions, targets = step(two_stage=False)
    losses = SetCriterion.from_config(config())(predictions, targets, LAYOUT, Draws())
    assert len(losses) == 25 and "loss_ce_dn_0" not in losses and "loss_ce_dn_1" in losses
    assert not [name for name in losses if name.endswith("_interm")]


def test_a_batch_without_instances_gives_finite_losses_and_reaches_every_head():
    predictions, targets = step(layout=None, counts=(0, 0))
    losses = SetCriterion.from_config(config())(predictions, targets, None, Draws())
    assert len(losses) == 35
    assert all(value == 0 for name, value in losses.items() if "loss_ce" not in name or "dn" in name)
    sum(losses.values()).backward()
    # Focal loss of background alone, divided by one.
    p = predictions.last.logits.detach().sigmoid()
    torch.testing.assert_close(losses["loss_ce"].detach(), 4 * (0.75 * p**2 * -(1 - p).log()).sum())
    for tensor in (predictions.mask_features, predictions.last.boxes, predictions.last.mask_embed):
        assert tensor.grad is not None and not tensor.grad.any()


def test_cross_entropy_weighs_no_object():
    predictions, targets = step(layout=None, columns=CLASSES + 1)
    cfg = config(DN="no", SEMANTIC_CE_LOSS=True, TEST__SEMANTIC_ON=True)
    criterion, recording = SetCriterion.from_config(cfg), RecordingDraws(Draws())
    losses = criterion(predictions, targets, None, recording)
    single = predictions.last
    pairs = criterion.matcher({"layer_last": single}, targets, predictions.mask_features, recording_replay(recording))
    total = weights = 0
    for image, pair in enumerate(pairs["layer_last"]):
        answers = dict(zip(pair.queries.tolist(), targets[image].labels[pair.targets].tolist()))
        for query in range(QUERIES):
            label = answers.get(query, CLASSES)
            weight = 0.1 if label == CLASSES else 1.0
            total = total - weight * single.logits[image, query].log_softmax(0)[label]
            weights += weight
    torch.testing.assert_close(losses["loss_ce"], 4 * total / weights)


def test_panoptic_turns_the_cross_entropy_off_and_trains_the_extra_logit_as_a_class():
    predictions, targets = step(layout=None, columns=CLASSES + 1, counts=(0,))
    cfg = config(DN="no", SEMANTIC_CE_LOSS=True, TEST__SEMANTIC_ON=True, TEST__PANOPTIC_ON=True)
    losses = SetCriterion.from_config(cfg)(predictions, targets, None, Draws())
    p = predictions.last.logits.sigmoid()
    background = (0.75 * p[..., :-1] ** 2 * -(1 - p[..., :-1]).log()).sum()
    extra = (0.25 * (1 - p[..., -1]) ** 2 * -p[..., -1].log()).sum()
    torch.testing.assert_close(losses["loss_ce"], 4 * (background + extra))


def test_panoptic_box_losses_skip_stuff_but_keep_the_normaliser():
    predictions, targets = step()
    targets = [replace(t, labels=t.labels.clone()) for t in targets]
    targets[0].labels[0] = 81
    cfg = config(PANO_BOX_LOSS=True)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 133
    criterion = SetCriterion.from_config(cfg)
    wide = replace(predictions.dn_last, logits=torch.randn(3, LAYOUT.pad, 133))
    last = replace(predictions.last, logits=torch.randn(3, QUERIES, 133))
    predictions = Predictions(predictions.mask_features, last, dn_last=wide)
    losses = criterion(predictions, targets, LAYOUT, Draws())
    expected = 0.0
    for image, truth in enumerate(targets):
        pairs = LAYOUT.pairs(image, torch.device("cpu"))
        for query, index in zip(pairs.queries, pairs.targets):
            if truth.labels[index] < 80:
                expected = expected + (wide.boxes[image, query] - truth.boxes[index]).abs().sum()
    torch.testing.assert_close(losses["loss_bbox_dn"], 5 * expected / 10)


def test_losses_are_float32_under_autocast_and_nearly_the_same_on_bfloat16_predictions():
    predictions, targets = step(layout=None, aux=0)
    criterion, recording = SetCriterion.from_config(config(DN="no")), RecordingDraws(Draws())
    full = criterion(predictions, targets, None, recording)

    def half(single):
        return Prediction(single.logits.bfloat16(), single.boxes.bfloat16(), single.mask_embed.bfloat16())

    rounded = Predictions(
        predictions.mask_features.bfloat16(), half(predictions.last), interm=half(predictions.interm)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(rounded, targets, None, recording_replay(recording))
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[name], rtol=0.05, atol=0)


def test_nan_predictions_are_refused():
    predictions, targets = step()
    with torch.no_grad():
        predictions.last.mask_embed[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        SetCriterion.from_config(config())(predictions, targets, LAYOUT, Draws())
