"""One page to look at: `python -m harness.report runs=results/runs out=report.html`."""
