"""Strategies that damage files: bytes of any file, and the values of JSON."""

import json
from typing import Any

from hypothesis import strategies as st

HOSTILE = ["", " ", "\n", "\x00", "\u2028", "\u0085", "\ud800", "\u202e", "\x1b[2J", "../..", "/", "~nobody/x", "=1+1"]
HOSTILE += ["<script>", "NaN", "null", "{}", "%s", "${x}", "'", "a" * 300, "é"]
NUMBERS = st.one_of(
    st.integers(), st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400]), st.floats(), st.sampled_from([0.5, 1e308])
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(HOSTILE), st.text(max_size=8))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside a JSON value, the first of every list only."""
    ways = [at] if at else []
    if isinstance(value, dict):
        ways += [way for key, part in value.items() for way in paths(part, (*at, key))]
    elif isinstance(value, list) and value:
        ways += paths(value[0], (*at, 0))
    return ways


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """Return JSON of which one value is another, or missing."""
    value = json.loads(json.dumps(value))
    *way, last = draw(st.sampled_from(paths(value)))
    place = value
    for key in way:
        place = place[key]
    if draw(st.booleans()):
        del place[last]
    else:
        place[last] = draw(JSON)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes that were cut, overwritten, repeated or added to in one place."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(len(content), start + 40)))
    how = draw(st.sampled_from(["cut", "remove", "overwrite", "repeat", "lines"]))
    if how == "cut":
        return content[:start]
    if how == "remove":
        return content[:start] + content[stop:]
    if how == "repeat":
        return content[:stop] + content[start:]
    if how == "lines":
        return content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b""])))
    more = draw(st.binary(max_size=9) | st.sampled_from([b"\0" * 64, b"[" * 20_000, b"\xff\xfe", b"1e999", b"NaN"]))
    return content[:start] + more + content[stop:]
