"""What holds for every low-rank method alike; what is special about one stands in its own file."""
import copy
import pickle

import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import (
    AdaLoRA, Adapter, DeltaSet, DoRA, LoHa, LoKr, LoRA, check_gradients, count, inject, load_delta, merge, save_delta
)
from lowrank_d2.peft.adapted import adapted_modules
from lowrank_d2.peft.trainable import added_names

KINDS = {
    "lora": lambda **options: LoRA(2, 3, **options),
    "rslora": lambda **options: LoRA(2, 3, rslora=True, **options),
    "dora": lambda **options: DoRA(2, 3, **options),
    "adalora": lambda **options: AdaLoRA(2, 3, target_rank=1, **options),
    "loha": lambda **options: LoHa(2, 3, **options),
    "lokr": lambda **options: LoKr(1, 3, **options),
}
every_method = pytest.mark.parametrize("kind", KINDS)


class Convolution(nn.Conv2d):
    """With a norm and an activation inside, like Detectron2's."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.norm = nn.GroupNorm(2, self.out_channels)

    def forward(self, x):
        return self.norm(nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)).relu()


def randomize(model, seed=0):
    """Gives every added tensor values that make a difference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(added_names(model)):
            tensor = model.state_dict()[name]
            if "magnitude" in name:
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return model


def convolutions(**options):
    torch.manual_seed(0)
    return nn.Sequential(Convolution(4, 6, 3, padding=1, **options), nn.Conv2d(6, 8, 1, stride=2, bias=False))


@every_method
def test_the_start_is_the_base(make_toy, images, kind):
    plain, model = make_toy().eval(), inject(make_toy(), [KINDS[kind]()]).eval()
    torch.testing.assert_close(model(images), plain(images), rtol=1e-5, atol=1e-6)
    pictures, base = torch.randn(2, 4, 6, 6), convolutions()
    want = base(pictures)
    torch.testing.assert_close(inject(base, [KINDS[kind](targets=("0", "1"))])(pictures), want, rtol=1e-5, atol=1e-5)


@every_method
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"dilation": 2, "stride": 2, "padding_mode": "circular"}], ids=str
)
def test_a_convolution_acts_on_the_weight_before_its_norm(kind, options):
    model = randomize(inject(convolutions(**options), [KINDS[kind](targets=("0", "1"))]))
    plain = convolutions(**options)
    plain.load_state_dict(merge(model))
    pictures = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(model(pictures), plain(pictures))
    assert not torch.equal(plain[0].weight, model[0].stored_weight)
    model(pictures).square().sum().backward()
    check_gradients(model)


@every_method
def test_a_delta_saves_loads_merges_and_switches(make_toy, train_steps, images, tmp_path, kind):
    base = make_toy(seed=3).state_dict()
    deltas = DeltaSet(inject(make_toy(base=base), [KINDS[kind]()], "embeddings").eval())
    wanted = {}
    for n in (1, 2):
        methods = [KINDS[kind](), Adapter()] if n == 1 else [KINDS[kind]()]
        model = train_steps(randomize(inject(make_toy(base=base), methods, "embeddings"), n))
        if n == 1:
            path = tmp_path / "with_adapters.safetensors"
            save_delta(model, path, class_names=list("abc"))
            twin = inject(make_toy(base=base), [KINDS[kind](), Adapter()], "embeddings").eval()
            load_delta(twin, path)
            assert torch.equal(twin(images), model(images))
            model = train_steps(randomize(inject(make_toy(base=base), [KINDS[kind]()], "embeddings"), n))
        path = tmp_path / f"{n}.safetensors"
        save_delta(model, path, class_names=list("abc"))
        deltas.add(str(n), path)
        wanted[str(n)] = model(images)
        plain = make_toy(seed=9).eval()
        plain.load_state_dict(merge(model))
        torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)
    for name in ("1", "2", "1"):
        deltas.switch(name)
        assert torch.equal(deltas.model(images), wanted[name])


