import pytest
import torch
from torch import nn

from lowrank_d2.errors import CheckpointError, ConfigError
from lowrank_d2.peft import Adapter, LoRA, check_frozen, check_gradients, count, eval_frozen, freeze, inject
from lowrank_d2.peft.trainable import below


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def parts_of(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "train, labels, parts",
    [
        ("none", False, set()),
        ("none", True, {"label_embedding"}),
        ("embeddings", False, {"class_embed"}),
        ("embeddings", True, {"class_embed", "label_embedding"}),
        ("decoder", False, {"decoder", "decoder_norm", "class_embed", "label_embedding"}),
        ("full_head", False, {"pixel_decoder", "decoder", "decoder_norm", "class_embed", "label_embedding"}),
        ("all", False, {"backbone", "pixel_decoder", "decoder", "decoder_norm", "class_embed", "label_embedding"}),
    ],
)
def test_a_part_trains_completely_and_nothing_else_does(make_toy, train, labels, parts):
    model = make_toy()
    freeze(model, train, labels)
    assert trained(model) == {name for name, _ in model.named_parameters() if name.split(".")[0] in parts}


def test_added_parameters_train_beside_every_part(make_toy):
    model = inject(make_toy(), [LoRA(rank=1), Adapter()], train="none", train_label_embedding=False)
    assert trained(model) and all("lora_" in name or ".adapter." in name for name in trained(model))


def test_all_respects_what_the_model_froze_itself(make_toy):
    model = make_toy()
    model.backbone.requires_grad_(False)
    inject(model, [LoRA()], train="all")
    assert not parts_of(trained(model)) & {"backbone"} and "class_embed.weight" in trained(model)


def test_a_foreign_model_knows_all_and_none_only():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="TRAIN is 'decoder', but Sequential knows only 'all', 'none'"):
        inject(model, [LoRA(targets=("0",))], train="decoder")
    inject(nn.Sequential(nn.Linear(2, 2)), [LoRA(targets=("0",))], train="none")


def test_prefixes_end_at_dots():
    assert below("decoder.norm.weight", ("decoder",)) and below("decoder.norm.weight", "decoder.")
    assert not below("decoder_norm.weight", ("decoder", "norm")) and not below("pixel_decoder.x", ("decoder.",))


def test_a_parameter_under_two_names_trains_if_one_of_them_does():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.head = nn.Linear(2, 2)

        def peft_parts(self):
            return {"embeddings": ("head",)}

    model = Shared()
    freeze(model, "embeddings", True)
    assert model.a.weight.requires_grad


def test_counts_add_up_and_count_shared_parameters_once(make_toy):
    model = inject(make_toy(), [LoRA(rank=2), Adapter()], train="embeddings", train_label_embedding=False)
    counts = count(model)
    base = sum(parameter.numel() for parameter in make_toy().parameters())
    lora, adapters = 3 * (2 * 12 + 2 * 2 * 12), 3 * (2 * 6 + 1 + 6)
    assert (counts.base, counts.added) == (base, lora + adapters)
    assert counts.trainable == lora + adapters + 6 * 3 + 3
    assert counts.percent_trainable == pytest.approx(100 * counts.trainable / (base + lora + adapters))
    assert set(counts.by_component) == {"backbone", "head", "other"}
    assert counts.by_component["backbone"] == {"base": 4 * 6 + 6 + 12, "added": 0, "trainable": 0}
    assert counts.by_component["other"]["base"] == 18  # the label embedding, which components() leaves out
    with torch.device("meta"):
        twin = inject(make_toy(), [LoRA(rank=2), Adapter()], train="embeddings", train_label_embedding=False)
    assert count(twin) == counts


def test_frozen_parts_are_the_same_function_in_every_step(make_toy):
    model = inject(make_toy(), [LoRA(rank=1)], train="embeddings")
    model.train()
    eval_frozen(model)
    assert model.training and model.class_embed.training and model.decoder[0].dropout.training
    assert not model.backbone.training and not model.backbone[2].training
    x = torch.randn(4, 4)
    statistics = model.backbone[1].running_mean.clone()
    assert torch.equal(model.backbone(x), model.backbone(x)) and torch.equal(statistics, model.backbone[1].running_mean)


