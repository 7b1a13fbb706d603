"""Driver: activities that share resources in virtual time: flows over links, kernels over SMs and memory, tasks over
cores.

An activity has so much work left and the rate that `maxmin` gives it. Rates hold until something in its component (who
is joined by shared resources, directly or not) starts, ends or changes; then that component alone is solved anew, once
for all that changes at one instant. A component seen before, as a multiset of demands, is not solved again.
"""

from collections.abc import Callable, Mapping
from itertools import count
from math import inf
from typing import NamedTuple

from atoll.errors import Deadlock, InvalidData
from atoll.sim.loop import FOREVER_NS, Loop
from atoll.sim.maxmin import components, rates

# Then all are forgotten, and those in use learnt again.
REMEMBERED_RATES = 1_000_000
REMEMBERED_DEMANDS = 100_000


class Usage(NamedTuple):
    """What a resource has given so far."""

    work: float  # its own units: coefficient times an activity's
    busy_s: float  # with at least one activity on it
    utilisation: float  # of what it could have given


class Resource:
    """Something shared, of so many units per second."""

    __slots__ = ("_busy_ns", "_changed_ns", "_could", "_given", "_since_ns", "_users", "capacity", "name", "number")

    def __init__(self, name: str, number: int, capacity: float, now_ns: int) -> None:
        self.name, self.number, self.capacity = name, number, capacity
        self._users: dict[Activity, None] = {}
        self._given = 0.0  # to activities that have ended
        self._busy_ns, self._since_ns = 0, 0  # until there was nobody; the time since somebody is there
        self._could, self._changed_ns = 0.0, now_ns  # until the last change of capacity; that change

    def __repr__(self) -> str:
        return f"Resource({self.name!r}, {self.capacity:g}/s)"


class Demand:
    """How much of which resources one unit of work takes, with what weight and at which rate at most."""

    __slots__ = ("cap", "coefficients", "number", "uses", "weight")

    def __init__(self, number: int, uses: tuple[tuple[Resource, float], ...], weight: float, cap: float) -> None:
        self.number, self.uses, self.weight, self.cap = number, uses, weight, cap
        self.coefficients = {resource.number: coefficient for resource, coefficient in uses}


class Activity:
    """So much work on its way."""

    __slots__ = ("_component", "_done", "_left", "_number", "_rate", "demand", "work")

    def __init__(self, number: int, work: int, demand: Demand, done: Callable[[], object]) -> None:
        self.work, self.demand = work, demand
        self._number, self._left, self._done = number, float(work), done
        self._rate = 0.0
        self._component: _Component | None = None


class _Component:
    """Activities whose rates depend on each other, as they have been since `since_ns`."""

    __slots__ = ("activities", "end", "since_ns")

    def __init__(self, activities: list[Activity], since_ns: int) -> None:
        self.activities, self.since_ns = activities, since_ns
        self.end: _End | None = None  # the first among them


class _End:
    """The moment at which components that were solved together have their first end: one event for all of them."""

    __slots__ = ("components", "left", "token")

    def __init__(self) -> None:
        self.components: list[_Component] = []
        self.left = 0  # those that have not been solved anew since
        self.token = 0


