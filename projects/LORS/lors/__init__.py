"""AdaMixer and LORS as a Detectron2 project: importing registers the model, `add_config` declares its keys."""
from lors.config import add_config
from lors.meta_arch import AdaMixer

__all__ = ["AdaMixer", "add_config"]
