"""The published sweeps, where they lie beside the repository."""

from pathlib import Path

import pytest

ANCHORS = Path(__file__).parents[2].parent / "shared" / "anchors"


@pytest.fixture(scope="session")
def anchors():
    if not ANCHORS.is_dir():
        pytest.skip("the shared anchors are not beside the repository")
    return ANCHORS
