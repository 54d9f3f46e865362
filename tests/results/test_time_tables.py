"""scripts/time_tables.py times both commands on runs that it makes."""

import subprocess
import sys

from doc_guides import ROOT


def test_it_times_both_commands():
    call = [sys.executable, str(ROOT / "scripts" / "time_tables.py"), "--methods", "1", "--questions", "44"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    _, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["tables", "this"], ["report", "this"]]
    assert all(float(seconds) > 0 and float(peak) > 0.05 for _, _, seconds, peak in rows)
