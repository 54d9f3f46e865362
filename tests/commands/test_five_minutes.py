"""docs/five-minutes.md is a session: every line is typed, and what comes out is what the page shows."""

import doctest

from doc_guides import ROOT


def test_the_session_gives_what_the_page_shows(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = doctest.DocTestParser().get_doctest(
        (ROOT / "docs" / "five-minutes.md").read_text(encoding="utf-8"), {"__name__": "__main__"}, "five", "", 0
    )
    assert sum(bool(example.want) for example in page.examples) > 6
    said: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(page, out=said.append).failed
    assert not failed, "".join(said)
