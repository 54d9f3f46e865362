"""Runs of the main command in this process, without its command line."""

from harness.evaluation import runner
from harness.evaluation.run_context import RunContext


def run(config, context=None):
    """Complete a run; without a `context` it shares nothing with other runs. Returns its folder and its baseline's."""
    context = RunContext() if context is None else context
    return runner.run(context.plan(config), context)
