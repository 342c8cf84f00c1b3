"""Pictures of records: the ground truth drawn over the image by Detectron2's Visualizer."""

from detectron2.data import Metadata
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

from lowrank_d2.data.image_files import read_image


def draw_record(record: dict, metadata: Metadata, scale: float = 1.0, exif: str = "apply") -> Image.Image:
    """Draws the annotations of a record over its image, magnified by `scale`.

    Classes have the dataset's `thing_colors` where it has them; else every object has a colour of its own.
    """
    mode = ColorMode.SEGMENTATION if metadata.get("thing_colors") else ColorMode.IMAGE
    visualizer = Visualizer(read_image(record["file_name"], exif=exif), metadata, scale=scale, instance_mode=mode)
    return Image.fromarray(visualizer.draw_dataset_dict(record).get_image())
