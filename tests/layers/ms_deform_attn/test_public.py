"""The public functions on whatever back end is in use, and inside torch's compilers."""
import pytest
import torch
from torch.testing import assert_close

from lowrank_d2.layers.ms_deform_attn import backend, ms_deform_attn, ms_deform_attn_from_offsets


def test_the_form_with_offsets_is_the_composition(make_case):
    for form in ("points", "boxes"):
        for per_level in (False, True):
            case = make_case(form=form, per_level=per_level)
            out = ms_deform_attn_from_offsets(case.value, case.shapes, case.reference, case.places, case.weights)
            assert_close(out, case.expected())
            if not per_level:
                squeezed = case.reference[:, :, 0]
                same = ms_deform_attn_from_offsets(case.value, case.shapes, squeezed, case.places, case.weights)
                assert same.equal(out)


@pytest.mark.parametrize("form", ["points", "boxes"])
def test_one_reference_serves_all_images(make_case, form):
    case = make_case(form=form)
    out = ms_deform_attn_from_offsets(case.value, case.shapes, case.reference[:1], case.places, case.weights)
    expected = ms_deform_attn_from_offsets(
        case.value, case.shapes, case.reference[:1].expand_as(case.reference), case.places, case.weights
    )
    assert_close(out, expected)


def test_a_reference_learns(make_case):
    case = make_case(n=1, q=2, m=1, form="boxes", seed=1)
    inputs = [x.clone().requires_grad_() for x in (case.reference, case.places, case.weights)]
    assert torch.autograd.gradcheck(lambda *x: ms_deform_attn_from_offsets(case.value, case.shapes, *x), inputs)


def test_a_reference_that_does_not_fit_is_refused(make_case):
    case = make_case(form="points")
    for wrong in (case.reference[..., :1], case.reference[:, :-1], case.reference.repeat(1, 1, 3, 1)):
        with pytest.raises(ValueError, match="reference"):
            ms_deform_attn_from_offsets(case.value, case.shapes, wrong, case.places, case.weights)


def test_the_type_of_value_decides(make_case):
    case = make_case(q=20)
    for dtype in (torch.float32, torch.bfloat16):
        out = ms_deform_attn(case.value.to(dtype), case.shapes, case.places, case.weights)
        assert out.dtype == dtype
        expected = case.of(case.value.to(dtype).double(), case.places, case.weights).expected()
        assert_close(out, expected.to(dtype), rtol=1e-2, atol=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_autocast_keeps_locations_precise(make_case, compiled):
    case = make_case(((300, 400),), n=1, q=50, m=1, d=8, dtype=torch.float32).with_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ms_deform_attn(case.value, case.shapes, case.places, case.weights)
    assert out.dtype == torch.bfloat16
    # Locations in bfloat16 would be off by more than a cell here.
    assert_close(out.float(), case.expected(), rtol=2e-2, atol=3e-2)
    for grad, x in zip(case.gradients(out.float(), torch.ones(out.shape)), case.differentiable):
        assert grad.dtype == x.dtype == torch.float32


def test_it_compiles_into_one_graph_for_all_sizes(make_case, compiled):
    graphs = []

    def count(module, example):
        graphs.append(module)
        return module.forward

    @torch.compile(fullgraph=True, dynamic=True, backend=count)
    def step(value, feature_maps, reference, offsets, logits):
        shapes = [(x.shape[0], x.shape[1]) for x in feature_maps]
        return ms_deform_attn_from_offsets(value, shapes, reference, offsets, logits).square()

    for shapes, q in ((((6, 5), (9, 8)), 7), (((8, 9), (4, 3)), 11), (((10, 7), (5, 6)), 13)):
        case = make_case(shapes, q=q, form="points")
        maps = [torch.empty(shape) for shape in shapes]
        out = step(case.value, maps, case.reference, case.places, case.weights)
        assert_close(out, case.expected().square())
    assert len(graphs) == 1
    targets = [str(node.target) for node in graphs[0].graph.nodes]
    assert any("lowrank_d2.ms_deform_attn" in target for target in targets)


def test_gradients_flow_through_the_compiler(make_case, compiled):
    case = make_case(q=30).with_gradients()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def run(value, places, weights):
        return ms_deform_attn(value, case.shapes, places, weights)

    out = run(*case.differentiable)
    for ours, theirs in zip(case.gradients(out.sum(), None), case.gradients(case.expected().sum(), None)):
        assert_close(ours, theirs)


class Module(torch.nn.Module):
    def forward(self, value, first, second, locations, weights):
        return ms_deform_attn(value, [tuple(x.shape[:2]) for x in (first, second)], locations, weights)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_export_and_tracing_yield_pytorchs_own_operators(make_case):
    case = make_case()
    inputs = (case.value, *(torch.empty(shape) for shape in case.shapes), case.places, case.weights)
    program = torch.export.export(Module(), inputs)
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("grid_sampler" in target for target in targets) and not any("lowrank_d2" in target for target in targets)
    assert_close(program.module()(*inputs), case.expected())
    traced = torch.jit.trace(Module(), inputs)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::grid_sampler" in kinds and not any(kind.startswith("lowrank_d2") for kind in kinds)


def test_a_process_chooses_once():
    assert backend.current() is backend.current()
    assert not backend.has_kernel("meta")