@every_method
def test_every_tensor_trains_and_only_those(make_toy, train_steps, kind):
    model = inject(make_toy(), [KINDS[kind]()], "none", train_label_embedding=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, n=3, lr=1.0)
    check_gradients(model)
    for name, tensor in model.state_dict().items():
        trains = name in added_names(model) and tensor.is_floating_point()
        assert torch.equal(tensor, before[name]) != trains, name


@every_method
def test_thirds_of_a_packed_projection(kind):
    qkv = nn.Linear(8, 24)
    model = randomize(inject(nn.Sequential(qkv), [KINDS[kind](targets=("0[q,v]",))]))
    change = (qkv.weight - qkv.stored_weight).detach()
    assert not change[8:16].any() and change[:8].abs().sum() > 0 and change[16:].abs().sum() > 0
    x = torch.randn(5, 8)
    torch.testing.assert_close(model(x), nn.functional.linear(x, qkv.weight, qkv.bias))


@every_method
@pytest.mark.parametrize("target", ["attn", "attn[q,v]"])
def test_the_packed_projection_of_torch_s_attention(kind, target):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)}).eval()
    x = torch.randn(2, 3, 8)
    before = model.attn(x, x, x)[0]
    randomize(inject(model, [KINDS[kind](targets=(target, "attn.out_proj"))]))
    after = model.attn(x, x, x)[0]
    plain = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, batch_first=True)}).eval()
    plain.load_state_dict(merge(model))
    torch.testing.assert_close(plain.attn(x, x, x)[0], after)
    assert (after - before).abs().max() > 0.01
    after.square().sum().backward()
    check_gradients(model)
    with torch.no_grad():  # torch's fused path
        torch.testing.assert_close(model.attn(x, x, x)[0], after)


@every_method
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_compute_the_same(kind, copied):
    model = randomize(inject(convolutions(), [KINDS[kind](targets=("0", "1"))]))
    twin, pictures = copied(model), torch.randn(1, 4, 6, 6)
    assert torch.equal(twin(pictures), model(pictures)) and added_names(twin) == added_names(model)


@every_method
def test_patterns_give_a_target_its_own_rank_and_alpha(make_toy, kind):
    ranks, alphas = (("re:.*0.value_proj", 3), ("value_proj", 1)), (("1.value_proj", 9),)
    model = inject(make_toy(), [KINDS[kind](rank_pattern=ranks, alpha_pattern=alphas)])
    found = {name: (module.method.rank, module.method.alpha) for name, module in adapted_modules(model)}
    rank = 1 if kind == "lokr" else 2
    assert found["decoder.0.value_proj"] == (3, 3.0) and found["decoder.1.value_proj"] == (1, 9.0)
    assert found["pixel_decoder.value_proj"] == (1, 3.0) and found["decoder.0.qkv"] == (rank, 3.0)


def test_a_pattern_that_matches_no_target_is_an_error(make_toy):
    with pytest.raises(ConfigError, match="LORA.RANK_PATTERN: 'class_embed' matches none of the targets: pixel_dec"):
        inject(make_toy(), [LoRA(rank_pattern=(("class_embed", 2),))])
    with pytest.raises(ConfigError, match=r"ALPHA_PATTERN is \[1\]. Use a list of pairs"):
        LoRA(alpha_pattern=[1])
    with pytest.raises(ConfigError, match=r"RANK_PATTERN\[qkv\] is 0. Use an integer"):
        LoRA(rank_pattern=[["qkv", 0]])


def test_methods_may_share_a_model_but_not_a_module(make_toy):
    model = inject(make_toy(), [LoRA(targets=("value_proj",)), LoKr(targets=("qkv",))])
    assert {name.rsplit(".", 1)[1] for name in added_names(model)} == {"lora_A", "lora_B", "lokr_w1", "lokr_w2"}
    model = make_toy()
    with pytest.raises(ConfigError, match="LOKR.TARGETS: pixel_decoder.value_proj is a target of 'lora' too"):
        inject(model, [LoRA(), LoKr()])
    assert not added_names(model)


