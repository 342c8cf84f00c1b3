import pytest
import torch

from lowrank_d2.layers.draws import Draws
from lowrank_d2.modeling.denoising import make_queries
from lowrank_d2.modeling.maskdino.decoder import boxes_around, make_proposals
from lowrank_d2.modeling.maskdino.pixel_decoder import PixelFeatures
from lowrank_d2.modeling.predictions import Target

SHAPES = ((8, 12), (4, 6), (2, 3), (1, 2))  # in the encoder's order


def features(images=2, levels=SHAPES):
    torch.manual_seed(2)
    memory = tuple(torch.randn(images, 32, h, w) for h, w in levels)
    return PixelFeatures(torch.randn(images, 16, 16, 24), memory)


def queries_of(decoder, box_count):
    torch.manual_seed(3)
    target = Target(torch.arange(box_count), torch.rand(box_count, 4), torch.zeros(box_count, 1, 1, dtype=torch.bool))
    return make_queries([target, target], decoder.label_embedding, 6, 0.4, 5, Draws())


def test_proposals_grow_from_level_to_level_and_keep_off_the_border():
    proposals = make_proposals(((1, 2), (4, 4)), like=torch.zeros(()))
    boxes = proposals.sigmoid()[0]
    torch.testing.assert_close(boxes[:2], torch.tensor([[0.25, 0.5, 0.05, 0.05], [0.75, 0.5, 0.05, 0.05]]))
    torch.testing.assert_close(boxes[2:, 2:], torch.full((16, 2), 0.1))
    narrow = make_proposals(((1, 200),), like=torch.zeros(()))[0]
    assert narrow[0].isinf().all() and narrow[1].isinf().all() and narrow[2].isfinite().all()


@pytest.mark.parametrize("inclusive, expected, empty", [
    (True, [0.35, 0.5, 0.3, 0.5], [0, 0, 0, 0]),
    (False, [0.3, 0.4375, 0.2, 0.375], [1, 1, 0, 0]),
])  # fmt: skip
def test_boxes_around_masks(inclusive, expected, empty):
    masks = torch.zeros(2, 1, 8, 10, dtype=torch.bool)
    masks[0, 0, 2, 4] = masks[0, 0, 5, 2] = True
    boxes = boxes_around(masks, inclusive=inclusive)
    torch.testing.assert_close(boxes[0, 0], torch.tensor(expected))
    assert boxes[1, 0].tolist() == empty


def test_selection_takes_the_best_tokens_of_the_reversed_levels(tiny_model):
    decoder = tiny_model().eval().decoder
    selected = []
    decoder.selection.register_forward_hook(lambda module, inputs, out: selected.append(out))
    decoder(features())
    scores, indices = selected[0].scores, selected[0].indices
    assert scores.shape == (2, sum(h * w for h, w in SHAPES))
    assert torch.equal(indices, scores.topk(12).indices)
    # The smallest map comes first.
    memory = torch.cat([x.flatten(2).transpose(1, 2) for x in features().memory[::-1]], dim=1)
    content = decoder.selection.enc_output_norm(decoder.selection.enc_output(memory))
    chosen = content.gather(1, indices[..., None].expand(-1, -1, 32))
    inside = selected[0].boxes_unsigmoid.isfinite().all(-1)
    torch.testing.assert_close(selected[0].content[inside], chosen[inside])


def test_fewer_tokens_than_queries_are_all_taken(tiny_model):
    decoder = tiny_model({"MODEL.MaskDINO.LEARN_TGT": True}).eval().decoder
    small = features(levels=((2, 2), (1, 1), (1, 1), (1, 1)))
    assert decoder(small).last.logits.shape == (2, 7, 5)


def test_the_layers_boxes_are_chained_through_one_earlier_step_only(tiny_model):
    """The gradient of a layer's boxes reaches the layer before (look forward twice), and no further."""
    decoder = tiny_model({"MODEL.MaskDINO.DEC_LAYERS": 3}).decoder.train()
    outputs = []
    for layer in decoder.layers:
        layer.register_forward_hook(lambda module, inputs, out: outputs.append(out))
    # Queries are cut from their predecessors, so that only the path of the boxes is left.
    for layer in decoder.layers[1:]:
        layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(), inputs[1].detach(), *inputs[2:]))
    boxes = decoder(features()).last.boxes
    first, second, third = torch.autograd.grad(boxes.sum(), outputs, allow_unused=True)
    assert first is None
    assert second.abs().max() > 0 and third.abs().max() > 0