class Fluid:
    """The activities of a world and what they share. Those that end together do so as they began."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._resources: list[Resource] = []
        self._numbers = count()
        self._demands: dict[object, Demand] = {}
        self._loose: dict[Activity, None] = {}  # in no component until this instant's changes are all in
        self._settling: int | None = None  # the token of the event that ends this instant's changes
        self._solved: dict[tuple[int, ...], tuple[list[float], list[list[int]]]] = {}
        self._remembered = 0

    def resource(self, name: str, capacity: float) -> Resource:
        """A new resource of `capacity` units per second. InvalidData: negative or not finite."""
        _check_capacity(name, capacity)
        resource = Resource(name, len(self._resources), float(capacity), self.loop.now_ns)
        self._resources.append(resource)
        return resource

    def set_capacity(self, resource: Resource, capacity: float) -> None:
        """From now on; at 0 all who need the resource wait. InvalidData: negative or not finite."""
        _check_capacity(resource.name, capacity)
        if capacity == resource.capacity:
            return
        resource._could += resource.capacity * (self.loop.now_ns - resource._changed_ns) / 1e9
        resource._changed_ns = self.loop.now_ns
        resource.capacity = float(capacity)
        self._forget()
        self._loosen(resource)

    def demand(self, uses: Mapping[Resource, float], *, weight: float = 1.0, cap: float = inf) -> Demand:
        """What many activities of one kind ask for, made once for `start_on`.

        `uses`: units of each resource per unit of work. InvalidData: one of them, the weight or the cap is not above 0,
        or nothing bounds the rate.
        """
        for resource, coefficient in uses.items():
            if not 0 <= coefficient < inf:
                raise InvalidData(f"{coefficient} of {resource.name!r} per unit of work must be finite and at least 0")
        if not 0 < weight < inf:
            raise InvalidData(f"weight={weight} of an activity must be finite and above 0")
        if not cap > 0:
            raise InvalidData(f"cap={cap} of an activity must be above 0 units of work per second")
        order = sorted(((r, float(a)) for r, a in uses.items() if a), key=lambda use: use[0].number)
        if not order and cap == inf:
            raise InvalidData("an activity that uses nothing must have a cap, else it would take no time")
        key = (tuple((r.number, a) for r, a in order), weight, cap)
        demand = self._demands.get(key)
        if demand is None:
            if len(self._demands) >= REMEMBERED_DEMANDS:
                self._demands.clear()
            demand = self._demands[key] = Demand(next(self._numbers), tuple(order), weight, cap)
        return demand

    def start(
        self,
        work: int,
        uses: Mapping[Resource, float],
        done: Callable[[], object],
        *,
        weight: float = 1.0,
        cap: float = inf,
    ) -> Activity:
        """Begin `work` units of work and call `done` when they are finished. Raises as `demand` and `start_on` do."""
        return self.start_on(self.demand(uses, weight=weight, cap=cap), work, done)

    def start_on(self, demand: Demand, work: int, done: Callable[[], object]) -> Activity:
        """As `start`. InvalidData: `work` is no whole number of at least 0; half a unit counts as nothing left."""
        if not 0 <= work < inf or work != int(work):
            raise InvalidData(f"work={work} must be a whole number of at least 0; take a unit that is fine enough")
        activity = Activity(next(self._numbers), work, demand, done)
        now_ns = self.loop.now_ns
        for resource, _ in demand.uses:
            if resource._users:
                self._loosen(resource)
            else:
                resource._since_ns = now_ns
            resource._users[activity] = None
        self._loose[activity] = None
        self._settle_soon()
        return activity

    def cancel(self, activity: Activity) -> None:
        """End it without calling `done`; what it has done stays counted. One that has ended is left as it is."""
        activity._done = _nothing
        if activity._component is not None:
            self._dissolve(activity._component)
        if activity in self._loose:
            self._leave(activity)
            self._settle_soon()

    def set_cap(self, activity: Activity, cap: float) -> None:
        """Bound its rate anew, in units of work per second. InvalidData: not above 0."""
        demand = activity.demand
        activity.demand = self.demand(dict(demand.uses), weight=demand.weight, cap=cap)
        if activity._component is not None:
            self._dissolve(activity._component)
            self._settle_soon()

    def remaining(self, activity: Activity) -> int:
        """Units of work left, to the nearest whole one."""
        return round(self._left(activity))

    def rate(self, activity: Activity) -> float:
        """Units of work per second, now."""
        self._settle_now()
        return activity._rate

    def credit(self, resource: Resource, work: float) -> None:
        """Count what passed `resource` without being an activity."""
        resource._given += work

    def usage(self, resource: Resource) -> Usage:
        """What `resource` has given until now."""
        now_ns = self.loop.now_ns
        busy_ns = resource._busy_ns + (now_ns - resource._since_ns if resource._users else 0)
        could = resource._could + resource.capacity * (now_ns - resource._changed_ns) / 1e9
        work = resource._given
        for activity in resource._users:
            work += activity.demand.coefficients[resource.number] * (activity.work - self._left(activity))
        return Usage(work, busy_ns / 1e9, work / could if could else 0.0)

    def stalled(self) -> list[str]:
        """The resources without capacity that somebody waits for."""
        return [r.name for r in self._resources if r.capacity == 0 and r._users]

    def check_stall(self) -> None:
        """To be called when nothing is left to happen: raises Deadlock where activities wait all the same."""
        if stalled := self.stalled():
            waiting = ", ".join(f"{r.name} ({len(r._users)} waiting)" for r in self._resources if r.name in stalled)
            raise Deadlock(f"stalled at {self.loop.now_s:.6f} s: no capacity at {waiting}; give it some, or cancel")

    def _left(self, activity: Activity) -> float:
        component = activity._component
        if component is None:
            return activity._left
        return max(0.0, activity._left - activity._rate * (self.loop.now_ns - component.since_ns) / 1e9)

    def _loosen(self, resource: Resource) -> None:
        """All users of a resource are in one component, or none is in any."""
        for activity in resource._users:
            if activity._component is not None:
                self._dissolve(activity._component)
                self._settle_soon()
            break

    def _dissolve(self, component: _Component) -> None:
        """Bring its activities up to now, and let the end of this instant find their new rates."""
        seconds = (self.loop.now_ns - component.since_ns) / 1e9
        for activity in component.activities:
            left = activity._left - activity._rate * seconds
            activity._left = left if left > 0 else 0.0
            activity._component = None
            self._loose[activity] = None
        if (end := component.end) is not None:
            component.end = None
            end.left -= 1
            if not end.left:
                self.loop.cancel(end.token)

    def _leave(self, activity: Activity) -> None:
        del self._loose[activity]
        activity._rate = 0.0
        progress = activity.work - activity._left
        for resource, coefficient in activity.demand.uses:
            resource._given += coefficient * progress
            del resource._users[activity]
            if not resource._users:
                resource._busy_ns += self.loop.now_ns - resource._since_ns

    def _settle_soon(self) -> None:
        if self._settling is None:
            self._settling = self.loop.post(0, self._settle)

    def _settle_now(self) -> None:
        if self._settling is not None:
            self.loop.cancel(self._settling)
            self._settle()

    def _settle(self) -> None:
        """Give every loose activity its component, its rate and its end."""
        self._settling = None
        loose = sorted(self._loose, key=_number_of_demand)
        self._loose.clear()
        key = tuple([activity.demand.number for activity in loose])
        found, parts = self._solved.get(key) or self._solve(key, loose)
        now_ns = self.loop.now_ns
        ends: dict[int, _End] = {}
        for part in parts:
            component = _Component([loose[i] for i in part], now_ns)
            first_s = inf
            for i, activity in zip(part, component.activities, strict=True):
                activity._component, activity._rate = component, found[i]
                if activity._left < found[i] * first_s:
                    first_s = activity._left / found[i]
                elif not activity._left:
                    first_s = 0.0
            if first_s * 1e9 < FOREVER_NS:
                after_ns = round(first_s * 1e9)
                end = ends.get(after_ns)
                if end is None:
                    end = ends[after_ns] = _End()
                    end.token = self.loop.post(after_ns, self._complete, end)
                component.end = end
                end.components.append(component)
                end.left += 1

    def _solve(self, key: tuple[int, ...], loose: list[Activity]) -> tuple[list[float], list[list[int]]]:
        demands = [activity.demand for activity in loose]
        uses = [demand.coefficients for demand in demands]
        capacity = {r.number: r.capacity for demand in demands for r, _ in demand.uses}
        found = rates(uses, capacity, [demand.weight for demand in demands], [demand.cap for demand in demands])
        if self._remembered > REMEMBERED_RATES:
            self._forget()
        self._remembered += len(key)
        solution = self._solved[key] = found, components(uses)
        return solution

    def _forget(self) -> None:
        self._solved.clear()
        self._remembered = 0

    def _complete(self, end: _End) -> None:
        """End all that has less left than half a unit, or than a nanosecond takes."""
        ended: list[Activity] = []
        for component in end.components:
            if component.end is not end:
                continue  # solved anew meanwhile
            component.end = None
            self._dissolve(component)
            few = [a for a in component.activities if a._left < 0.5 or a._left * 1e9 <= a._rate]
            for activity in few:
                activity._left = 0.0
                self._leave(activity)
            if len(few) < len(component.activities):
                self._settle_soon()
            ended += few
        for activity in sorted(ended, key=_number) if len(ended) > 1 else ended:
            activity._done()


def _check_capacity(name: str, capacity: float) -> None:
    if not 0 <= capacity < inf:
        raise InvalidData(f"capacity={capacity} of {name!r} must be finite and at least 0 units per second")


def _number_of_demand(activity: Activity) -> int:
    return activity.demand.number


def _number(activity: Activity) -> int:
    return activity._number


def _nothing() -> None: ...
