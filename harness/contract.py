"""Old name of `methods.testing`, for one release."""

from methods.testing import *  # noqa: F403