def test_the_selection_is_trained_by_its_own_prediction_only(tiny_model):
    decoder = tiny_model({"MODEL.MaskDINO.INITIAL_PRED": False}).decoder.train()
    predictions = decoder(features())
    predictions.last.logits.sum().backward(retain_graph=True)
    assert decoder.selection.enc_output.weight.grad is None
    predictions.interm.logits.sum().backward()
    assert decoder.selection.enc_output.weight.grad.abs().max() > 0


def test_every_prediction_set_has_its_place(tiny_model):
    for initial, aux in ((True, 2), (False, 1)):
        decoder = tiny_model({"MODEL.MaskDINO.INITIAL_PRED": initial}).decoder.train()
        predictions = decoder(features(), queries_of(decoder, 2))
        assert len(predictions.aux) == len(predictions.dn_aux) == aux
        assert predictions.last.logits.shape == (2, 12, 5) and predictions.dn_last.logits.shape == (2, 6, 5)
        assert predictions.interm.mask_embed.shape == (2, 12, 16)
        assert predictions.last.mask_logits(predictions.mask_features).shape == (2, 12, 16, 24)


def test_denoising_queries_change_no_other_query(tiny_model):
    decoder = tiny_model().decoder.train()
    alone, together = decoder(features()), decoder(features(), queries_of(decoder, 2))
    torch.testing.assert_close(alone.last.logits, together.last.logits)
    torch.testing.assert_close(alone.aux[0].boxes, together.aux[0].boxes)


def test_without_denoising_queries_the_label_embedding_still_takes_part_in_a_step(tiny_model):
    decoder = tiny_model().decoder.train()
    decoder(features()).last.logits.sum().backward()
    assert decoder.label_embedding.weight.grad.abs().max() == 0


def test_learned_queries_of_one_stage(tiny_model):
    changes = {"MODEL.MaskDINO.TWO_STAGE": False, "MODEL.MaskDINO.INITIALIZE_BOX_TYPE": "no"}
    decoder = tiny_model(changes).decoder.train()
    predictions = decoder(features())
    assert predictions.interm is None and not hasattr(decoder, "selection")
    torch.testing.assert_close(predictions.aux[0].boxes[0], decoder.query_embed.weight.sigmoid())
    predictions.last.boxes.sum().backward()
    assert decoder.query_embed.weight.grad.abs().max() > 0 and decoder.query_feat.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind, expected", [
    ("bitmask", [12 / 24, 8 / 16, 12 / 24, 8 / 16]),
    ("mask2box", [11.5 / 24, 7.5 / 16, 11 / 24, 7 / 16]),
])  # fmt: skip
def test_first_boxes_come_from_the_first_masks(tiny_model, kind, expected):
    decoder = tiny_model({"MODEL.MaskDINO.INITIALIZE_BOX_TYPE": kind}).eval().decoder
    with torch.no_grad():  # every query's mask is channel 0 of the mask features
        decoder.heads.mask_embed.layers[-1].weight.zero_()
        decoder.heads.mask_embed.layers[-1].bias.copy_(torch.eye(16)[0])
    given = features()
    given.mask_features.fill_(-1.0)[:, 0, 4:12, 6:18] = 1.0
    boxes = decoder(given).aux[0].boxes
    torch.testing.assert_close(boxes, torch.tensor(expected).expand_as(boxes))


def test_padding_never_proposes_and_is_never_read(tiny_model):
    decoder = tiny_model().eval().decoder
    given = features()
    padding = tuple(torch.zeros(2, h, w, dtype=torch.bool) for h, w in SHAPES)
    for mask in padding[:3]:
        mask[1, :, mask.shape[2] // 2 :] = True
    changed = tuple(x.masked_fill(mask[:, None], 9.0) for x, mask in zip(given.memory, padding))
    one = decoder(PixelFeatures(given.mask_features, given.memory, padding)).last
    other = decoder(PixelFeatures(given.mask_features, changed, padding)).last
    torch.testing.assert_close(one.logits, other.logits)
