"""Embeddings of the classes: templates, what is kept and for how long, and an encoder that leaves the memory."""
import copy

import pytest
import torch
from torch import nn

from lowrank_d2.layers.draws import Draws, RecordingDraws, ReplayDraws
from projects.SEEM.tests.models import TEMPLATES, toy_tokens
from seem import class_text
from seem.class_text import ClassText
from seem.text_encoder import TextEncoder, normalised


@pytest.fixture
def make_text():
    """make_text(frozen=True, ...) -> a small ClassText."""

    def make(frozen=True, seed=0, **options):
        torch.manual_seed(seed)
        encoder = TextEncoder(
            vocabulary_size=30, context_length=9, width=16, num_heads=2, num_layers=2, output_dim=20
        )
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=0.3)
        return ClassText(encoder, toy_tokens(3), **options).requires_grad_(not frozen)

    return make


def chosen(*templates):
    return ReplayDraws({"text/templates": list(templates)})


def test_what_stands_behind_the_end_changes_nothing(make_text):
    encoder = make_text().encoder
    tokens = toy_tokens(3).flatten(0, 1)
    ends = tokens.argmax(-1)
    whole = encoder(tokens)[torch.arange(len(tokens)), ends] @ encoder.projection
    torch.testing.assert_close(encoder.embed(tokens), whole)
    torch.testing.assert_close(encoder.embed_many(tokens), whole)
    assert len(ends.unique()) > 3


def test_every_piece_returns_to_its_place(make_text, monkeypatch):
    encoder = make_text().encoder
    tokens = toy_tokens(3).flatten(0, 1)
    whole = encoder.embed_many(tokens)
    monkeypatch.setattr("seem.text_encoder.ROWS_AT_ONCE", 3)
    torch.testing.assert_close(encoder.embed_many(tokens), whole)


def test_evaluation_averages_and_training_draws_a_template(make_text):
    text = make_text()
    every = normalised(text.encoder.embed(text.tokens.flatten(0, 1))).unflatten(0, (4, TEMPLATES))
    mean = text(False, Draws())
    torch.testing.assert_close(mean, every.mean(1) / every.mean(1).norm(dim=-1, keepdim=True))
    torch.testing.assert_close(text(True, chosen(4, 0, 2, 2)), every[range(4), [4, 0, 2, 2]])
    recorded = RecordingDraws(Draws())
    text(True, recorded)
    assert recorded.recorded["text/templates"].shape == (4,)


@pytest.mark.parametrize("training", [True, False])
def test_kept_and_computed_anew_agree(make_text, training):
    draws = chosen(1, 0, 3, 2)
    kept, anew, trained = make_text(), make_text(cache=False), make_text(frozen=False)
    torch.testing.assert_close(kept(training, draws), anew(training, draws))
    torch.testing.assert_close(kept(training, draws), trained(training, draws))
    assert trained(True, draws).requires_grad and not kept(True, draws).requires_grad


def test_a_frozen_encoder_computes_once(make_text, monkeypatch):
    text, calls = make_text(), []
    embed = text.encoder.embed
    monkeypatch.setattr(text.encoder, "embed", lambda tokens: calls.append(len(tokens)) or embed(tokens))
    for training in (True, False, True):
        text(training, Draws())
    assert calls == [4 * TEMPLATES]
    text.cache = False
    text(True, Draws())
    assert calls == [4 * TEMPLATES, 4]


def test_other_weights_or_words_are_computed_anew(make_text):
    text, other = make_text(), make_text(seed=1)
    before = text(False, Draws())
    text.load_state_dict(other.state_dict())
    torch.testing.assert_close(text(False, Draws()), other(False, Draws()))
    assert not torch.allclose(text(False, Draws()), before, atol=0.1)
    text.load_state_dict(make_text().state_dict())
    text.tokens = toy_tokens(3, seed=1)
    assert not torch.allclose(text(False, Draws()), before, atol=0.01)
    text.tokens = toy_tokens(3)
    torch.testing.assert_close(text(False, Draws()), before)


@pytest.mark.parametrize("replace", [
    lambda encoder, value: setattr(encoder, "projection", nn.Parameter(value, requires_grad=False)),
    lambda encoder, value: setattr(encoder.projection, "data", value),
    lambda encoder, value: encoder.load_state_dict({**encoder.state_dict(), "projection": value}, assign=True),
])
def test_weights_that_took_the_place_of_others_are_noticed(make_text, replace):
    text = make_text()
    before = text(False, Draws())
    replace(text.encoder, -text.encoder.projection.detach().clone())
    torch.testing.assert_close(text(False, Draws()), -before)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("foreach", [True, False])
def test_a_step_of_the_optimizer_is_noticed(make_text, optimizer, foreach):
    text = make_text(frozen=False)
    before = text(False, Draws())
    text(True, Draws()).square().sum(0).var().backward()
    optimizer(text.encoder.parameters(), lr=0.01, foreach=foreach).step()
    after = text(False, Draws())
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, ClassText(text.encoder, text.tokens)(False, Draws()))


def test_the_frozen_encoder_leaves_the_memory_and_its_values_stay(make_text):
    text = make_text()
    before = {name: value.clone() for name, value in text.state_dict().items()}
    pointers = {parameter.data_ptr() for parameter in text.encoder.parameters()}
    text(False, Draws())
    assert not pointers & {parameter.data_ptr() for parameter in text.encoder.parameters()}
    after = text.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    other = make_text(seed=1)
    text.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in text.state_dict().items())
    assert torch.equal(copy.deepcopy(text)(False, Draws()), text(False, Draws()))


def test_a_full_disk_leaves_the_encoder_where_it_is(make_text, monkeypatch):
    text = make_text()
    pointer = text.encoder.projection.data_ptr()
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    text(False, Draws())
    assert text.encoder.projection.data_ptr() == pointer


def test_an_encoder_of_a_training_run_stays(make_text, monkeypatch):
    monkeypatch.setattr(class_text, "move_to_file", lambda module: pytest.fail("an encoder that trains was moved"))
    text = make_text(frozen=False)
    with torch.no_grad():
        text(True, chosen(1, 0, 3, 2))
    text(True, Draws()).square().sum(0).var().backward()
    text.eval()
    text(False, Draws())


def test_an_encoder_that_only_predicts_leaves_the_memory_and_comes_back_to_train(make_text):
    text, other = make_text(frozen=False).eval(), make_text(frozen=False)
    pointer = text.encoder.projection.data_ptr()
    text(False, Draws())
    assert text.encoder.projection.data_ptr() != pointer
    for each in (text.train(), other):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.01)
        each(True, chosen(4, 0, 2, 2)).square().sum(0).var().backward()
        optimizer.step()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in text.state_dict().items())
    torch.testing.assert_close(text(False, Draws()), other(False, Draws()))


def test_what_inference_mode_computed_serves_training(make_text):
    text = make_text()
    with torch.inference_mode():
        text(False, Draws())
    weight = torch.ones(20, requires_grad=True)
    (text(True, Draws()) @ weight).sum().backward()
    assert weight.grad.abs().sum() > 0
