"""Devices keep time by waves and by the roofline, contend for SMs and bandwidth, and end cleanly."""

import math
from collections.abc import Callable

import pytest

from atoll.errors import Deadlock, InvalidConfig
from atoll.reproduce.simulator.laws import bubble
from atoll.sim.device import Device, Mode, Spec, roofline, waves
from atoll.sim.fluid import Fluid
from atoll.sim.loop import Loop
from atoll.sim.stream import Event, Kernel

SMS = 8
PEAK = 1e6  # flop/s of an SM
HBM = 4e6  # bytes/s
MS = 1e3  # flops, of one SM for a millisecond


def world(mode: Mode, *, launch_s: float = 0.0, memory: int = 0) -> tuple[Loop, Device]:
    loop = Loop()
    return loop, Device(Fluid(loop), "gpu", Spec(SMS, PEAK, HBM, memory, launch_s), mode)


def times(mode: Mode, *plan: tuple[str, float, Kernel], launch_s: float = 0.0) -> list[float]:
    """When each kernel ends, in milliseconds; `plan`: (stream, millisecond of its launch, kernel)."""
    loop, device = world(mode, launch_s=launch_s)
    ends = [math.nan] * len(plan)

    def launch(i: int, stream: str, kernel: Kernel) -> None:
        device.stream(stream).launch(kernel).then(lambda: ends.__setitem__(i, loop.now_ns / 1e6))

    for i, (stream, at_ms, kernel) in enumerate(plan):
        loop.post(round(at_ms * 1e6), launch, i, stream, kernel)
    loop.run()
    device.check_stall()
    assert device.free_sms == SMS
    return ends


@pytest.mark.parametrize("ctas", [1, 7, 8, 9, 16, 17, 100])
@pytest.mark.parametrize("held", [0, 1, 3])
def test_time_rises_in_steps_at_multiples_of_the_free_sms(ctas: int, held: int) -> None:
    communication = Kernel("comm", ctas=1, bytes_per_cta=HBM, is_comm=True, c_sms=held)  # a second long
    *_, end = times(waves, ("comm", 0, communication), ("main", 0, Kernel("k", ctas, flops_per_cta=MS)))
    assert end == pytest.approx(math.ceil(ctas / (SMS - held)))


def test_a_kernel_may_not_want_all_sms() -> None:
    assert times(waves, ("a", 0, Kernel("k", 8, MS, max_sms=3))) == pytest.approx([3])
    assert times(roofline, ("a", 0, Kernel("k", 8, MS, max_sms=2))) == pytest.approx([4])


@pytest.mark.parametrize("mode", [waves, roofline])
@pytest.mark.parametrize("intensity", [0.1, 1.0, 2.0, 4.0, 64.0])
def test_a_kernel_is_bound_by_computing_or_by_memory(mode: Mode, intensity: float) -> None:
    nbytes = 16 * MS / intensity
    end = times(mode, ("a", 0, Kernel("k", 16, MS, nbytes / 16)))[0]
    assert end == pytest.approx(1e3 * max(16 * MS / (SMS * PEAK), nbytes / HBM), rel=1e-5)
    assert (nbytes / HBM < 16 * MS / (SMS * PEAK)) == (intensity > SMS * PEAK / HBM)


def test_each_wave_is_launched() -> None:
    assert times(waves, ("a", 0, Kernel("k", 17, MS)), launch_s=1e-4) == pytest.approx([3 * 1.1])
    assert times(roofline, ("a", 0, Kernel("k", 16, MS)), launch_s=1e-4) == pytest.approx([2.1])


@pytest.mark.parametrize("mode", [waves, roofline])
def test_an_empty_kernel_takes_its_launch(mode: Mode) -> None:
    assert times(mode, ("a", 0, Kernel("k", 0)), launch_s=1e-4) == pytest.approx([0.1])


