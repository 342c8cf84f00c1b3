"""What `benchmark.py seem` measures; that it measures is tested with Mask DINO."""
from lowrank_d2.engine.benchmark import mask_dino, seem


def test_it_is_mask_dinos_measurement_of_two_kinds_of_training(monkeypatch):
    asked = []
    monkeypatch.setattr(mask_dino, "in_fresh_process", lambda function, *arguments: asked.append((function, arguments)) or {})
    report = seem.run(["seem.yaml"], rounds=2)
    assert list(report["training"]) == ["lora", "lora_text_in_memory"]
    (lora, inference, plain), words = (asked[0], asked[2], asked[1]), [arguments[1] for _, arguments in asked[:2]]
    assert lora[0] is plain[0] is mask_dino._training and inference[0] is mask_dino._inference
    assert words[1] == [*words[0], "MODEL.SEEM.TEXT.CACHE", "False"] and "['lora']" in words[0]
