"""LVIS's table is not in the lite runtime; looking into it raises NotInLiteRuntime."""
from .refused_table import RefusedTable

LVIS_CATEGORY_IMAGE_COUNT = RefusedTable("LVIS_CATEGORY_IMAGE_COUNT", __name__)