def test_communication_gets_its_sms_at_the_end_of_a_wave_and_computation_gets_them_back_at_the_next() -> None:
    communication = Kernel("comm", 1, bytes_per_cta=HBM / 1e3 * 1.5, is_comm=True, c_sms=2)  # 1.5 ms
    compute, comm = times(waves, ("main", 0, Kernel("k", 8 + 6 + 6 + 8, MS)), ("comm", 0.5, communication))
    assert comm == pytest.approx(1 + 1.5)
    assert compute == pytest.approx(4)  # waves of 8, 6, 6 and 8


def test_communication_that_needs_many_sms_is_not_overtaken() -> None:
    communication = Kernel("comm", 1, bytes_per_cta=HBM / 1e3, is_comm=True, c_sms=8)
    long = ("b", 0, Kernel("long", 1, 3 * MS))
    plan = (long, ("a", 0, Kernel("short", 70, MS)), ("comm", 0.5, communication))
    ends = times(waves, *plan)
    assert ends[2] == pytest.approx(4)  # after the long kernel; the short one's waves wait meanwhile
    assert ends[1] == pytest.approx(4 + math.ceil((70 - 7) / 8))


def test_a_copy_engine_waits_for_no_sms() -> None:
    send = Kernel("send", 0, is_comm=True, c_sms=8)
    copy = Kernel("copy", 1, bytes_per_cta=HBM / 1e3, is_comm=True)
    ends = times(waves, ("main", 0, Kernel("k", 8, 3 * MS)), ("comm", 0.5, send), ("copy", 0.5, copy))
    assert ends == pytest.approx([3, 3, 1.5])


def test_a_second_stream_fills_what_the_first_leaves() -> None:
    first, second = times(waves, ("a", 0, Kernel("k", 12, MS)), ("b", 0, Kernel("k", 4, MS)))
    assert (first, second) == (pytest.approx(2), pytest.approx(2))


def test_the_roofline_shares_the_sms() -> None:
    kernel = Kernel("k", 16, MS)  # 2 ms alone
    assert times(roofline, ("a", 0, kernel), ("b", 0, kernel)) == pytest.approx([4, 4])
    assert times(roofline, ("a", 0, kernel), ("b", 1, kernel)) == pytest.approx([3, 4])


@pytest.mark.parametrize("held", [2, 4])
def test_on_the_roofline_communication_takes_its_sms_from_the_fluid_share(held: int) -> None:
    communication = Kernel("comm", 1, bytes_per_cta=HBM, is_comm=True, c_sms=held)
    _, end = times(roofline, ("comm", 0, communication), ("main", 0, Kernel("k", 16, MS)))
    assert end == pytest.approx(2 * SMS / (SMS - held))


@pytest.mark.parametrize("mode", [waves, roofline])
def test_memory_bandwidth_is_shared(mode: Mode) -> None:
    moving = Kernel("move", 4, bytes_per_cta=HBM / 1e3, max_sms=4)  # 4 ms alone
    assert times(mode, ("a", 0, moving), ("b", 0, moving)) == pytest.approx([8, 8])
    # One that hardly needs memory is not slowed while a copy engine fills it.
    copy = Kernel("copy", 1, bytes_per_cta=HBM / 1e3 * 8, is_comm=True)
    copied, computed = times(mode, ("a", 0, copy), ("b", 0, Kernel("k", 8, MS, bytes_per_cta=HBM / 1e3 / 80)))
    assert computed == pytest.approx(1, rel=0.11)
    assert copied == pytest.approx(8.1, rel=1e-3)


def test_what_is_beside_a_kernel_keeps_its_sms() -> None:
    loop, device = world(waves)
    began = []

    def flow(done: Callable[[], object]) -> None:
        began.append(loop.now_ns / 1e6)
        loop.post(round(2.5e6), done)

    seen: dict[str, float] = {}

    def send() -> None:
        end = device.stream("comm").launch(Kernel("send", 0, is_comm=True, c_sms=4), beside=flow)
        end.then(lambda: seen.__setitem__("end", loop.now_ns / 1e6))

    loop.post(500_000, send)
    device.stream("main").launch(Kernel("k", 8, MS))
    device.stream("main").launch(Kernel("k", 8, MS)).then(lambda: seen.__setitem__("rest", loop.now_ns / 1e6))
    loop.run()
    assert began == [1]
    assert seen == {"end": 3.5, "rest": 3}


