"""The model as a whole: losses, results, words, and what depends on nothing it should not."""
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from lowrank_d2.errors import ConfigError
from projects.SEEM.tests.models import without_vocabulary
from seem.decoder import blocked_cells
from tests.small_models import random_model


def test_losses_have_the_originals_names(small_model, batch):
    losses = small_model().train()(batch)
    kinds = ("loss_mask_ce", "loss_mask_bce", "loss_mask_dice")
    assert losses.keys() == {f"{kind}_{i}" for kind in kinds for i in range(5)}
    assert all(loss.isfinite() for loss in losses.values())


def test_zero_is_the_last_prediction(small_model, batch):
    losses = small_model({"MODEL.SEEM.DEEP_SUPERVISION": False}).train()(batch)
    assert losses.keys() == {"loss_mask_ce_0", "loss_mask_bce_0", "loss_mask_dice_0"}


def test_everything_has_a_gradient(small_model, batch):
    model = small_model().train()
    sum(model(batch).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_batch_without_instances(small_model, batch):
    losses = small_model().train()([batch[1]])
    assert losses["loss_mask_bce_0"] == losses["loss_mask_dice_0"] == 0 and losses["loss_mask_ce_0"] > 0


def test_instances_without_masks_are_refused(small_model, batch):
    batch[0]["instances"].remove("gt_masks")
    with pytest.raises(ConfigError, match="3 training instances came without gt_masks"):
        small_model().train()(batch)


def test_results_have_the_wanted_size_and_boxes_around_the_masks(small_model, batch):
    results = small_model({"TEST.DETECTIONS_PER_IMAGE": 12})(batch)
    for x, result in zip(batch, results):
        instances = result["instances"]
        assert len(instances) == 12 and instances.image_size == (x["height"], x["width"]) == instances.pred_masks.shape[1:]
        assert result.keys() == {"instances"} and (instances.scores <= 1).all() and (instances.pred_classes < 3).all()
        for mask, box in zip(instances.pred_masks, instances.pred_boxes.tensor):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if mask.any() else [0, 0, 0, 0]
            assert box.tolist() == [float(side) for side in expected]


def test_all_tasks(small_model, batch, monkeypatch):
    things = Metadata(name="seem_things", thing_dataset_id_to_contiguous_id={7: 0, 9: 2}, thing_classes=["a", "b", "c"])
    monkeypatch.setitem(MetadataCatalog.data, "seem_things", things)
    model = small_model({
        "DATASETS.TRAIN": "('seem_things',)", "MODEL.SEEM.TEST.PANOPTIC_ON": True, "MODEL.SEEM.TEST.SEMANTIC_ON": True,
        "MODEL.SEEM.TEST.OBJECT_MASK_THRESHOLD": 0.0, "MODEL.SEEM.TEST.OVERLAP_THRESHOLD": 0.0,
    })
    text = model.text(False, model.draws)
    seen = torch.stack((text[0], text[1], -text[0], 0 * text[0]))  # a word, its opposite, and a background between them
    monkeypatch.setattr(model.text, "forward", lambda training, draws: seen)
    result = model(batch[:1])[0]
    segments, info = result["panoptic_seg"]
    assert result["sem_seg"].shape == (3, 128, 96) and segments.shape == (128, 96)
    assert set(result["instances"].pred_classes.tolist()) <= {0, 2}
    assert info and all(segment["isthing"] == (segment["category_id"] in (0, 2)) for segment in info)


def test_semantic_scores_alone_are_resized_afterwards(small_model, batch):
    off = {"MODEL.SEEM.TEST.INSTANCE_ON": False, "MODEL.SEEM.TEST.SEMANTIC_ON": True}
    after = small_model(off)(batch[:1])[0]["sem_seg"]
    before = small_model({**off, "MODEL.SEEM.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": True})(batch[:1])[0]["sem_seg"]
    assert after.shape == before.shape == (3, 128, 96)
    assert 0 < (after - before).abs().max() < 0.2


def test_a_query_that_saw_nothing_looks_everywhere():
    features = torch.tensor([[[[1.0, -1.0, 2.0]]]])
    blocked = blocked_cells(torch.tensor([[[1.0], [-1.0], [0.0]]]), features)
    assert blocked.tolist() == [[[False, True, False], [True, False, True], [False, False, False]]]
    nothing = blocked_cells(torch.tensor([[[1.0]]]), -features.abs())
    assert nothing.tolist() == [[[False, False, False]]]


def test_more_words_need_no_other_model(small_config, monkeypatch):
    from detectron2.modeling import build_model

    without_vocabulary(monkeypatch)
    three = random_model(small_config())
    five = build_model(small_config({"MODEL.CLASS_NAMES": ["a", "b", "c", "d", "e"]})).eval()
    five.load_state_dict(three.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert five.predict(images).last.logits.shape == (1, 10, 6) and five.class_names == ["a", "b", "c", "d", "e"]
    assert torch.equal(five.predict(images).last.mask_embed, three.predict(images).last.mask_embed)


@pytest.mark.parametrize("changes, factors", [
    ({}, {"text": 0.1}),
    ({"MODEL.PEFT.METHODS": "['lora']", "MODEL.PEFT.TRAIN": "embeddings", "MODEL.SEEM.TEXT_MULTIPLIER": 0.5},
     {"text": 0.5, "decoder.class_embed": 0.1, "decoder.mask_embed": 0.1}),
])
def test_rates_beside_what_is_added(small_model, changes, factors):
    assert small_model(changes).learning_rates() == factors
