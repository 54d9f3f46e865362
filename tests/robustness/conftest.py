"""What the tests of damaged input share: every input ends in an answer or in one line."""

import pytest
from kinds import tried

from harness.core.errors import UserError, one_line


@pytest.fixture
def ends_well(request):
    """Return a function that calls another: it may return, or raise UserError with a message."""

    def call(function, *args, refusal=UserError):
        with tried(request):
            try:
                return function(*args)
            except refusal as error:
                message = one_line(error)
            assert message
            return None

    return call
