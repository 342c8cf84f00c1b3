import copy

import pytest
import torch
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.peft import AdaLoRA, LoRA, RankBudget, count, inject, load_delta, regularization, save_delta
from lowrank_d2.peft.adalora import budget_at

NAMES = ("0", "2")
OPTIONS = {"target_rank": 8, "tinit": 2, "tfinal": 2, "beta1": 0.9, "beta2": 0.8, "targets": NAMES}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 6))


def data(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 10, generator=generator), torch.randn(16, 6, generator=generator)


def train(model, budget, optimizer, first, last, seen=None):
    """Steps first..last (the first step of a training is 1); appends the kept triplets to `seen`."""
    for step in range(first, last + 1):
        optimizer.zero_grad()
        x, y = data(step)
        ((model(x) - y).square().mean() + sum(regularization(model).values())).backward()
        optimizer.step()
        budget.step()
        if seen is not None:
            seen.append([module.lora_E.detach().clone() for module in (model[0], model[2])])


def adamw(model, lr=0.05):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


def alive(values):
    return sum(int((value != 0).sum()) for value in values)


def test_the_budget_follows_its_formula():
    trace = [budget_at(step, 24, 16, 2, 8) for step in range(10)]
    assert trace == [24, 24, 24, 20, 18, 17, 16, 16, 16, 16]
    assert [budget_at(step, 10, 10, 1, 5) for step in range(7)] == [10] * 7


def test_training_keeps_as_many_triplets_as_the_budget_says():
    model = inject(net(), [AdaLoRA(12, **OPTIONS)])
    budget, seen = RankBudget(model, 10), []
    train(model, budget, adamw(model), 1, 10, seen)
    assert [alive(values) for values in seen] == [24, 24, 20, 18, 17, 16, 16, 16, 16, 16]
    assert budget.triplets == 16 and budget.done == 10
    assert [int(module.lora_kept.sum()) for module in (model[0], model[2])] == [alive([v]) for v in seen[-1]]
    assert torch.equal(seen[-1][0] != 0, seen[7][0] != 0)  # the pattern stands from step 8 on
    change = model[0].weight - model[0].stored_weight
    assert torch.linalg.matrix_rank(change, rtol=1e-5) == min(alive([model[0].lora_E]), 10)


def test_every_step_equals_peft_s():
    peft = pytest.importorskip("peft")
    ours = inject(net(), [AdaLoRA(12, 5, orthogonality=0.3, delta_t=2, **OPTIONS)])
    theirs = peft.get_peft_model(net(), peft.AdaLoraConfig(
        init_r=12, target_r=8, lora_alpha=5, tinit=2, tfinal=2, deltaT=2, beta1=0.9, beta2=0.8, total_step=10,
        target_modules=list(NAMES)))
    twin = theirs.base_model.model
    with torch.no_grad():
        for name in NAMES:
            for tensor in ("lora_A", "lora_E", "lora_B"):
                getattr(twin.get_submodule(name), tensor)["default"].copy_(getattr(ours.get_submodule(name), tensor))
    budget, optimizer = RankBudget(ours, 10), adamw(ours)
    their_optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.05)
    for step in range(1, 11):
        seen = []
        train(ours, budget, optimizer, step, step, seen)
        their_optimizer.zero_grad()
        x, y = data(step)
        penalty = [
            (rows @ rows.t() - torch.eye(12)).norm()
            for name in NAMES
            for rows in (twin.get_submodule(name).lora_A["default"], twin.get_submodule(name).lora_B["default"].t())
        ]
        ((twin(x) - y).square().mean() + 0.3 * sum(penalty) / len(penalty)).backward()
        their_optimizer.step()
        theirs.base_model.update_and_allocate(step)
        for name, value in zip(NAMES, seen[0]):
            want = twin.get_submodule(name).lora_E["default"]
            assert torch.equal(value == 0, want == 0), step
            torch.testing.assert_close(value, want, rtol=1e-3, atol=1e-5)


def test_the_orthogonality_loss_is_the_mean_distance_and_trains():
    model = inject(net(), [AdaLoRA(3, target_rank=2, orthogonality=0.5, targets=NAMES)])
    loss = regularization(model)
    want = [
        (rows @ rows.t() - torch.eye(3)).square().sum().sqrt()
        for module in (model[0], model[2])
        for rows in (module.lora_A, module.lora_B.t())
    ]
    torch.testing.assert_close(loss["loss_orthogonality"], 0.5 * sum(want) / 4)
    before = loss["loss_orthogonality"].item()
    optimizer = adamw(model)
    for _ in range(40):
        optimizer.zero_grad()
        regularization(model)["loss_orthogonality"].backward()
        optimizer.step()
    assert regularization(model)["loss_orthogonality"].item() < before / 4
    assert regularization(inject(net(), [LoRA(2, targets=("0",))])) == {}


