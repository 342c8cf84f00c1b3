"""Adapters and low-rank updates in SEEM: where they go, how they start, what a delta holds, and merging."""
import pytest
import torch
from detectron2.modeling import build_model

from lowrank_d2.layers.draws import Draws
from lowrank_d2.peft import merge, save_delta
from projects.SEEM.tests.models import without_vocabulary
from tests.small_models import random_model

PLACES = {f"pixel_decoder.encoder.{i}.self_attn" for i in range(2)} | {
    f"decoder.layers.{i}.{kind}" for i in range(4) for kind in ("self_attn", "cross_attn")
}


def logits(model):
    torch.manual_seed(7)
    with torch.no_grad():
        return model.predict(torch.randn(1, 3, 64, 96)).last.logits


def adapter(residual):
    return {"MODEL.PEFT.METHODS": "['adapter']", "MODEL.PEFT.TRAIN": "embeddings", "MODEL.PEFT.ADAPTER.RESIDUAL": residual}


LORA = {"MODEL.PEFT.METHODS": "['lora']", "MODEL.PEFT.TRAIN": "embeddings", "MODEL.PEFT.LORA.RANK": 4}


@pytest.fixture
def adapted(small_model, small_config):
    """adapted({key: value}) -> (plain model, the same weights with methods as they start), in evaluation mode."""

    def make(changes):
        plain = small_model()
        model = build_model(small_config(changes)).eval()
        model.load_state_dict(plain.state_dict(), strict=False)
        return plain, model

    return make


def test_adapters_stand_behind_every_attention(adapted):
    _, model = adapted(adapter("kappa+lambda"))
    filled = {name.removesuffix(".adapter") for name, module in model.named_modules() if name.endswith(".adapter")}
    assert filled == PLACES


def test_low_rank_updates_are_in_q_and_v_of_every_attention(adapted):
    _, model = adapted(LORA)
    found = {name.removesuffix(".lora_A") for name, _ in model.named_parameters() if name.endswith("lora_A")}
    assert found == {f"{place}.{letter}_proj" for place in PLACES for letter in "qv"}


def test_words_and_their_scale_are_frozen_beside_methods(adapted):
    _, model = adapted(LORA)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(parameter.requires_grad for parameter in model.text.parameters())
    assert {name for name in trained if "lora" not in name} == {
        "decoder.class_embed", *(f"decoder.mask_embed.layers.{i}.{x}" for i in range(3) for x in ("weight", "bias")),
    }


def test_how_methods_start(adapted):
    base = logits(adapted(LORA)[0])
    assert torch.equal(logits(adapted(LORA)[1]), base)
    assert torch.equal(logits(adapted(adapter("lambda"))[1]), base)
    for residual in ("kappa", "kappa+lambda"):
        assert (logits(adapted(adapter(residual))[1]) - base).std() > 0.05 * base.std()


@pytest.mark.parametrize("freeze, trains", [(False, True), (True, False)])
def test_the_decoder_trains_with_its_words_or_without(small_model, batch, freeze, trains):
    model = small_model({"MODEL.PEFT.TRAIN": "decoder", "MODEL.SEEM.TEXT.FREEZE": freeze}).train()
    sum(model(batch).values()).backward()
    assert all((parameter.grad is not None) == trains for parameter in model.text.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert all(parameter.grad is None for parameter in model.pixel_decoder.parameters())


def test_all_trains_but_frozen_words(small_model):
    model = small_model({"MODEL.SEEM.TEXT.FREEZE": True})
    assert {name.partition(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"text"}


def test_the_merged_model_is_plain_and_computes_the_same(small_model):
    model, plain = small_model(LORA), small_model()
    plain.load_state_dict(merge(model))
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [LORA, adapter("kappa+lambda")])
def test_a_delta_has_what_was_trained_whether_the_encoder_sleeps_or_not(small_config, monkeypatch, tmp_path, changes):
    without_vocabulary(monkeypatch)
    base = random_model(small_config())
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    tuned = build_model(small_config(changes)).eval()
    tuned.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.requires_grad)
    tuned.text(False, Draws())  # puts the encoder into its file
    header = save_delta(tuned, tmp_path / "delta.safetensors", class_names=["x", "y", "z"])
    assert not any(name.startswith(("text.", "backbone.")) for name in header.tensors)

    words = {"MODEL.CLASS_NAMES": [], "MODEL.WEIGHTS": tmp_path / "base.pth", "MODEL.PEFT.DELTA": tmp_path / "delta.safetensors"}
    shipped = build_model(small_config(words)).eval()
    shipped.load_state_dict(base.state_dict(), strict=False)
    assert shipped.class_names == ["x", "y", "z"]
    torch.testing.assert_close(logits(shipped), logits(tuned), rtol=5e-3, atol=5e-3)  # the file is in half precision
    assert not torch.allclose(logits(base), logits(tuned), atol=0.05)
    values = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    size = (tmp_path / "delta.safetensors").stat().st_size
    assert 2 * values < size < 2 * values + 200 * len(header.tensors) + 5_000
