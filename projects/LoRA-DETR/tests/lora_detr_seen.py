"""What a forward pass computes, under the names of the golden data."""
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_d2.modeling.one_to_many import Assignment, OneToManyAssigner

HYBRID = ["hybrid", "hybrid/encoder"]  # what the matcher of the layers is asked in Relation-DETR, after them


class Watch:
    """Fills `seen` at every forward pass of a model, and in training from its losses.

    Relation-DETR decodes twice in training: first denoising and matching queries, then the hybrid ones.
    """

    def __init__(self, model: nn.Module):
        self.model, self.seen = model, {}
        self.pad = self.decoded = 0  # denoising queries; passes of the decoder
        model.encoder.register_forward_hook(lambda module, inputs, memory: self._start(memory))
        model.queries.register_forward_hook(lambda module, inputs, out: self._note_proposals(out))
        model.decoder.register_forward_hook(self._note_decoded, with_kwargs=True)
        for i, layer in enumerate(model.decoder.layers):
            layer.self_attn.register_forward_pre_hook(
                lambda m, inputs, i=i: self._note(f"decoder/layer_{i}/query_position", inputs[1])
            )
            # Without gradients the norm sees pieces; with low-rank branches, which share it, nothing calls the whole.
            for module in (layer.ffn, layer.ffn.norm):
                module.register_forward_hook(lambda m, inputs, x, i=i: self._note_query(i, x))
            if layer.branches is not None:
                layer.branches.register_forward_hook(lambda m, inputs, x, i=i: self._note_branches(i, x))
        if hasattr(model, "denoising"):
            model.denoising.register_forward_hook(lambda module, inputs, noised: self._note_noised(noised))
            model.hybrid.register_forward_hook(lambda module, inputs, proposals: self._note_hybrid(proposals))
            model.decoder.position_relation.register_forward_hook(self._note_relation)
        self._watch_criterion(model.criterion)
        losses = model.losses

        def with_targets(levels: Any, targets: Any) -> Any:
            self.seen.update({f"targets/image_{b}/boxes": target.boxes for b, target in enumerate(targets)})
            return losses(levels, targets)

        model.losses = with_targets

    def _start(self, memory: Tensor) -> None:
        self.pad = self.decoded = 0
        self.seen["encoder/memory"] = memory
        self.seen = {name: x for name, x in self.seen.items() if not name.startswith("relation/")}

    def _note(self, name: str, x: Tensor) -> None:
        """Of the matching queries, in the first pass of the decoder."""
        if not self.decoded:
            self.seen[name] = x[:, self.pad :]

    def _note_query(self, layer: int, x: Tensor) -> None:
        if x.dim() == 3:  # branches stand in a dimension of their own
            self._note(f"decoder/layer_{layer}/query", x)

    def _note_branches(self, layer: int, x: Tensor) -> None:
        self.seen.update({f"decoder/branch_{j}/layer_{layer}/query": branch for j, branch in enumerate(x)})

    def _note_proposals(self, out: Any) -> None:
        proposals = next((x for x in (out if isinstance(out, tuple) else ()) if hasattr(x, "chosen")), None)
        if proposals is not None:
            self.seen |= {
                "encoder/logits": proposals.logits, "encoder/boxes": proposals.boxes,
                "encoder/anchors": proposals.anchors, "select/topk_indices": proposals.chosen,
            }

    def _note_hybrid(self, proposals: Any) -> None:
        self.seen |= {
            "hybrid/select/topk_indices": proposals.chosen, "hybrid/encoder_logits": proposals.logits,
            "hybrid/encoder_boxes": proposals.boxes,
        }

    def _note_noised(self, noised: Any) -> None:
        queries, images = self.model.queries.content, len(self.seen["encoder/memory"])
        self.pad = 0 if noised is None else noised.layout.pad
        if noised is None:  # the originals make a group without slots
            content, boxes = torch.zeros(images, 0, queries.embedding_dim), torch.zeros(images, 0, 4)
            groups, blocked = 1, torch.zeros(queries.num_embeddings, queries.num_embeddings)
        else:
            content, boxes, groups = noised.content, noised.boxes_unsigmoid.sigmoid(), noised.layout.groups
            blocked = noised.attention_mask(queries.num_embeddings)
        self.seen |= {
            "dn/groups_and_pad": torch.tensor([groups, self.pad]), "dn/initial_query": content,
            "dn/initial_reference": boxes, "dn/attention_mask": blocked,
        }

    def _note_relation(self, module: nn.Module, inputs: Any, bias: Tensor) -> None:
        count = sum(name.startswith("relation/") for name in self.seen)
        self.seen[f"relation/layer_{count}"] = bias

    def _note_decoded(self, module: nn.Module, inputs: Any, options: Any, decoded: Any) -> None:
        reference = inputs[1] if isinstance(inputs[1], Tensor) and inputs[1].shape[-1] == 4 else inputs[0].reference
        prefix = "hybrid" if self.decoded else "main"
        matching, pad = ("hybrid" if self.decoded else "decoder"), (0 if self.decoded else self.pad)
        self.seen[f"{matching}/initial_reference"] = reference[:, pad:]
        for i, (logits, boxes) in enumerate(zip(decoded.logits, decoded.boxes)):
            self.seen |= {f"{prefix}/layer_{i}/logits": logits[:, pad:], f"{prefix}/layer_{i}/boxes": boxes[:, pad:]}
            if prefix == "main":
                self.seen |= {f"dn/layer_{i}/logits": logits[:, :pad], f"dn/layer_{i}/boxes": boxes[:, :pad]}
            if prefix == "main":
                self.seen[f"decoder/layer_{i}/reference"] = boxes[:, pad:]
        if decoded.branch_logits is not None:
            for j, (all_logits, all_boxes) in enumerate(zip(decoded.branch_logits, decoded.branch_boxes)):
                for i, (logits, boxes) in enumerate(zip(all_logits, all_boxes)):
                    self.seen |= {f"branch_{j}/layer_{i}/logits": logits, f"branch_{j}/layer_{i}/boxes": boxes}
        self.decoded += 1

    def _watch_criterion(self, criterion: Any) -> None:
        """Wraps whatever assigns queries; pairs are (query, target) rows."""
        one_for_all = criterion.anchor_matcher is None
        criterion.matcher = self._recording(criterion.matcher, ["main", *["encoder"] * one_for_all, *HYBRID])
        if not one_for_all:
            criterion.anchor_matcher = self._recording(criterion.anchor_matcher, ["encoder"])
        if criterion.assigner is not None:
            criterion.assigner = _RecordingAssigner(criterion.assigner, self.seen_pairs)

    def seen_pairs(self, name: str, queries: Tensor, targets: Tensor) -> None:
        self.seen[name] = torch.stack((queries, targets))

    def _recording(self, matcher: Any, names: list[str]) -> Any:
        """A matcher whose first call is for the first of the names, and so on."""
        coming = iter(names)

        def match(predictions: Any, targets: Any) -> Any:
            pairs, name = matcher(predictions, targets), next(coming)
            for layer, images in pairs.items():
                for b, pair in enumerate(images):
                    where = f"{name}/image_{b}" if "encoder" in name else f"{name}/{layer}/image_{b}"
                    count = len(self.seen[f"targets/image_{b}/boxes"])
                    self.seen_pairs(f"matched/{where}", pair.queries, pair.targets % max(count, 1))
            return pairs

        return match


class _RecordingAssigner:
    def __init__(self, assigner: OneToManyAssigner, note: Any):
        self.assigner, self.note, self.assign = assigner, note, assigner.assign
        assigner.assign = self._assign

    def __call__(self, logits: Tensor, *arguments: Any) -> tuple[Assignment, Tensor]:
        pairs, scores = self.assigner(logits, *arguments)
        layers = logits.shape[1]
        for s, b in torch.cartesian_prod(torch.arange(len(scores)), torch.arange(scores.shape[1])).tolist():
            mine = (pairs.sets == s) & (pairs.images == b)
            name = f"merged/branch_{s // layers}/layer_{s % layers}/image_{b}"
            self.note(name, pairs.queries[mine], pairs.targets[mine])
        return pairs, scores

    def _assign(self, scores: Tensor, *arguments: Any) -> Tensor:
        paired = self.assign(scores, *arguments)
        for j, i, b in torch.cartesian_prod(*map(torch.arange, paired.shape[:3])).tolist():
            targets, queries = paired[j, i, b].nonzero(as_tuple=True)
            self.note(f"assigned/branch_{j}/layer_{i}/image_{b}", queries, targets)
        return paired
