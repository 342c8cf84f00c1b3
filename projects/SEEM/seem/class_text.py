"""The classes as vectors: words in templates, tokens, embeddings; computed once while nothing in the encoder changes."""
from typing import Optional

import torch
from torch import Tensor, nn

from lowrank_d2.engine.memory import give_back_freed_memory
from lowrank_d2.layers.draws import Draws
from seem.mapped import lay_apart, move_to_file
from seem.text_encoder import TextEncoder, normalised

LOGIT_SCALE = 1.0  # at the start of training, in the exponent


class ClassText(nn.Module):
    """The text encoder, the tokens of the classes, and the scale of the similarities.

    Training draws a template for every class and step; evaluation averages the embeddings over all templates.

    Embeddings of all classes in all templates are kept for as long as their key, the values of the encoder's parameters
    and the tokens (names and templates), stays the same. An encoder whose embeddings are kept and that nothing trains,
    because it is frozen or because its model only predicts, has nothing more to do: it leaves the memory (see
    `move_to_file`), and would come back.

    Attributes:
        tokens: (K + 1, T, L) int64, class, template, token; the last class is "background".
    """

    def __init__(self, encoder: TextEncoder, tokens: Optional[Tensor], cache: bool = True):
        """
        Args:
            tokens: None where only parameters are asked for.
            cache: False computes what is asked for at every call.
        """
        super().__init__()
        if cache:
            lay_apart(encoder)
        self.encoder = encoder
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        self.cache = cache
        self.tokens = tokens
        self._key: Optional[tuple] = None
        self._kept: Optional[tuple[Tensor, Tensor]] = None

    def forward(self, training: bool, draws: Draws) -> Tensor:
        """(K + 1, D) embeddings of the classes; with a gradient where the encoder trains.

        Args:
            training: whether the model does; this module may be frozen.
            draws: of the templates, by the purpose "text/templates".
        """
        if not training:
            return self._embeddings()[1]
        chosen = self._templates(draws)
        if self._trains() or not self.cache:
            rows = torch.arange(len(self.tokens))
            return normalised(self._awake().embed(self.tokens[rows, chosen].to(self.logit_scale.device)))
        embeddings, _ = self._embeddings()
        return embeddings[torch.arange(len(embeddings)), chosen]

    def _templates(self, draws: Draws) -> Tensor:
        count, templates = self.tokens.shape[:2]
        if templates == 1:
            return torch.zeros(count, dtype=torch.int64)
        return draws.integers("text/templates", templates, (count,))

    def _trains(self) -> bool:
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.encoder.parameters())

    def _is_done(self) -> bool:
        """Whether no step can change the encoder: it is frozen, or its model predicts and no step has begun."""
        parameters = list(self.encoder.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            return True
        return not self.training and all(parameter.grad is None for parameter in parameters)

    def _awake(self) -> TextEncoder:
        """The encoder, on the model's device again if it was in a file."""
        device = self.logit_scale.device
        return self.encoder if self.encoder.projection.device == device else self.encoder.to(device)

    def _weights(self) -> tuple:
        """Something that differs after the encoder's values changed, without reading them.

        Every change in place, be it by an optimizer or by loading, raises a parameter's version; values that took the
        place of others lie elsewhere. Only what is written into `parameter.data` passes unseen.
        """
        return tuple((id(each), each.data_ptr(), each._version) for each in self.encoder.parameters())

    def _embeddings(self) -> tuple[Tensor, Tensor]:
        """Normalised embeddings (K + 1, T, D) of all texts, and of the classes (K + 1, D)."""
        if self._kept is None or self._key is None or self._key[0] is not self.tokens or self._key[1] != self._weights():
            self._kept = self._compute()
            self._key = (self.tokens, self._weights())  # only now, as the encoder may have moved
        device = self.logit_scale.device
        kept = tuple(tensor.to(device) for tensor in self._kept)
        self._kept = kept if self.cache else None
        return kept

    # What is kept may be used in training later, which tensors made in inference mode cannot.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute(self) -> tuple[Tensor, Tensor]:
        device = self.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            embeddings = normalised(self._awake().embed_many(self.tokens.flatten(0, 1).to(device)))
        embeddings = embeddings.unflatten(0, self.tokens.shape[:2])
        mean = embeddings.mean(1)
        if self.cache and self._is_done() and move_to_file(self.encoder):
            give_back_freed_memory()
        return embeddings, mean / mean.norm(dim=-1, keepdim=True)
