"""Access to the model zoo; the names exist so that code which mentions them can be imported."""
from detectron2._lite import refused

get = refused("get", __name__)
get_checkpoint_url = refused("get_checkpoint_url", __name__)
get_config = refused("get_config", __name__)
get_config_file = refused("get_config_file", __name__)
