"""Detectron2's model zoo; its configs and weights are not part of the lite runtime."""
from .model_zoo import get, get_checkpoint_url, get_config, get_config_file

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]
