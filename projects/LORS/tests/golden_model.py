"""The model of a golden case, and what a forward pass of it computes under the names of the golden data."""
from typing import Any

import torch
from torch import Tensor, nn

from lors.criterion import AdaMixerCriterion, Objects, Weights
from lors.decode import decode
from lors.decoder import Decoder, Queries
from lors.mixing import MixingSize, Residual
from lors.neck import Neck
from lors.sampling import Pyramid, level_weights, sample_places
from lors.weights import from_upstream, to_upstream


class GoldenModel(nn.Module):
    """Neck, queries and decoder of a case, with its weights; a case has some of these parts alone."""

    def __init__(self, case: Any):
        super().__init__()
        c, lors = case.config, case.config.get("lors")
        weights = {name: torch.from_numpy(value.copy()) for name, value in case.weights().items()}
        self.strides = c["strides"]
        self.size = MixingSize(c["content_dim"], c["groups"], c["in_points"], c["out_points"])
        if c["neck_in"]:
            self.neck = Neck(in_channels=c["neck_in"], embed_dim=c["content_dim"])
        if any(name.startswith("rpn_head.") for name in weights):
            self.queries = Queries(num_queries=c["num_query"], embed_dim=c["content_dim"])
        adaptive = static = None
        if any(".lors_shared.channel." in name for name in weights):
            adaptive = Residual(lors["rank_adaptive"], tuple(lors["K"]))
        if any(".lors_shared.out_proj." in name for name in weights):
            k = lors["K_static"]
            static = Residual(lors["rank_static"], tuple(k) if isinstance(k, list) else (k,) * c["num_stages"])
        self.decoder = Decoder(
            self.size, num_stages=c["num_stages"], num_heads=c["num_heads"], feedforward_dim=c["feedforward"],
            num_classes=c["num_classes"], adaptive=adaptive, static=static,
        )
        incompatible = self.load_state_dict(from_upstream(weights, self.size), strict=False)
        assert incompatible.unexpected_keys == []
        assert set(incompatible.missing_keys) <= {"queries.boxes"}  # LORS cases leave out what is always the same

    def upstream_gradients(self) -> dict[str, Any]:
        found = {name: p.grad for name, p in self.named_parameters() if p.grad is not None}
        return {name: gradient.numpy() for name, gradient in to_upstream(found, self.size).items()}


def run(model: GoldenModel, case: Any) -> tuple[dict[str, Any], dict[str, Tensor], list]:
    """One forward pass: tensors by golden name, the inputs that have gradients, and the outputs of the stages.

    It is in the type of the model's parameters.
    """
    dtype, inputs = next(model.parameters()).dtype, case.inputs()

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array.copy()).to(dtype)

    features = [tensor(x).requires_grad_() for x in inputs["features"]]
    leaves = {f"input/feature_{i}": x for i, x in enumerate(features)}
    seen: dict[str, Any] = {}
    maps = features
    if hasattr(model, "neck"):
        maps = model.neck(features)
        seen |= {f"neck/{i}": x for i, x in enumerate(maps)}
    if hasattr(model, "queries"):
        content, xyzr = model.queries(inputs["image_sizes"])
        seen |= {"initial/content": content, "initial/xyzr": xyzr}
    else:
        content = leaves["input/query_content"] = tensor(inputs["query_content"]).requires_grad_()
        xyzr = tensor(inputs["query_xyzr"])
    for number, stage in enumerate(model.decoder.stages):
        _watch(stage, f"stage_{number}/", seen)
    outputs = model.decoder(content, xyzr, Pyramid.of(maps, model.strides))
    for number, output in enumerate(outputs):
        kinds = {"content": output.content, "logits": output.logits, "xyzr": output.xyzr, "boxes": output.boxes}
        seen |= {f"stage_{number}/{kind}": x for kind, x in kinds.items()}
    return seen, leaves, outputs


def losses(case: Any, outputs: list) -> dict[str, Any]:
    """Costs, matched pairs, losses and the total, by golden name; the criterion is AdaMixer's own."""
    criterion = AdaMixerCriterion(loss=Weights(), cost=Weights(), finite_empty_batch=False)
    truth, seen = objects(case), {}
    for image, each in enumerate(truth):
        for stage, cost in enumerate(criterion.costs(outputs, image, each)):
            seen[f"stage_{stage}/cost/image_{image}"] = cost
    for name, images in criterion.match(outputs, truth).items():
        for image, pair in enumerate(images):
            key = f"{name.replace('stage', 'stage_')}/matched/image_{image}"
            seen[key] = torch.stack((pair.queries, pair.targets))
    values, accuracies = criterion(outputs, truth)
    seen |= {f"losses/{name}": value for name, value in (values | accuracies).items()}
    return seen | {"losses/total": sum(values.values())}


def detections(case: Any, outputs: list) -> dict[str, Any]:
    seen = {}
    for image, size in enumerate(case.inputs()["image_sizes"]):
        found = decode(outputs[-1].logits[image], outputs[-1].boxes[image], size, size, max_detections=10**6)
        arrays = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes}
        seen |= {f"detections/{image}/{name}": x for name, x in arrays.items()}
    return seen


def objects(case: Any) -> list[Objects]:
    inputs = case.inputs()
    return [
        Objects(torch.from_numpy(labels), torch.from_numpy(boxes), torch.tensor([w, h, w, h], dtype=torch.float32))
        for labels, boxes, (h, w) in zip(inputs["labels"], inputs["boxes"], inputs["image_sizes"])
    ]


def _watch(stage: nn.Module, prefix: str, seen: dict[str, Any]) -> None:
    """Hooks that write the inner tensors of a stage into `seen`."""
    mixing, sampling = stage.mixing, stage.sampling

    def attention(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        _, code, corners = inputs
        seen.update({prefix + "position_code": code, prefix + "attention_bias": module.bias(corners)})
        seen[prefix + "attention"] = output

    def sampled(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        content, xyzr, pyramid = inputs
        offsets = module.offsets(content).unflatten(-1, (module.groups, module.points, 3))
        places = sample_places(xyzr, offsets)
        seen[prefix + "offsets"], seen[prefix + "sample_points"] = offsets, places
        seen[prefix + "level_weights"] = level_weights(places[..., 2], pyramid.strides)
        seen[prefix + "sampled"] = output.transpose(2, 3)
        kernels = [[kind.kernel(content) for kind in group] for group in zip(mixing.channel, mixing.spatial)]
        seen[prefix + "channel_kernel"] = torch.stack([channel for channel, _ in kernels], dim=2)
        seen[prefix + "spatial_kernel"] = torch.stack([spatial.mT for _, spatial in kernels], dim=2)
        both = [torch.cat((channel.flatten(2), spatial.mT.flatten(2)), dim=-1) for channel, spatial in kernels]
        seen[prefix + "kernels"] = torch.stack(both, dim=2)

    def activated(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        # Called for the channels and then the points of one group after the other.
        calls = seen.setdefault(prefix + "calls", [])
        calls.append(output)
        if len(calls) == 2 * len(mixing.channel):
            seen[prefix + "channel_mixed"] = torch.stack(calls[::2], dim=2)
            seen[prefix + "spatial_mixed"] = torch.stack(calls[1::2], dim=2)
            del seen[prefix + "calls"]

    def mixed(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen[prefix + "mixed"], seen[prefix + "mixed_norm"] = inputs[0], output

    stage.attention.register_forward_hook(attention)
    sampling.register_forward_hook(sampled)
    mixing.activation.register_forward_hook(activated)
    mixing.norm.register_forward_hook(mixed)
