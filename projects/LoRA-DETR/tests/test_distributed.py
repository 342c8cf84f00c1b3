"""Two processes on the CPU, one image each."""
import torch
import torch.multiprocessing as mp
from lora_detr_two import example, gradients, model_of, one_of_two

from lowrank_d2.layers.branches import training_only_names


STEPS = [(3, 1), (2, 0), (1, 0), (0, 0)]


def on_two_processes(folder, name, steps):
    """The gradients of each, for every step."""
    mp.spawn(one_of_two, (str(folder), name, steps), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_have_the_gradients_of_one_with_both_images(tmp_path):
    name = "deformable_detr_R50_lora3"
    results = on_two_processes(tmp_path, name, STEPS)
    for step, counts in enumerate(STEPS):
        model = model_of(name)
        alone = gradients(model, [example(rank, count) for rank, count in enumerate(counts)])
        assert alone.keys() == {parameter for parameter, p in model.named_parameters() if p.requires_grad}
        assert all(alone[parameter].any() for parameter in training_only_names(model))
        # A process divides by the objects of all, but by no less than one a process.
        share = max(sum(counts), 1) / max(sum(counts), 2)
        for result in results:
            assert result[step].keys() == alone.keys()
            for parameter, gradient in result[step].items():
                expected = share * alone[parameter]
                near = 1e-7 * expected.abs().max().item() + 1e-12
                torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=near, msg=f"{counts}: {parameter}")


def test_relation_detr_trains_where_one_process_has_no_objects(tmp_path):
    name = "relation_detr_R50_lora3"
    (one,), (other,) = on_two_processes(tmp_path, name, [(2, 0)])
    model = model_of(name)
    assert one.keys() == other.keys() == {key for key, p in model.named_parameters() if p.requires_grad}
    assert all(torch.equal(gradient, other[key]) and gradient.isfinite().all() for key, gradient in one.items())
    assert all(one[key].any() for key in training_only_names(model))
