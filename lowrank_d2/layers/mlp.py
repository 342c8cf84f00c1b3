"""Small networks of linear layers."""
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowrank_d2.layers.dropout import Dropout
from lowrank_d2.layers.linear import Linear, input_gradient, linear

# Of a frozen layer the hidden units are never whole: pieces of them stay in the processor's cache, and are small enough
# for the C library to keep their memory. 2048 units of float32 take 16 MiB.
TOKENS_AT_ONCE = 2048
# With a backward pass to come, where freed memory is kept anyway: every piece reorders the weights once more.
RECORDED_TOKENS_AT_ONCE = 4096


class MLP(nn.Module):
    """`num_layers` linear layers with ReLU between them."""

    def __init__(self, *, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int):
        super().__init__()
        sizes = [input_dim] + [hidden_dim] * (num_layers - 1) + [output_dim]
        self.layers = nn.ModuleList(Linear(a, b) for a, b in zip(sizes, sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x), inplace=True)
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The feed-forward part of a post-norm transformer layer: norm(x + linear2(relu(linear1(x))))."""

    def __init__(self, *, embed_dim: int, hidden_dim: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = Linear(embed_dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) -> the same shape."""
        if self._is_recorded(x):
            return self.norm(self._frozen(x) if self._is_frozen(x) else x + self._change(x))
        if x.device.type != "cpu":
            return self.norm(x + self._change(x))
        tokens = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(tokens)
        for piece, result in zip(tokens.split(TOKENS_AT_ONCE), out.split(TOKENS_AT_ONCE)):
            torch.add(piece, self._change(piece), out=result)
        return self.norm(out).view(x.shape)

    def contract(self, x: Tensor, hidden: Tensor) -> Tensor:
        """`forward` of x (..., embed_dim), whose linear1(x) (..., hidden_dim) others need, too."""
        return self.norm(x + self.dropout(self.linear2(self.dropout(F.relu(hidden)))))

    def _change(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True))))

    def _frozen(self, x: Tensor) -> Tensor:
        first, second = self.linear1, self.linear2
        tokens = x.reshape(-1, x.shape[-1])
        return _FrozenStep.apply(tokens, first.weight, first.bias, second.weight, second.bias)[0].view(x.shape)

    def _is_recorded(self, x: Tensor) -> bool:
        """For a backward pass, for export or compilation."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return True
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def _is_frozen(self, x: Tensor) -> bool:
        """Whether nothing but `x` can have a gradient, nor anything else see or change the hidden layer."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(x.device.type):
            return False
        if self.dropout.training and self.dropout.p > 0:
            return False
        return all(_is_plain(layer) for layer in (self.linear1, self.linear2))


def _is_plain(layer: nn.Module) -> bool:
    """Whether `layer` is no more than its weight and bias, both frozen."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is Linear and not any(hooks) and not any(p.requires_grad for p in layer.parameters())


class _FrozenStep(torch.autograd.Function):
    """x + W2 relu(W1 x + b1) + b2 of frozen weights, a piece of the tokens at a time in both passes.

    Between them it keeps a byte a hidden unit, whether the unit was off, where the plain form keeps the unit itself.
    """

    @staticmethod
    def forward(x, weight1, bias1, weight2, bias2):
        out, off = torch.empty_like(x), torch.empty(len(x), len(weight1), dtype=torch.bool, device=x.device)
        for piece, result, dead in _pieces(x, out, off):
            hidden = linear(piece, weight1, bias1).relu_()
            torch.le(hidden, 0, out=dead)
            torch.add(piece, linear(hidden, weight2, bias2), out=result)
        return out, off

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], inputs[3], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        weight1, weight2, off = ctx.saved_tensors
        grad_x = torch.empty_like(grad)
        for piece, result, dead in _pieces(grad, grad_x, off):
            hidden = _switched_off(input_gradient(piece, weight2), dead)
            torch.add(piece, input_gradient(hidden, weight1), out=result)
        return grad_x, None, None, None, None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors that lie side by side: on the CPU of so many rows, elsewhere whole."""
    size = RECORDED_TOKENS_AT_ONCE if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(tensor.split(size) for tensor in tensors))


def _switched_off(x: Tensor, off: Tensor) -> Tensor:
    """`x`, changed: 0 where `off`, whatever it was. By its bits, since masked_fill_ takes ten times as long on a CPU."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    x.view(bits).bitwise_and_(off.view(torch.int8).sub(1).to(bits))
    return x
