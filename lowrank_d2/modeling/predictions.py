"""What a query-based segmenter predicts and what it is compared with: the seam between the models and their losses."""
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """One set of predictions, of N images with Q queries each.

    Masks are not stored: `mask_logits` forms those asked for, since most are never looked at.

    Attributes:
        logits: (N, Q, C) class logits.
        boxes: (N, Q, 4) cxcywh in [0, 1] of the padded canvas; None from a segmenter without boxes.
        mask_embed: (N, Q, M); a query's mask is the inner product of its embedding with the mask features. None from a
            detector of boxes alone.
    """

    logits: Tensor
    boxes: Optional[Tensor] = None
    mask_embed: Optional[Tensor] = None

    def mask_logits(self, mask_features: Tensor) -> Tensor:
        """The masks of all queries (N, Q, H/4, W/4), for mask features (N, M, H/4, W/4)."""
        return torch.einsum("nqm,nmhw->nqhw", self.mask_embed, mask_features)


@dataclass(frozen=True)
class Predictions:
    """Everything that one forward pass predicted.

    Attributes:
        mask_features: (N, M, H/4, W/4), shared by all predictions.
        last: the final prediction.
        aux: predictions of the earlier layers in their order (loss suffixes _0, _1, ...); with INITIAL_PRED, aux[0] is
            made from the queries that enter the first layer.
        interm: the two-stage selection's prediction.
        dn_last, dn_aux: the denoising queries' part of `last` and `aux`, (N, pad, .) each.
        branches: for every branch beside the decoder layers (MODEL.LORA_DETR) the predictions of the layers in order.
    """

    mask_features: Tensor
    last: Prediction
    aux: tuple[Prediction, ...] = ()
    interm: Optional[Prediction] = None
    dn_last: Optional[Prediction] = None
    dn_aux: tuple[Prediction, ...] = ()
    branches: tuple[tuple[Prediction, ...], ...] = ()


@dataclass(frozen=True)
class Target:
    """The ground truth of one image with n instances, on the padded canvas (H, W).

    Attributes:
        labels: (n,) int64.
        boxes: (n, 4) cxcywh, fractions of the image's own size (as upstream, quirk Q2) or, with FIX.BOX_CANVAS, of the
            canvas; None where only masks are compared.
        masks: (n, H, W) bool; None where only boxes are compared.
    """

    labels: Tensor
    boxes: Optional[Tensor] = None
    masks: Optional[Tensor] = None
