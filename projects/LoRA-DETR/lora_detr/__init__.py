"""LoRA-DETR as a Detectron2 project: importing registers the models, `add_config` declares their keys."""
from lora_detr.config import add_config
from lora_detr.meta_arch import DeformableDETR

__all__ = ["DeformableDETR", "add_config"]
