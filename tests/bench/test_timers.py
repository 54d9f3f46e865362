"""The logic of timing, on a clock that ticks by one at every mark: what counts, for which stage, and who is in turn."""

import pytest
import torch

from harness.bench.columns import STAGE_MEANINGS
from harness.bench.measure import Footprint, rounds
from harness.bench.output import timing
from harness.bench.setup import Candidate
from harness.bench.statistics import Spread, break_even, verdict
from harness.bench.timers import Clock, Mark, Trace, clock_of, own_times


class FakeClock(Clock):
    """Counts its marks as milliseconds of the device; the host's clock runs ten times as fast."""

    def __init__(self):
        self.now, self.waits = 0, []

    def mark(self):
        self.now += 1
        return Mark(self.now / 100, self.now)

    def wait(self):
        self.waits.append(self.now)

    def between(self, start, stop):
        return float(stop.event - start.event)


def spent(trace, *spans):
    """Enter each of the nested `spans`, and leave them again."""
    for span in spans:
        trace.enter(span)
    for span in reversed(spans):
        trace.leave(span)


def answered(steps):
    """An answer of 1 + `steps` tokens: the tower, a cut with a choice, the language model, then steps that decode."""
    clock = FakeClock()
    trace = Trace(clock)
    trace.begin()  # 1
    trace.enter("vision")  # 2
    spent(trace, "read")  # 3 4
    spent(trace, "projector")  # 5 6
    trace.leave("vision")  # 7
    trace.enter("root")  # 8
    trace.enter("cut")  # 9
    spent(trace, "score")  # 10 11
    spent(trace, "select")  # 12 13
    trace.leave("cut")  # 14
    trace.enter("decoder")  # 15
    spent(trace, "cut", "select")  # 16 17 18 19, inside the language model
    trace.leave("decoder")  # 20
    trace.leave("root")  # 21
    for _ in range(steps):
        spent(trace, "root", "cut", "decoder")
    trace.end()
    return trace, clock


def test_stages_are_what_they_spend_themselves_and_add_up_to_the_prefill():
    times = answered(steps=0)[0].times(tokens=1)
    stages = ("vit", "projector", "signals", "selection", "cut", "llm_prefill", "other")
    found = {stage: times[stage] for stage in stages}
    expected = {"vit": 3, "projector": 1, "signals": 2, "selection": 2, "cut": 5, "llm_prefill": 2, "other": 4}
    assert found == expected
    assert times["prefill"] == sum(found.values()) == 21 - 2
    assert times["tpot"] == 0.0
    assert times["ttft"] == times["e2e"] == 22 - 1


def test_only_the_first_pass_is_prefill_and_later_passes_cost_one_mark_in_all():
    trace, clock = answered(steps=3)
    times = trace.times(tokens=4)
    assert sum(span == "root" for span, _, _ in trace.marks) == 2
    assert times["prefill"] == 19
    assert times["ttft"] == 22 - 1  # the second pass begins with the first token
    assert clock.now == 23
    assert times["tpot"] == (23 - 22) / 3
    assert times["e2e"] == 23 - 1


def test_the_device_is_waited_for_before_the_first_mark_and_behind_the_last_and_never_between():
    _, clock = answered(steps=2)
    assert clock.waits == [0, clock.now]


def test_published_times_are_the_hosts():
    times = answered(steps=0)[0].times(tokens=1)
    assert times["host_prefill"] == pytest.approx(10 * times["prefill"])
    assert times["host_e2e"] == pytest.approx(10 * times["e2e"])


def test_spans_that_do_not_nest_are_an_error():
    a, b = Mark(0, 0), Mark(1, 1)
    with pytest.raises(RuntimeError, match="cut ends inside root"):
        own_times([("root", True, a), ("cut", False, b)], FakeClock().between)
    with pytest.raises(RuntimeError, match="root does not end"):
        own_times([("root", True, a)], FakeClock().between)
    with pytest.raises(RuntimeError, match="nothing was measured"):
        Trace(FakeClock()).times(4)


