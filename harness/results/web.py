"""What makes a page safe to open: one style sheet and one script, which its security policy names by their hashes.

The policy refuses every other script, style, frame and address, so that text which was not escaped has no effect.
"""

import base64
import hashlib

from markupsafe import Markup


class StyleSheet:
    """The rules of a page; a class takes the place of each `style` attribute, which the policy refuses."""

    def __init__(self, rules: str = ""):
        self._rules = rules
        self._names: dict[str, str] = {}

    def name(self, declarations: str) -> str:
        """Return the class with these CSS declarations."""
        return self._names.setdefault(declarations, f"s{len(self._names)}")

    @property
    def text(self) -> Markup:
        """The content of the page's style element."""
        return verbatim(self._rules + "".join(f".{name}{{{rule}}}\n" for rule, name in self._names.items()))


def verbatim(text: str) -> Markup:
    """Return our own text for a style or script element, which knows no escapes; ValueError for one that ends early."""
    if "</" in text or "<!--" in text:
        raise ValueError("a style or script element cannot hold </ or <!--")
    return Markup(text)


def policy(style: str, script: str = "", folder: bool = False) -> str:
    """Return the content security policy of a page with these elements; only a script by its hash may run.

    With `folder`, the page may show the pictures, and its script load the scripts, that lie in a folder next to it.
    """
    scripts = f"script-src {_hash(script)}" + " 'strict-dynamic'" * folder if script else ""
    pictures = "img-src data:" + " 'self' file:" * folder
    closed = ("default-src 'none'", "base-uri 'none'", "form-action 'none'")
    return "; ".join(filter(None, [*closed, pictures, f"style-src {_hash(style)}", scripts]))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
