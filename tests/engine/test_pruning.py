"""AdaLoRA inside the trainer: its loss is among the losses, its budget is kept, a resume changes no bit."""
import json

import pytest
import torch

from lowrank_d2.engine.hooks import HookBase
from lowrank_d2.errors import ConfigError
from tests.engine.tiny import TinyTrainer, losses_of, register, tiny_config

WORDS = [
    "MODEL.PEFT.METHODS", "['adalora']", "MODEL.PEFT.TRAIN", "none",
    "MODEL.PEFT.ADALORA.TARGETS", "['head.1', 'head.3']", "MODEL.PEFT.ADALORA.RANK", "4",
    "MODEL.PEFT.ADALORA.TARGET_RANK", "2", "MODEL.PEFT.ADALORA.TINIT", "2", "MODEL.PEFT.ADALORA.TFINAL", "3", "SOLVER.MAX_ITER", "8",
]


@pytest.fixture
def dataset(tmp_path):
    return register(tmp_path / "images")


class Cut(HookBase):
    def after_step(self):
        if self.trainer.iter == 3:
            self.trainer.save_checkpoint("model_0000003")
            raise KeyboardInterrupt


def train(cfg, resume=False, cut=False):
    trainer = TinyTrainer(cfg)
    trainer.register_hooks([Cut()] if cut else [])
    trainer.resume_or_load(resume)
    try:
        trainer.train()
    except KeyboardInterrupt:
        assert cut
    return trainer


def test_the_budget_is_kept_and_a_resume_changes_no_bit(tmp_path, dataset):
    whole = train(tiny_config(tmp_path / "whole", dataset, *WORDS))
    train(tiny_config(tmp_path / "cut", dataset, *WORDS), cut=True)
    resumed = train(tiny_config(tmp_path / "cut", dataset, *WORDS), resume=True)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    state = whole.bare_model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in resumed.bare_model.state_dict().items())
    values = torch.cat([tensor.view(-1) for name, tensor in state.items() if name.endswith("lora_E")])
    kept = torch.cat([tensor for name, tensor in state.items() if name.endswith("lora_kept")])
    assert len(values) == 8 and torch.equal(values != 0, kept) and kept.sum() == 4


def test_the_orthogonality_loss_is_part_of_the_total(tmp_path, dataset):
    train(tiny_config(tmp_path, dataset, *WORDS))
    for line in map(json.loads, (tmp_path / "metrics.json").read_text().splitlines()):
        parts = line["loss_box"] + line["loss_query"] + line["loss_orthogonality"]
        assert line["loss_orthogonality"] > 0 and line["total_loss"] == pytest.approx(parts, rel=1e-5)


def test_a_training_too_short_for_the_schedule_is_refused_at_once(tmp_path, dataset):
    with pytest.raises(ConfigError, match="Of 5 optimizer steps, .*TINIT keeps the first 2 and .*TFINAL the last 3"):
        TinyTrainer(tiny_config(tmp_path, dataset, *WORDS[:-1], "5"))
