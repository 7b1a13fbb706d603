"""Driver: a GPU-like device in virtual time, whose kernels contend for SMs (its processors) and for memory bandwidth.

A kernel's cooperative thread arrays (CTAs) are spread over SMs. `roofline` lets them flow: a fluid share of all SMs and
of the memory bandwidth (Williams et al., 2009). `waves` runs one CTA per SM at a time and counts the SMs that are free
anew at each wave, so a communication kernel that holds a few slows computation by whole waves. Those that share a
bottleneck get equal shares of what each needs most (dominant resource fairness, Ghodsi et al., 2011).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from atoll.errors import Deadlock, InvalidConfig
from atoll.sim.fluid import Activity, Fluid, Resource
from atoll.sim.memory import Memory
from atoll.sim.stream import Beside, Done, Kernel, Stream

UNITS_PER_S = 1e12
"""Work is counted in picoseconds that it would take alone."""
Grant = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a device can do. `launch_s` passes before each wave, or once where there are none."""

    sms: int
    flops_per_s: float  # of one SM
    hbm_bytes_per_s: float
    memory_bytes: int = 0
    launch_s: float = 0.0

    def __post_init__(self) -> None:
        if self.sms < 1 or not (0 < self.flops_per_s < math.inf and 0 < self.hbm_bytes_per_s < math.inf):
            raise InvalidConfig(f"{self}: a device needs SMs, flops and memory bandwidth, all finite")
        if not 0 <= self.launch_s < math.inf:
            raise InvalidConfig(f"{self}: launch_s must be finite and at least 0")


class Device:
    """SMs, their memory's bandwidth and bytes, and streams that use them; `mode` is `roofline` or `waves`.

    Free SMs go first to communication kernels, then to those that began first (the leftover policy of GPUs).
    `span(lane, name, start_s, end_s)` is told of each kernel that has ended.
    """

    def __init__(
        self,
        fluid: Fluid,
        name: str,
        spec: Spec,
        mode: "Mode",
        span: Callable[[str, str, float, float], object] | None = None,
    ) -> None:
        self.fluid, self.name, self.spec = fluid, name, spec
        self.hbm = fluid.resource(f"{name}/hbm", spec.hbm_bytes_per_s)
        self.memory = Memory(fluid.loop, f"{name}/memory", spec.memory_bytes)
        self.free_sms = spec.sms
        self._pool: Resource | None = None
        self._mode, self._span = mode, span
        self._streams: dict[str, Stream] = {}
        self._slow = 1.0
        self._era = 0  # between two aborts
        self._activities: dict[Activity, None] = {}
        self._tokens: set[int] = set()
        self._asking: list[tuple[bool, int, int, int, Grant]] = []
        self._numbers = count()
        self._granting: int | None = None  # the token of the event that ends this instant

    def stream(self, name: str) -> Stream:
        """The stream of that name, a new one if there is none."""
        return self._streams.setdefault(name, Stream(self, f"{self.name}/{name}"))

    def set_speed(self, slow: float) -> None:
        """From now on all work takes `slow` times as long as by the spec; launches do not."""
        if not 0 < slow < math.inf:
            raise InvalidConfig(f"device {self.name!r} can't be {slow} times as slow; the factor must be above 0")
        self._slow = slow
        self.fluid.set_capacity(self.hbm, self.spec.hbm_bytes_per_s / slow)
        self._resize_pool()
        for activity in self._activities:
            self.fluid.set_cap(activity, UNITS_PER_S / slow)

    def abort(self) -> None:
        """Its process has ended: nothing goes on, no end comes, the memory is free. New launches may follow."""
        self._era += 1
        for activity in self._activities:
            self.fluid.cancel(activity)
        for token in self._tokens:
            self.fluid.loop.cancel(token)
        for stream in self._streams.values():
            stream.abort()
        if self._granting is not None:
            self.fluid.loop.cancel(self._granting)
            self._granting = None
        self._activities.clear()
        self._tokens.clear()
        self._asking.clear()
        self.memory.clear()
        self.free_sms = self.spec.sms
        self._resize_pool()

    def check_stall(self) -> None:
        """To be called when nothing is left to happen: raises Deadlock where streams wait all the same."""
        if waiting := [words for stream in self._streams.values() if (words := stream.waits())]:
            raise Deadlock(f"nothing is left to happen at {self.fluid.loop.now_s:.6f} s, but " + "; ".join(waiting))

    def check(self, kernel: Kernel) -> None:
        """For streams. InvalidConfig: the kernel needs more SMs than there are."""
        if kernel.c_sms > self.spec.sms:
            raise InvalidConfig(f"kernel {kernel.name!r} needs {kernel.c_sms} SMs; {self.name!r} has {self.spec.sms}")

    def run(self, lane: str, kernel: Kernel, beside: Beside | None, done: Done) -> None:
        """For streams: begin `kernel`, and `beside` once it holds its SMs; call `done` when both are over."""
        loop, era = self.fluid.loop, self._era

        def begin(sms: int) -> None:
            start_s, parts = loop.now_s, 1 + (beside is not None)

            def part_done() -> None:
                nonlocal parts
                if era != self._era:
                    return  # what was beside an aborted kernel
                parts -= 1
                if parts == 0:
                    if self._span:
                        self._span(lane, kernel.name, start_s, loop.now_s)
                    self.give_back(sms)
                    done()

            mode = _communicate if kernel.is_comm else self._mode
            mode(self, kernel, part_done)
            if beside:
                beside(part_done)

        if kernel.c_sms:
            self.ask(kernel.c_sms, kernel.c_sms, begin, (False, self.turn()))
        else:
            begin(0)

    def turn(self) -> int:
        """For modes: a number that is higher for each kernel that begins."""
        return next(self._numbers)

    def ask(self, least: int, most: int, grant: Grant, rank: tuple[bool, int], *, back: int = 0) -> None:
        """For modes: call `grant` with the number of SMs it now holds, between these bounds; lower ranks come first,
        and nobody overtakes one who waits for many. `back`: so many are given back in the same moment."""
        heappush(self._asking, (*rank, least, most, grant))
        self.give_back(back)

    def give_back(self, sms: int) -> None:
        """For modes: hold so many less. Who may have them now gets them when all of this instant are in, so that it
        does not matter which of two kernels that end together is the first."""
        self.free_sms += sms
        if self._granting is None and self._asking:
            self._granting = self.fluid.loop.post(0, self._grant)
        self._resize_pool()

    def work(self, alone_s: float, sm_seconds: float, nbytes: float, done: Done) -> None:
        """For modes: launch work that takes so long alone, so many SM-seconds of the pool and so many bytes to or from
        memory."""
        if self.spec.launch_s:
            self._after(round(self.spec.launch_s * 1e9), lambda: self._flow(alone_s, sm_seconds, nbytes, done))
        else:
            self._flow(alone_s, sm_seconds, nbytes, done)

    def _flow(self, alone_s: float, sm_seconds: float, nbytes: float, done: Done) -> None:
        units = round(alone_s * UNITS_PER_S)
        uses: dict[Resource, float] = {}
        share = 0.0  # of what it needs most, when it runs at full rate
        if units and sm_seconds:
            uses[self._sm_pool()] = sm_seconds / units
            share = sm_seconds / alone_s / self.spec.sms
        if units and nbytes:
            uses[self.hbm] = nbytes / units
            share = max(share, nbytes / alone_s / self.spec.hbm_bytes_per_s)

        def ended() -> None:
            del self._activities[activity]
            done()

        cap = UNITS_PER_S / self._slow
        activity = self.fluid.start(units, uses, ended, weight=1 / share if share else 1.0, cap=cap)
        self._activities[activity] = None

    def _grant(self) -> None:
        self._granting = None
        while self._asking and self._asking[0][2] <= self.free_sms:
            _, _, _, most, grant = heappop(self._asking)
            granted = min(most, self.free_sms)
            self.free_sms -= granted
            grant(granted)
        self._resize_pool()

    def _sm_pool(self) -> Resource:
        if self._pool is None:
            self._pool = self.fluid.resource(f"{self.name}/sms", self.free_sms / self._slow)
        return self._pool

    def _resize_pool(self) -> None:
        if self._pool is not None:
            self.fluid.set_capacity(self._pool, self.free_sms / self._slow)

    def _after(self, delay_ns: int, fn: Done) -> None:
        def fire() -> None:
            self._tokens.discard(token)
            fn()

        token = self.fluid.loop.post(delay_ns, fire)
        self._tokens.add(token)


