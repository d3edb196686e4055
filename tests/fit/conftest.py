"""What tests of compiling for a GPU share."""

import pytest

from apex_jax.fit.fit_report import FitError, need_compiler


@pytest.fixture(scope="session")
def compiler():
    """Skip where JAX's CUDA compiler is not installed."""
    try:
        need_compiler()
    except FitError as error:
        pytest.skip(str(error))