def test_streams_are_fifo_and_events_order_them_across_devices() -> None:
    loop = Loop()
    fluid = Fluid(loop)
    spans: list[tuple[str, str, float, float]] = []
    one, two = (Device(fluid, name, Spec(SMS, PEAK, HBM), waves, lambda *span: spans.append(span)) for name in "ab")
    first = one.stream("s").launch(Kernel("a1", 8, MS))
    second = two.stream("s").launch(Kernel("b1", 8, MS), after=[first])
    one.stream("s").wait(second)
    one.stream("s").launch(Kernel("a2", 8, MS))
    two.stream("s").launch(Kernel("b2", 8, MS))
    loop.run()
    rounded = [(lane, name, round(start * 1e3), round(end * 1e3)) for lane, name, start, end in spans]
    assert rounded == [("a/s", "a1", 0, 1), ("b/s", "b1", 1, 2), ("a/s", "a2", 2, 3), ("b/s", "b2", 2, 3)]
    assert one.stream("s") is one.stream("s")


def test_who_waits_for_what_never_comes_is_named() -> None:
    loop, device = world(waves)
    device.stream("main").launch(Kernel("backward", 8, MS), after=[Event()])
    loop.run()
    with pytest.raises(Deadlock, match="gpu/main waits to run 'backward'"):
        device.check_stall()


@pytest.mark.parametrize("mode", [waves, roofline])
def test_a_device_may_slow_down_in_the_middle(mode: Mode) -> None:
    loop, device = world(mode)
    end: list[float] = []
    device.stream("a").launch(Kernel("k", 16, MS)).then(lambda: end.append(loop.now_ns / 1e6))
    loop.post(500_000, device.set_speed, 3)
    loop.post(2_000_000, device.set_speed, 1)
    loop.run()
    assert end == pytest.approx([0.5 + 1.5 + 1.0])  # half a ms, then a third of 1.5, then what is left of 2


@pytest.mark.parametrize("mode", [waves, roofline])
def test_nothing_is_left_of_a_process_that_ended(mode: Mode) -> None:
    loop, device = world(mode, launch_s=1e-5, memory=10)
    ends: list[str] = []
    late: list[Callable[[], object]] = []
    for stream in "ab":
        device.stream(stream).launch(Kernel("k", 16, MS)).then(lambda: ends.append("old"))
    device.stream("c").launch(Kernel("c", 1, is_comm=True, c_sms=3), beside=late.append)
    assert device.memory.take(10)
    loop.run(until_ns=1_100_000)
    device.abort()
    assert (device.memory.free, device.free_sms) == (10, SMS)
    for done in late:
        done()
    loop.run(until_ns=1_100_001)
    assert loop.pending() == 0
    device.stream("a").launch(Kernel("k", 8, MS)).then(lambda: ends.append("new"))
    loop.run()
    device.check_stall()
    assert (ends, device.free_sms) == (["new"], SMS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Kernel("k", -1),
        lambda: Kernel("k", 1, flops_per_cta=math.nan),
        lambda: Kernel("k", 1, max_sms=0),
        lambda: Kernel("k", 1, c_sms=2),
        lambda: Kernel("k", 1, flops_per_cta=1, is_comm=True),
        lambda: Spec(0, 1, 1),
        lambda: Spec(1, 1, math.inf),
        lambda: Spec(1, 1, 1, launch_s=-1),
        lambda: world(waves)[1].set_speed(0),
        lambda: world(waves)[1].stream("a").launch(Kernel("k", 1, is_comm=True, c_sms=SMS + 1)),
    ],
)
def test_impossible_settings_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(InvalidConfig):
        wrong()


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 3), (2, 2), (4, 4), (4, 16), (8, 11)])
@pytest.mark.parametrize("tie_break", [None, 1])
def test_a_pipeline_of_one_forward_one_backward_has_its_bubble(
    stages: int, microbatches: int, tie_break: int | None
) -> None:
    found = bubble(stages, microbatches, tie_break)
    assert found == pytest.approx((stages - 1) / (microbatches + stages - 1), abs=1e-9)
