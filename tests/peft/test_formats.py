"""Round trips through Hugging Face peft itself, in both directions."""
import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.peft import (
    AdaLoRA, DoRA, LoHa, LoKr, LoRA, RankBudget, inject, load_delta, load_peft, regularization, save_delta, save_peft
)
from lowrank_d2.peft.trainable import added_names

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = ("fc1", "fc2", "conv", "point")
LINEAR = ("fc1", "fc2")
METHODS = {
    "lora": LoRA(4, 6, targets=TARGETS),
    "rslora": LoRA(4, 6, rslora=True, targets=TARGETS),
    "lora with patterns": LoRA(4, 6, targets=TARGETS, rank_pattern=(("fc2", 2),), alpha_pattern=(("conv", 1.5),)),
    "dora": DoRA(4, 6, targets=TARGETS),
    "adalora": AdaLoRA(4, 6, target_rank=2, targets=LINEAR),
    "loha": LoHa(4, 6, targets=TARGETS, rank_pattern=(("fc1", 3),)),
    "loha with cores": LoHa(4, 6, targets=TARGETS, effective_conv2d=True),
    "lokr": LoKr(2, 6, targets=TARGETS, alpha_pattern=(("conv", 1.5),)),
    "lokr in small factors": LoKr(2, 6, factor=4, decompose_both=True, targets=TARGETS),
    "lokr with cores": LoKr(1, 6, targets=TARGETS, effective_conv2d=True),
}
FC1 = "base_model.model.fc1."
every_method = pytest.mark.parametrize("kind", METHODS)


class Plain(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)
        self.conv, self.point = nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.Conv2d(6, 4, 1, bias=False)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x, pictures):
        x = self.fc2(self.fc1(x).relu())
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.norm(self.head(x + q * k + v)), self.point(self.conv(pictures))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.attn(x, x, x)[0]
        return self.other(x, x, x)[0]


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(7, 16, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)


def trained(model, method, train="none", seed=1):
    """Adapted, with values in every added tensor."""
    inject(model, [method], train, train_label_embedding=False).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(added_names(model)):
            tensor = model.state_dict()[name]
            if "magnitude" in name:
                tensor.mul_(1.2)
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
    return model


def same(ours, theirs, exact=False):
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-5}))


def through_peft(base, folder, again):
    """Reads a folder with peft, writes it with peft to another one; returns peft's model."""
    model = peft.PeftModel.from_pretrained(base, folder, is_trainable=False).eval()
    model.save_pretrained(again)
    return model


@every_method
def test_a_round_trip_through_peft_reproduces_every_tensor_and_output(inputs, tmp_path, kind):
    model = trained(Plain(), METHODS[kind])
    save_peft(model, tmp_path / "ours")
    theirs = through_peft(Plain(), tmp_path / "ours", tmp_path / "theirs")
    same(model(*inputs), theirs(*inputs))
    assert added_names(model) and load_file(tmp_path / "ours" / "adapter_model.safetensors").keys() == load_file(
        tmp_path / "theirs" / "adapter_model.safetensors").keys()
    back = load_peft(Plain(), tmp_path / "theirs").eval()
    same(back(*inputs), model(*inputs), exact=True)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert {name for name, p in back.named_parameters() if p.requires_grad} == added_names(back) - {
        name for name in added_names(back) if name.endswith("lora_kept")}