def test_a_start_at_the_target_keeps_everything():
    model = inject(net(), [AdaLoRA(8, **OPTIONS)])
    budget, seen = RankBudget(model, 10), []
    train(model, budget, adamw(model), 1, 10, seen)
    assert [alive(values) for values in seen] == [16] * 10 and model[0].lora_kept.all()


@pytest.mark.parametrize("cut", [1, 5, 8, 9])
def test_a_continued_training_equals_an_uninterrupted_one(tmp_path, cut):
    def start():
        model = inject(net(), [AdaLoRA(12, **OPTIONS)])
        return model, RankBudget(model, 10), adamw(model)

    model, budget, optimizer = start()
    train(model, budget, optimizer, 1, 10)
    first, first_budget, first_optimizer = start()
    train(first, first_budget, first_optimizer, 1, cut)
    torch.save([first.state_dict(), first_budget.state_dict(), first_optimizer.state_dict()], tmp_path / "state.pth")
    second, second_budget, second_optimizer = start()
    saved = torch.load(tmp_path / "state.pth", weights_only=True)
    for part, state in zip((second, second_budget, second_optimizer), saved):
        part.load_state_dict(state)
    train(second, second_budget, second_optimizer, cut + 1, 10)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in second.state_dict().items())


def test_the_pattern_survives_a_delta(tmp_path):
    model = inject(net(), [AdaLoRA(12, **OPTIONS)])
    train(model, RankBudget(model, 10), adamw(model), 1, 10)
    save_delta(model, tmp_path / "d.safetensors", class_names=["a"])
    other = inject(net(), [AdaLoRA(12, **{**OPTIONS, "beta1": 0.5})])
    load_delta(other, tmp_path / "d.safetensors")
    x = data(0)[0]
    assert torch.equal(other(x), model(x)) and torch.equal(other[0].lora_kept, model[0].lora_kept)
    assert not other[2].lora_kept.all() or not other[0].lora_kept.all()


def test_slices_are_matrices_of_their_own():
    model = inject(nn.Sequential(nn.Linear(9, 12)), [AdaLoRA(4, target_rank=2, targets=("0[q,v]",), tinit=0, tfinal=1)])
    budget, optimizer = RankBudget(model, 3), adamw(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 9)).square().sum().backward()
        optimizer.step()
        budget.step()
    assert int(model[0].lora_kept_q.sum() + model[0].lora_kept_v.sum()) == 4
    assert len(regularization(model)) == 1


def test_shares_of_the_training_and_counts():
    method = AdaLoRA(24, target_rank=16, tinit=0.2, tfinal=0.4)
    assert method.steps(920) == (184, 920 - 368)
    two = nn.Sequential(nn.Linear(384, 384), nn.Linear(384, 384))
    model = inject(two, [AdaLoRA(24, target_rank=16, targets=("0", "1"))])
    assert count(model).added == 2 * 18_456 and count(model).added_after_budget == 2 * 295_296 // 24


def test_a_step_that_was_not_finite_is_not_observed():
    model = inject(net(), [AdaLoRA(12, **OPTIONS)])
    budget, optimizer = RankBudget(model, 10), adamw(model)
    train(model, budget, optimizer, 1, 1)
    before = copy.deepcopy(budget.state_dict())
    model[0].lora_A.grad.fill_(float("inf"))
    budget.step()
    state = budget.state_dict()
    assert state["done"] == 2 and torch.equal(state["importance"]["0.lora_A"], before["importance"]["0.lora_A"])
    assert not torch.equal(state["importance"]["2.lora_A"], before["importance"]["2.lora_A"])


def test_mistakes_are_named():
    wrong = {"beta1": 1, "delta_t": 0, "tinit": -1, "orthogonality": "x", "total_steps": 0.5}
    for option, value in wrong.items():
        with pytest.raises(ConfigError, match=f"MODEL.PEFT.ADALORA.{option.upper()} is {value!r}"):
            AdaLoRA(**{option: value})
    model = inject(net(), [AdaLoRA(12, **OPTIONS)])
    with pytest.raises(ConfigError, match="Of 4 optimizer steps, .*TINIT keeps the first 2 and .*TFINAL the last 2"):
        RankBudget(model, 4)
    with pytest.raises(ConfigError, match="has no AdaLoRA"):
        RankBudget(net(), 10)
    with pytest.raises(ConfigError, match="0.lora_A took no part in the loss"):
        RankBudget(model, 10).step()
    low = inject(net(), [AdaLoRA(8, rank_pattern=(("0", 2),), targets=NAMES, target_rank=8)])
    with pytest.raises(ConfigError, match="TARGET_RANK 8 makes 16 triplets in 2 matrices, but .* start with 10"):
        RankBudget(low, 100)
