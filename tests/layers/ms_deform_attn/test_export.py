"""Exported models: what they contain, and that another runtime computes the same."""
import io
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.ms_deform_attn import ms_deform_attn, ms_deform_attn_from_offsets
from lowrank_d2.layers.ms_deform_attn.export import by_gather, export_form
from lowrank_d2.layers.ms_deform_attn.torch_impl import by_grid_sample

HEADS, CHANNELS, POINTS = 4, 8, 4


class Reader(nn.Module):
    """Queries read two maps, as in a detector's encoder."""

    def __init__(self, fused=False):
        super().__init__()
        self.fused = fused
        torch.manual_seed(0)
        self.value = nn.Linear(32, HEADS * CHANNELS)
        self.offsets = nn.Linear(32, HEADS * 2 * POINTS * 2)
        self.weights = nn.Linear(32, HEADS * 2 * POINTS)

    def forward(self, fine, coarse, query, reference):
        shapes = [(x.shape[2], x.shape[3]) for x in (fine, coarse)]
        value = self.value(torch.cat([x.flatten(2).transpose(1, 2) for x in (fine, coarse)], dim=1))
        offsets = self.offsets(query).unflatten(-1, (HEADS, 2, POINTS, 2))
        value, logits = value.unflatten(-1, (HEADS, -1)), self.weights(query).unflatten(-1, (HEADS, 2, POINTS))
        if self.fused:
            return ms_deform_attn_from_offsets(value, shapes, reference, 8 * offsets, logits)
        weights = logits.flatten(-2).softmax(-1).view_as(logits)
        return ms_deform_attn(value, shapes, reference[:, :, None, None, None] + offsets, weights)


def inputs(height, width, queries):
    g = torch.Generator().manual_seed(0)
    maps = (torch.randn(2, 32, h, w, generator=g) for h, w in ((height, width), (height // 2, width // 2)))
    return *maps, torch.randn(2, queries, 32, generator=g), torch.rand(2, queries, 2, generator=g)


def onnx_model(form, opset):
    """Of any height, width and number of queries."""
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are needed to export (pip install lowrank_d2[test])")
    free = torch.export.Dim.DYNAMIC
    shapes = ({2: free, 3: free}, {2: free, 3: free}, {1: free}, {1: free})
    with export_form(form), torch.no_grad():
        program = torch.onnx.export(
            Reader().eval(), inputs(12, 10, 7), dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False
        )
    return program.model_proto


def agree(model: bytes, fused=False):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is needed to run what was exported")
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for size in ((12, 10, 7), (20, 15, 30), (33, 47, 1)):
        values = inputs(*size)
        out = session.run(None, {put.name: x.numpy() for put, x in zip(session.get_inputs(), values)})[0]
        assert_close(torch.from_numpy(out), Reader(fused)(*values), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "form, opset, operator",
    [
        ("grid_sample", 20, "GridSample"),
        ("gather", 18, "Gather"),
        *(
            pytest.param(form, opset, operator, marks=pytest.mark.slow)
            for form, opset, operator in [
                ("grid_sample", 16, "GridSample"),
                ("grid_sample", 18, "GridSample"),
                ("gather", 16, "Gather"),
                ("gather", 20, "Gather"),
            ]
        ),
    ],
)
def test_onnxruntime_agrees_at_every_size(form, opset, operator):
    model = onnx_model(form, opset)
    assert model.opset_import[0].version == opset
    kinds = {node.op_type for node in model.graph.node}
    assert operator in kinds and (form == "grid_sample") == ("GridSample" in kinds)
    agree(model.SerializeToString())


@pytest.mark.slow
@pytest.mark.parametrize("form, fused", [("grid_sample", False), ("gather", False), ("grid_sample", True)])
@pytest.mark.filterwarnings("ignore")
def test_the_exporter_by_tracing_works_too(form, fused):
    pytest.importorskip("onnx", reason="onnx is needed to export")
    file, names = io.BytesIO(), ["fine", "coarse", "query", "reference"]
    axes = {"fine": {2: "h", 3: "w"}, "coarse": {2: "h2", 3: "w2"}, "query": {1: "q"}, "reference": {1: "q"}}
    with export_form(form), torch.no_grad():
        example = inputs(12, 10, 7)
        torch.onnx.export(
            Reader(fused).eval(), example, file, dynamo=False, opset_version=16, input_names=names, dynamic_axes=axes
        )
    agree(file.getvalue(), fused)


def test_tensorrt_finds_one_node_with_its_inputs_in_order():
    model = onnx_model("tensorrt", 18)
    (node,) = [node for node in model.graph.node if node.op_type == "MultiscaleDeformableAttnPlugin_TRT"]
    assert not node.attribute
    known = {info.name: info.type.tensor_type for info in (*model.graph.value_info, *model.graph.output)}
    shapes = [[dim.dim_value or "?" for dim in known[name].shape.dim] for name in (*node.input, *node.output)]
    assert shapes == [
        [2, "?", HEADS, CHANNELS], [2, 2], [2], [2, "?", HEADS, 2, POINTS, 2], [2, "?", HEADS, 2, POINTS],
        [2, "?", HEADS, CHANNELS],
    ]  # fmt: skip
    floats, whole = 1, 6  # TensorProto.FLOAT, TensorProto.INT32
    assert [known[name].elem_type for name in (*node.input, *node.output)] == [floats, whole, whole, *[floats] * 3]
    assert "GridSample" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("form, fused", [("grid_sample", False), ("gather", False), ("grid_sample", True)])
def test_an_exported_program_has_no_operator_of_ours(form, fused):
    free = torch.export.Dim.DYNAMIC
    shapes = ({2: free, 3: free}, {2: free, 3: free}, {1: free}, {1: free})
    with export_form(form):
        program = torch.export.export(Reader(fused).eval(), inputs(12, 10, 7), dynamic_shapes=shapes)
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [call for call in calls if "lowrank_d2" in call]
    assert any("grid_sampler" in call for call in calls) == (form == "grid_sample")
    values = inputs(9, 16, 5)
    assert_close(program.module()(*values), Reader(fused)(*values), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shapes", [((6, 5), (3, 4)), ((1, 7), (4, 1)), ((4, 4), (0, 3))], ids=str)
def test_gathering_is_bilinear_sampling(shapes):
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, sum(h * w for h, w in shapes), 3, 5, generator=g, dtype=torch.float64)
    places = torch.rand(2, 30, 3, len(shapes), 4, 2, generator=g, dtype=torch.float64) * 1.6 - 0.3
    places[0, 0, 0, 0] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e10, 0.5], [-1e10, 0.5]])
    places[1, 1, 0, 0, 0, 0] = math.nan
    weights = torch.rand(2, 30, 3, len(shapes), 4, generator=g, dtype=torch.float64)
    out = by_gather(value, shapes, places, weights)
    assert_close(out, by_grid_sample(value, shapes, places, weights), equal_nan=True)
    assert out.isnan().sum() == 5


def test_an_unknown_form_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match="'onnx'.*grid_sample, gather, tensorrt"):
        with export_form("onnx"):
            pass


def test_the_form_holds_inside_its_block_only():
    model, example = Reader().eval(), inputs(12, 10, 7)
    with pytest.raises(ZeroDivisionError), export_form("gather"):
        1 / 0
    program = torch.export.export(model, example)
    assert "grid_sampler" in str(program.graph)