@pytest.mark.parametrize("kind", ["lora", "dora", "adalora"])
def test_input_dropout_acts_on_the_change_alone(kind):
    model = randomize(inject(convolutions(groups=2), [KINDS[kind](dropout=0.5, targets=("0", "1"))]))
    linear = randomize(inject(nn.Sequential(nn.Linear(8, 6)), [KINDS[kind](dropout=0.5, targets=("0",))]))
    pictures, x = torch.randn(2, 4, 6, 6), torch.randn(3, 8)
    torch.manual_seed(4)
    got = linear.train()(x)
    torch.manual_seed(4)
    dropped = nn.functional.dropout(x, 0.5)
    module = linear[0]
    want = nn.functional.linear(x, module.stored_weight, module.bias)
    want = want + dropped @ (module.weight - module.stored_weight).t()
    torch.testing.assert_close(got, want)
    torch.manual_seed(4)
    got = nn.Sequential(model[0]).train()(pictures)
    torch.manual_seed(4)
    dropped, module = nn.functional.dropout(pictures, 0.5), model[0]
    raw = module._conv_forward(pictures, module.stored_weight, module.bias)
    raw = raw + module._conv_forward(dropped, module.weight - module.stored_weight, None)
    torch.testing.assert_close(got, module.norm(raw).relu())
    assert torch.equal(model.eval()(pictures), model(pictures))


def test_dropout_where_the_input_is_hidden_is_refused():
    for target in ("0", "out_proj"):
        with pytest.raises(ConfigError, match=f"'{target}' belongs to torch's MultiheadAttention.*0.1 could not act"):
            inject(nn.Sequential(nn.MultiheadAttention(8, 2)), [LoRA(dropout=0.1, targets=(target,))])


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_rank_dropout_leaves_whole_outputs_of_the_change_out(kind):
    options = {"rank_dropout": 0.5, "targets": ("0",)}
    for rescaled in (False, True) if kind == "lokr" else (True,):
        options = {**options, **({"rank_dropout_scale": rescaled} if kind == "lokr" else {})}
        model = randomize(inject(nn.Sequential(nn.Linear(8, 20)), [KINDS[kind](**options)]))
        linear, x = model[0], torch.randn(7, 8)
        whole = (x @ (linear.weight - linear.stored_weight).t()).detach()
        noisy = (model.train()(x) - nn.functional.linear(x, linear.stored_weight, linear.bias)).detach()
        kept = noisy.abs().sum(0) > 1e-5
        assert 0 < kept.sum() < 20
        factor = 20 / kept.sum() if rescaled else 1
        torch.testing.assert_close(noisy[:, kept], factor * whole[:, kept], rtol=1e-4, atol=1e-5)
        assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_skipped_module_is_the_base_and_its_parameters_keep_a_gradient(kind):
    torch.manual_seed(0)
    model = randomize(inject(nn.Sequential(nn.Linear(8, 6)), [KINDS[kind](module_dropout=0.5, targets=("0",))])).train()
    linear, x = model[0], torch.randn(3, 8)
    base, adapted = nn.functional.linear(x, linear.stored_weight, linear.bias), model.eval()(x)
    model.train()
    seen = [model(x) for _ in range(30)]
    skipped = [torch.equal(y, base) for y in seen]
    assert 5 < sum(skipped) < 25
    assert all(same or torch.allclose(y, adapted, atol=1e-5) for y, same in zip(seen, skipped))
    seen[skipped.index(True)].sum().backward()
    check_gradients(model)
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.requires_grad)


def test_counts_are_those_of_the_formulas():
    def added(method, module=None):
        return count(inject(nn.Sequential(module or nn.Linear(384, 384)), [method])).added

    where = {"targets": ("0",)}
    assert added(LoRA(16, **where)) == 12_288 and 24 * 12_288 == 294_912
    assert added(DoRA(16, **where)) == 12_288 + 384
    assert added(AdaLoRA(24, target_rank=16, **where)) == 24 * 769
    assert added(LoHa(12, **where)) == 18_432 and 24 * 18_432 == 442_368
    assert added(LoKr(16, factor=4, **where)) == 3_088 and 24 * 3_088 == 74_112
    assert added(LoRA(2, **where), nn.Conv2d(4, 6, 3)) == 2 * (4 * 9 + 6)