class LossOrPrediction(nn.Module):
    """A head as of an R-CNN: what it returns depends on its mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(4, 1, dropout=0.5)

    def forward(self, x):
        x = self.dropout(self.norm(x))
        x = self.attention(x, x, x)[0]
        return {"loss": x.mean()} if self.training else x


def test_a_frozen_head_of_a_foreign_model_still_gives_its_losses():
    model = inject(nn.Sequential(nn.Linear(4, 4), LossOrPrediction()), [LoRA(rank=1, targets=("0",))])
    model.train()
    eval_frozen(model)
    x = torch.randn(6, 4)
    first, second = model(x)["loss"], model(x)["loss"]
    assert torch.equal(first, second) and first.requires_grad
    assert int(model[1].norm.num_batches_tracked) == 0


def test_a_trainable_parameter_without_gradient_is_named(make_toy):
    model = inject(make_toy(), [LoRA(rank=1)], train="none")
    model.unused = nn.Linear(2, 2, bias=False)
    model(torch.randn(3, 4)).sum().backward()
    with pytest.raises(ConfigError, match="1 trainable parameters took no part in the loss: unused.weight. Remove"):
        check_gradients(model)
    del model.unused
    check_gradients(model)


# What a base of other classes leaves random.


def loaded_from(make_toy, source, train, labels=True):
    """A Toy of 3 classes adapted by LoRA, with what fits of a state dict, as fvcore's checkpointer loads it."""
    model = inject(make_toy(), [LoRA(rank=1)], train, labels)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: each for name, each in source.items() if each.shape == shapes[name]}, strict=False)
    return model


def test_a_frozen_head_of_other_classes_is_refused(make_toy):
    other = make_toy(classes=5).state_dict()
    with pytest.raises(CheckpointError, match=r"not bring 2 parameters .* 'none' .*: class_embed.weight \(3, 6\), cl") as error:
        check_frozen(loaded_from(make_toy, other, "none"))
    assert "learn: 'embeddings', 'decoder', 'full_head', 'all'." in str(error.value)
    for train in ("embeddings", "full_head", "all"):
        check_frozen(loaded_from(make_toy, other, train, labels=False))  # the label embedding may stay random
    check_frozen(loaded_from(make_toy, make_toy().state_dict(), "none"))


def test_a_base_may_come_in_parts_and_a_head_may_be_set_free_later(make_toy):
    whole = make_toy().state_dict()
    head = {name: tensor for name, tensor in whole.items() if name.startswith("class_embed")}
    model = loaded_from(make_toy, {name: whole[name] for name in whole.keys() - head.keys()}, "none")
    with pytest.raises(CheckpointError, match="class_embed.weight"):
        check_frozen(model)
    model.class_embed.requires_grad_(True)
    check_frozen(model)
    model.class_embed.requires_grad_(False)
    model.load_state_dict(head, strict=False)
    check_frozen(model)


def test_a_backbone_alone_leaves_the_rest_random(make_toy):
    backbone = {name: each for name, each in make_toy().state_dict().items() if name.startswith("backbone")}
    with pytest.raises(CheckpointError, match="and 15 more"):
        check_frozen(loaded_from(make_toy, backbone, "embeddings"))
    check_frozen(loaded_from(make_toy, backbone, "full_head"))
    check_frozen(inject(make_toy(), [LoRA(rank=1)]))  # nothing was loaded, which is said elsewhere


def test_a_parameter_is_brought_under_any_of_its_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    inject(model, [], "none")
    model.load_state_dict({"0.weight": torch.zeros(2, 2), "0.bias": torch.zeros(2), "1.bias": torch.zeros(2)}, strict=False)
    check_frozen(model)
