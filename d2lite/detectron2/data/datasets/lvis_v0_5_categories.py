"""LVIS's table is not in the lite runtime; looking into it raises NotInLiteRuntime."""
from .refused_table import RefusedTable

LVIS_CATEGORIES = RefusedTable("LVIS_CATEGORIES", __name__)
