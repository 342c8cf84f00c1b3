"""The copy of the generator beside the small cases is the one of the larger data."""
import pytest

from tests.golden.conftest import SHARED, SMALL


@pytest.mark.golden
def test_the_small_cases_have_the_generator_of_the_larger_data():
    if not (SHARED / "golden.py").is_file():
        pytest.skip(f"the larger data is not at {SHARED}")
    assert (SMALL / "golden.py").read_bytes() == (SHARED / "golden.py").read_bytes()
