import pytest
import torch

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import Adapter, inject


def build(width=8, **options):
    torch.manual_seed(0)
    return Adapter(**options).build(width, like=torch.zeros(1))


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("residual", ["kappa", "lambda", "kappa+lambda"])
def test_the_formula(residual, repeats):
    module = build(repeats=repeats, residual=residual, init="xavier")
    attended, stream = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    rho = {"kappa": stream, "lambda": attended, "kappa+lambda": stream + attended}[residual]
    x = attended
    for layer in module.layers:
        hidden = (x @ layer.down.weight.t() + layer.down.bias).clamp(min=0)
        x = hidden @ layer.up.weight.t() + layer.up.bias + rho
    torch.testing.assert_close(module(attended, stream), x)


def test_tensors_have_the_agreed_names_and_shapes():
    shapes = {name: tuple(tensor.shape) for name, tensor in build(10, repeats=2, reduction=4).state_dict().items()}
    one = {"down.weight": (2, 10), "down.bias": (2,), "up.weight": (10, 2), "up.bias": (10,)}
    assert shapes == {f"layers.{i}.{name}": shape for i in range(2) for name, shape in one.items()}


def test_the_bottleneck_is_never_empty():
    assert build(3, reduction=8).layers[0].down.out_features == 1


def test_initial_values():
    bert, xavier = build(256, reduction=4), build(256, reduction=4, init="xavier", residual="lambda")
    for module, std in ((bert, 0.02), (xavier, (2 / (256 + 64)) ** 0.5)):
        for linear in (module.layers[0].down, module.layers[0].up):
            assert linear.weight.std().item() == pytest.approx(std, rel=0.03) and not linear.bias.any()
    near = build(256, reduction=4, residual="lambda").layers[0]
    assert near.down.weight.std().item() == pytest.approx(0.02, rel=0.03) and not near.up.weight.any()
    limit = (6 / (256 + 64)) ** 0.5
    assert xavier.layers[0].up.weight.abs().max() <= limit < 10 * bert.layers[0].up.weight.std()


@pytest.mark.parametrize("repeats", [1, 2])
def test_lambda_starts_as_the_model_was_and_learns_from_there(make_toy, images, repeats):
    plain, model = make_toy().eval(), make_toy().eval()
    inject(model, [Adapter(repeats=repeats, residual="lambda", reduction=1)])
    assert torch.equal(model(images), plain(images))
    added = [p for name, p in model.named_parameters() if ".adapter." in name]
    optimizer = torch.optim.Adam(added, lr=1e-3)
    for _ in range(2 * repeats):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in added if parameter.dim() > 1)
    assert model(images).square().sum() < plain(images).square().sum()


def test_every_slot_is_filled_and_called(make_toy, images):
    plain, model = make_toy().eval(), make_toy().eval()
    base = model.state_dict()
    inject(model, [Adapter(repeats=2, residual="lambda", init="xavier")])
    added = [name for name in model.state_dict() if name not in base]
    assert len(added) == 3 * 2 * 4 and added[0] == "pixel_decoder.adapter.layers.0.down.weight"
    assert 0 < (model(images) - plain(images)).abs().max() < 1
    for parameter in (p for name, p in model.named_parameters() if name in added):
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(model(images), plain(images))  # and with zeros is the base


def test_kappa_plus_lambda_counts_the_stream_twice_from_the_start(make_toy):
    block = make_toy().pixel_decoder.eval()
    x = torch.randn(1, 2, 6)
    attended = []
    block.value_proj.register_forward_hook(lambda module, inputs, output: attended.append(output))
    inject(block, [Adapter(residual="kappa+lambda")])
    for parameter in block.adapter.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(block(x), block.norm(2 * x + attended[0]))


def test_a_model_without_slots_says_so():
    with pytest.raises(ConfigError, match="Linear has no place for adapters"):
        inject(torch.nn.Linear(2, 2), [Adapter()])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"residual": "kapa"}, r"RESIDUAL is 'kapa'. Use one of 'kappa', 'lambda', 'kappa\+lambda' \(nearest: 'kappa'"),
        ({"init": "Bert"}, r"INIT is 'Bert'. Use one of 'bert', 'xavier' \(nearest: 'bert'\)"),
        ({"repeats": 0}, "REPEATS is 0"),
        ({"reduction": -4}, "REDUCTION is -4. Use an integer of 1 or more"),
    ],
)
def test_a_wrong_value_names_its_key_and_the_right_spelling(options, words):
    with pytest.raises(ConfigError, match=f"MODEL.PEFT.ADAPTER.{words}"):
        Adapter(**options)