def test_a_gpu_is_timed_by_its_own_events_and_waited_for_by_name(monkeypatch):
    calls = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            calls.append(stream)
            self.at = len(calls)

        def elapsed_time(self, other):
            return 5 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(f"wait for {device}"))
    clock = clock_of(torch.device("cuda:1"))
    first, second = clock.mark(), clock.mark()
    clock.wait()
    assert clock.between(first, second) == 5
    assert clock.on_host(first, second) == 1000 * (second.host - first.host)
    assert calls == ["stream of cuda:1", "stream of cuda:1", "wait for cuda:1"]
    assert type(clock_of(torch.device("cpu"))) is Clock


class Log:
    """Answers in no time, and remembers who was asked; `fails` says who runs out of memory, and when."""

    def __init__(self, fails=None):
        self.asked, self._fails, self._count = [], fails or {}, {}

    def footprint(self, candidate, inputs):
        self.asked.append(f"{candidate.name}!")
        return Footprint(cache=inputs)

    def time(self, candidate, inputs):
        self.asked.append(candidate.name)
        self._count[candidate.name] = self._count.get(candidate.name, 0) + 1
        if self._count[candidate.name] == self._fails.get(candidate.name):
            raise torch.OutOfMemoryError("no")
        return {"e2e": float(len(self.asked))}


A, B, C = (Candidate(name) for name in "abc")
INPUTS = {A: 1, B: 2, C: 3}


def test_everyone_is_in_turn_and_the_rounds_for_memory_and_warm_up_do_not_count():
    log, told = Log(), []
    first, second = rounds([A, B], INPUTS, log, warmup=2, repeats=3, tell=told.append)
    assert log.asked == ["a!", "b!", *"ab" * 5]
    assert [time["e2e"] for time in first.times] == [7, 9, 11]
    assert [time["e2e"] for time in second.times] == [8, 10, 12]
    assert (first.footprint.cache, second.footprint.cache) == (1, 2)
    assert told[0] == "unpruned, memory"
    assert told[-1] == "unpruned, 3 of 3"


def test_who_runs_out_of_memory_is_left_out_and_the_others_go_on():
    log = Log(fails={"b": 2})
    results = rounds([A, B, C], INPUTS, log, warmup=0, repeats=3)
    assert "".join(log.asked) == "a!b!c!abcabcac"
    assert [len(result.times) for result in results] == [3, 0, 3]
    assert [result.error for result in results] == [None, "out of memory", None]


def test_a_bug_is_not_taken_for_a_lack_of_memory():
    class Broken(Log):
        def time(self, candidate, inputs):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        rounds([A], INPUTS, Broken(), warmup=0, repeats=1)


def test_spread_and_savings():
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3, 2)

    def answers(*values):
        return [dict.fromkeys([*STAGE_MEANINGS, "host_prefill", "host_e2e", "answer"], value) for value in values]

    row = timing(answers(1, 2, 3, 4, 100), answers(5, 8, 9, 50, 60))
    assert (row["e2e_ms"], row["e2e_iqr_ms"], row["visionselector_e2e_ms"]) == (3, 2, 22)
    assert (row["e2e_saving_ms"], row["e2e_saving_iqr_ms"]) == (6, 2)  # of 4, 6, 6, 46, -40: of the same round
    assert row["prefill_speedup"] == 3


@pytest.mark.parametrize(
    ("saved", "found", "says"),
    [
        ([-30, -10, 10, 40], 650, "pays from about 650 visual tokens on"),
        ([-30, 10, -10, 30], 850, "pays from about 850 visual tokens on"),  # the last time that it begins to
        ([5, 10, 20, 40], 250, "pays at all sizes, from 250 visual tokens on"),
        ([-30, -10, -5, 0], None, "never pays in this range, 250 to 1000 visual tokens"),
        ([-30, 10, 20, -5], None, "pays at 500, 800 visual tokens, but not at the largest size, 1000"),
    ],
)
def test_break_even(saved, found, says):
    sizes = [250, 500, 800, 1000]
    assert break_even(sizes, saved) == found
    assert verdict(sizes, saved) == verdict(sizes[::-1], saved[::-1]) == says
