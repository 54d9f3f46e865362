"""What a user can put right is one line on the screen, not a traceback."""


class UserError(Exception):
    """A mistake in the configuration or its surroundings; commands print it as one line and exit with code 2."""


def one_line(error: BaseException) -> str:
    """The message of an error with its line breaks and runs of blanks folded."""
    return " ".join(str(error).split()) or type(error).__name__
