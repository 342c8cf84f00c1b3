"""A small model shaped like Mask DINO: a backbone with statistics, attention blocks with slots, heads, classes."""
import pytest
import torch
from torch import nn

from lowrank_d2.peft import eval_frozen


class Block(nn.Module):
    """Attention with packed q, k, v and a slot for an adapter."""

    def __init__(self, width):
        super().__init__()
        self.embed_dim = width
        self.qkv = nn.Linear(width, 3 * width)
        self.value_proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.LayerNorm(width)
        self.register_module("adapter", None)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attended = self.value_proj((q @ k.transpose(-1, -2)).softmax(-1) @ v)
        if self.adapter is not None:
            attended = self.adapter(attended, x)
        return self.norm(x + self.dropout(attended))


class Toy(nn.Module):
    def __init__(self, classes=3, width=6):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.pixel_decoder = Block(width)
        self.decoder = nn.Sequential(Block(width), Block(width))
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, classes)
        self.label_embedding = nn.Embedding(classes, width)
        self.register_buffer("class_weight", torch.ones(classes + 1))

    def forward(self, x):
        """(N, 4) -> (N, classes)"""
        x = self.backbone(x)[None]
        x = self.decoder_norm(self.decoder(self.pixel_decoder(x)) + self.label_embedding.weight.sum(0))
        return self.class_embed(x)[0]

    def peft_parts(self):
        return {
            "backbone": ("backbone",),
            "full_head": ("pixel_decoder", "decoder", "decoder_norm", "class_embed", "label_embedding"),
            "decoder": ("decoder.", "decoder_norm.", "class_embed.", "label_embedding."),
            "embeddings": ("class_embed",),
            "label_embedding": ("label_embedding",),
        }

    def peft_targets(self):
        return ("value_proj", "qkv[q,v]")

    def components(self):
        return {"backbone": "backbone.", "head": ("pixel_decoder", "decoder", "decoder_norm", "class_embed")}


@pytest.fixture
def make_toy():
    """make_toy(classes=3, seed=0, base=None): a Toy with random weights of its own, or those of `base`."""

    def make(classes=3, seed=0, base=None):
        torch.manual_seed(seed)
        model = Toy(classes)
        if base is not None:
            model.load_state_dict(base)
        return model

    return make


@pytest.fixture
def train_steps():
    """train_steps(model, n=3): n optimizer steps on fixed data, in train mode; leaves the model in eval mode."""

    def train(model, n=3, lr=0.1):
        generator = torch.Generator().manual_seed(7)
        x, y = torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
        model.train()
        eval_frozen(model)
        for _ in range(n):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.eval()

    return train


@pytest.fixture
def images():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