Mode = Callable[[Device, Kernel, Done], None]
"""How a kernel that computes uses a device."""


def roofline(device: Device, kernel: Kernel, done: Done) -> None:
    """All CTAs at once, on a fluid share of the SMs that no communication holds."""
    sm_seconds = kernel.ctas * kernel.flops_per_cta / device.spec.flops_per_s
    nbytes = kernel.ctas * kernel.bytes_per_cta
    sms = min(device.spec.sms, kernel.ctas, kernel.max_sms or kernel.ctas)
    alone_s = max(sm_seconds / max(1, sms), nbytes / device.spec.hbm_bytes_per_s)
    device.work(alone_s, sm_seconds, nbytes, done)


def waves(device: Device, kernel: Kernel, done: Done) -> None:
    """One CTA on each SM that is free, then the next wave; a wave's CTAs end together."""
    rank, left = (True, device.turn()), kernel.ctas

    def ask(back: int) -> None:
        device.ask(1, min(left, kernel.max_sms or left), wave, rank, back=back)

    def wave(sms: int) -> None:
        nonlocal left
        left -= sms
        nbytes = sms * kernel.bytes_per_cta
        alone_s = max(kernel.flops_per_cta / device.spec.flops_per_s, nbytes / device.spec.hbm_bytes_per_s)
        device.work(alone_s, 0.0, nbytes, lambda: ended(sms))

    def ended(sms: int) -> None:
        if left:
            ask(back=sms)
        else:
            device.give_back(sms)
            done()

    if left:
        ask(back=0)
    else:
        device.work(0.0, 0.0, 0.0, done)


def _communicate(device: Device, kernel: Kernel, done: Done) -> None:
    """On the SMs it holds, in one go."""
    computing_s = kernel.ctas * kernel.flops_per_cta / device.spec.flops_per_s / max(1, kernel.c_sms)
    nbytes = kernel.ctas * kernel.bytes_per_cta
    device.work(max(computing_s, nbytes / device.spec.hbm_bytes_per_s), 0.0, nbytes, done)