@every_method
def test_the_same_weights_give_the_same_gradients(inputs, tmp_path, kind):
    model = trained(Plain(), METHODS[kind])
    save_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(Plain(), tmp_path, is_trainable=True).eval()
    pictures = inputs[1].clone().requires_grad_(), inputs[1].clone().requires_grad_()
    for net, picture in zip((model, theirs), pictures):
        sum(y.square().sum() for y in net(inputs[0], picture)).backward()
    found = {}
    for name, parameter in theirs.named_parameters():
        found[name.replace("base_model.model.", "").replace(".default", "").replace(".weight", "")] = parameter.grad
    compared = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or (kind == "loha with cores" and name.startswith("conv")):
            continue  # peft's own backward pass for cores is not the derivative of its outputs
        ours, want = parameter.grad, found[name].reshape(parameter.shape)
        assert (ours - want).abs().max() <= 1e-5 * want.abs().max(), name
        compared += 1
    assert compared >= 4
    ours, want = (picture.grad for picture in pictures)
    assert (ours - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("rows", ["q", "v", "q,v", "q,k,v"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "adalora", "loha"])
def test_slices_of_a_packed_projection_become_one_stack(inputs, tmp_path, kind, rows):
    kinds = {"lora": LoRA, "dora": DoRA, "loha": LoHa, "rslora": LoRA, "adalora": AdaLoRA}
    options = {"rslora": {"rslora": True}, "adalora": {"target_rank": 1}}.get(kind, {})
    model = trained(Plain(), kinds[kind](2, 3, targets=(f"qkv[{rows}]", "fc1"), **options))
    save_peft(model, tmp_path / "ours")
    theirs = through_peft(Plain(), tmp_path / "ours", tmp_path / "theirs")
    same(model(*inputs), theirs(*inputs))
    same(load_peft(Plain(), tmp_path / "theirs").eval()(*inputs), model(*inputs))


@pytest.mark.parametrize(
    "targets",
    [("attn",), ("attn[q,v]", "other.out_proj"), ("attn[k]", "attn.out_proj"), ("other", "out_proj")],
    ids=str,
)
@pytest.mark.parametrize("rslora", [False, True])
def test_torch_s_attention(tmp_path, targets, rslora):
    model, x = trained(Attentive(), LoRA(2, 3, rslora=rslora, targets=targets)), torch.randn(2, 5, 8)
    save_peft(model, tmp_path / "ours")
    theirs = through_peft(Attentive(), tmp_path / "ours", tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-5)
    back = load_peft(Attentive(), tmp_path / "theirs").eval()
    torch.testing.assert_close(back(x), model(x), rtol=1e-5, atol=1e-5)


def test_pruned_triplets_survive(inputs, tmp_path):
    model = trained(Plain(), AdaLoRA(6, 8, target_rank=3, tinit=1, tfinal=1, targets=("fc1", "fc2", "qkv[q,v]")))
    model.train()
    budget = RankBudget(model, 6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        (sum(y.square().sum() for y in model(*inputs)) + regularization(model)["loss_orthogonality"]).backward()
        optimizer.step()
        budget.step()
    model.eval()
    kept = sum(int(tensor.sum()) for name, tensor in model.state_dict().items() if "kept" in name)
    assert kept == 3 * 4
    save_peft(model, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert sum(sum(pattern) for pattern in config["rank_pattern"].values()) == kept and config["init_r"] == 12
    same(through_peft(twin_base(model), tmp_path / "ours", tmp_path / "theirs")(*inputs), model(*inputs))
    same(load_peft(twin_base(model), tmp_path / "theirs").eval()(*inputs), model(*inputs))


def twin_base(model):
    """A plain model with the base weights (and the moved statistics) inside an adapted one."""
    base = Plain()
    added = added_names(model)
    base.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name not in added})
    return base


def test_trained_modules_of_the_base_go_with_it(inputs, tmp_path):
    model = trained(Plain(), METHODS["lora"])
    for part in (model.head, model.norm):
        part.requires_grad_(True)
        nn.init.normal_(part.bias)
    model.norm.running_mean.fill_(0.3)
    save_peft(model, tmp_path / "ours", base_model="somewhere/base")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["head", "norm"] and config["base_model_name_or_path"] == "somewhere/base"
    theirs = through_peft(Plain(), tmp_path / "ours", tmp_path / "theirs")
    same(model(*inputs), theirs(*inputs))
    back = load_peft(Plain(), tmp_path / "theirs").eval()
    same(back(*inputs), model(*inputs), exact=True)
    save_peft(back, tmp_path / "again")
    same(peft.PeftModel.from_pretrained(Plain(), tmp_path / "again").eval()(*inputs), theirs(*inputs), exact=True)
    save_delta(back, tmp_path / "delta.safetensors", class_names=[])
    fresh = inject(Plain(), [METHODS["lora"]])
    load_delta(fresh, tmp_path / "delta.safetensors")
    same(fresh.eval()(*inputs), back(*inputs), exact=True)


def test_an_adapter_trained_by_peft_is_taken_over(inputs, tmp_path):
    patterns = {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"^qkv": 7}}
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=r".*fc\d|qkv", **patterns)
    theirs = peft.get_peft_model(Plain(), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path)
    model = load_peft(Plain(), tmp_path).eval()
    same(model(*inputs), theirs(*inputs))
    assert (model.fc1.method.rank, model.fc1.method.alpha) == (2, 5.0)
    assert (model.fc2.method.rank, model.qkv.method.alpha) == (3, 7.0)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c, t: t.pop(f"{FC1}lora_B.weight"), f"{FC1}lora_B.weight is missing"),
        (lambda c, t: [t.pop(name) for name in list(t) if "fc1" in name], "has no tensors for fc1"),
        (lambda c, t: t.update({f"{FC1}lora_C.weight": torch.ones(1)}), "fc1.lora_C.weight belongs to nothing"),
        (lambda c, t: t.update({"base_model.model.head.weight": torch.ones(1)}), "head.weight belongs to nothing"),
        (lambda c, t: t.update({"base_model.model.nose.lora_A.weight": torch.ones(1)}), "has tensors for nose, which"),
        (lambda c, t: t.update({"fc1.weight": torch.ones(1)}), "fc1.weight is none of peft's"),
        (lambda c, t: t.update({f"{FC1}lora_B.weight": torch.ones(24, 5)}), r"is \(24, 5\), this model needs \(24, 4"),
        (lambda c, t: t[f"{FC1}lora_B.weight"].fill_(float("nan")), "holds NaN or Inf"),
        (lambda c, t: c.update(target_modules=["fc1", "fc2", "conv"]), "has tensors but no target_modules for point"),
        (lambda c, t: c.update(r=5), r"is \(4, \d+.*this model needs \(5, \d+"),
        (lambda c, t: c.update(r=0), "RANK is 0"),
        (lambda c, t: c.update(bias="all"), "bias is 'all', which has no counterpart here"),
        (lambda c, t: [t.update({name.replace("lora_", "lora_embedding_"): t.pop(name)}) for name in list(t)],
         "no tensors for a Linear, .* base_model.model.conv.lora_embedding_A.weight is none"),
        (lambda c, t: c.update(init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4', so it belongs"),
        (lambda c, t: c.update(peft_type="VERA"), "peft_type is 'VERA'. Known are LORA"),
        (lambda c, t: c.update(modules_to_save=["tail"]), "modules_to_save names 'tail', which is no module"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, words):
    save_peft(trained(Plain(), METHODS["lora"]), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = Plain()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DeltaError, match=words):
        load_peft(model, tmp_path)
    assert before.keys() == model.state_dict().keys() and not added_names(model)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(DeltaError, match="There is no .*adapter_config.json"):
        load_peft(Plain(), tmp_path)
    save_peft(trained(Plain(), METHODS["lora"]), tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DeltaError, match="cannot be read"):
        load_peft(Plain(), tmp_path)


def test_what_peft_cannot_say_is_not_written(tmp_path):
    class Normed(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).relu()

    def refused(model, methods, words, train="none"):
        with pytest.raises(ConfigError, match=words):
            save_peft(inject(model, methods, train), tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    conv = [LoRA(2, targets=("0",))]
    refused(nn.Sequential(Normed(2, 2, 3)), conv, "0 cannot be exchanged with peft: it is a Normed")
    refused(nn.Sequential(nn.Conv2d(2, 2, 3, dilation=2)), conv, "peft forgets the dilation")
    refused(nn.Sequential(nn.Conv2d(2, 2, 3, padding_mode="circular")), conv, "peft pads with zeros, .* by 'circular'")
    refused(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), conv, "knows no 2 groups")
    refused(Attentive(), [DoRA(2, targets=("attn",))], "MultiheadAttention by LoRA alone")
    refused(Plain(), [LoKr(2, targets=("qkv[q]",))], "qkv: peft cannot adapt slices of a projection with lokr")
    two = [LoRA(2, targets=("fc1",)), LoHa(2, targets=("fc2",))]
    refused(Plain(), two, r"one low-rank method, this Plain has \['lora', 'loha'\]")
    refused(Plain(), [LoRA(2, targets=("fc1",))], "fc1.weight trains itself and has a method too", train="all")
    with pytest.raises(ConfigError, match="this Plain has none"):
        save_peft(Plain(), tmp_path)
