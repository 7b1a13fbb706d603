"""Policy: a trace as a model: a small JSON file from which requests like it are made, as many as wanted.

After BurstGPT (Wang et al., 2025, arXiv 2401.17644): each service has its own bursts, lengths and failures.
"""

from collections.abc import Iterator
from typing import Final, Literal

import msgspec
import numpy as np

from atoll.errors import InvalidData
from atoll.workload.api import Demand, Service, Workload
from atoll.workload.fit.arrivals import Method, fit_windows, hour_of_week, window_for
from atoll.workload.fit.columns import Column, Columns, jittered
from atoll.workload.fit.conversations import fit_talk, sessions_of
from atoll.workload.fit.failures import fit_failures
from atoll.workload.fit.lengths import fit_empirical, fit_joint, fit_log_normal, fit_zipf
from atoll.workload.generate.conversations import AnswerTime, Conversations, Talk
from atoll.workload.generate.failures import Failures, failing
from atoll.workload.generate.lengths import AnyAnswers, AnyLengths
from atoll.workload.generate.loops import Replay, Together, open_loop, unrolled
from atoll.workload.generate.processes import AnyProcess, Gamma, Poisson, Seasonal, scaled

FORMAT: Final = "atoll-workload"
READING: Final = AnswerTime()
ArrivalsLaw = Literal["windows", "week", "gamma", "poisson"]
LengthsLaw = Literal["joint", "empirical", "log-normal", "zipf"]


class Stream(msgspec.Struct, frozen=True):
    """The requests of one service. With `talk`, `arrivals` are those of sessions, and `prompt` and `output` are not
    used: its own are."""

    service: Service
    arrivals: AnyProcess
    prompt: AnyLengths
    output: AnyAnswers
    failures: Failures = Failures()
    talk: Talk | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What `atoll workload fit` writes; may be written by hand as well, the format first."""

    format: Literal["atoll-workload"] = FORMAT
    version: Literal[1] = 1
    streams: tuple[Stream, ...]

    def workload(self, seed: int, scale: float = 1.0) -> Workload:
        """Without failures: those are for a server to have. `scale`: so many times the rate."""
        return Together([_workload(part, seed, scale) for part in self.streams])

    def trace(self, seed: int, scale: float = 1.0, answer: AnswerTime = READING) -> Iterator[Demand]:
        """The same as a trace without end, with the failures of the source, for answers that take such times."""
        parts = []
        for part in self.streams:
            failures = msgspec.structs.replace(part.failures, mean_rate_per_s=part.failures.mean_rate_per_s * scale)
            demands = unrolled(_workload(part, seed, scale), answer)
            parts.append(Replay(failing(demands, failures, seed, part.service)))
        return unrolled(Together(parts), answer)


def fit_model(
    columns: Columns,
    *,
    begins_s: float = 0.0,
    window_s: float = 0.0,
    method: Method = "moments",
    arrivals: ArrivalsLaw = "windows",
    lengths: LengthsLaw = "joint",
) -> Model:
    """One stream per service. `begins_s`: the time of the week at 0; `window_s` 0: as `window_for` says.

    Raises `InvalidData` for too few requests.
    """
    parts: list[tuple[Service, Columns]] = [
        ("api", columns.where(~columns.conversation)),
        ("conversation", columns.where(columns.conversation)),
    ]
    span_s = float(columns.at_s[-1])
    window_s = window_s or window_for(span_s)
    return Model(
        streams=tuple(
            _fit_stream(service, part, span_s, begins_s, window_s, method, arrivals, lengths)
            for service, part in parts
            if len(part)
        )
    )


def decode(text: bytes) -> Model:
    """Raises `InvalidData`, saying where it is wrong."""
    try:
        return msgspec.json.decode(text, type=Model)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"this is no model of a workload: {error}") from error


def encode(model: Model) -> bytes:
    """JSON that a person can read and change."""
    return msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n"


def _workload(part: Stream, seed: int, scale: float) -> Workload:
    process = scaled(part.arrivals, scale)
    if part.talk:
        return Conversations(process, part.talk, seed, part.service)
    return Replay(open_loop(process, part.prompt, part.output, seed, part.service, part.service))


def _fit_stream(
    service: Service,
    columns: Columns,
    span_s: float,
    begins_s: float,
    window_s: float,
    method: Method,
    arrivals: ArrivalsLaw,
    lengths: LengthsLaw,
) -> Stream:
    answered = columns.where(~columns.failed)
    if not len(answered):
        raise InvalidData(f"none of the {len(columns)} requests of the {service} service was answered")
    output = _fit_answers(answered, lengths)
    talk, at_s = None, columns.at_s
    if service == "conversation" and (found := sessions_of(columns)).turns.max() > 1:
        talk, at_s = fit_talk(columns, output), found.starts_s
    return Stream(
        service,
        _fit_arrivals(jittered(at_s), span_s, begins_s, window_s, method, arrivals),
        _fit_prompts(answered, lengths),
        output,
        fit_failures(columns, window_s),
        talk,
    )


def _fit_arrivals(
    at_s: Column, span_s: float, begins_s: float, window_s: float, method: Method, law: ArrivalsLaw
) -> AnyProcess:
    if span_s <= 0:
        raise InvalidData(f"{len(at_s)} arrivals at one moment have no rate")
    windows = fit_windows(at_s, window_s, method, span_s)
    match law:
        case "windows":
            return windows
        case "poisson":
            return Poisson(len(at_s) / span_s)
        case "gamma":
            return Gamma(len(at_s) / span_s, float(np.median(windows.cvs)))
        case "week":
            weights = hour_of_week(at_s, begins_s, span_s)
            return Seasonal(Gamma(len(at_s) / span_s, float(np.median(windows.cvs))), weights, begins_s=begins_s)


def _fit_prompts(columns: Columns, lengths: LengthsLaw) -> AnyLengths:
    match lengths:
        case "zipf":
            return fit_zipf(columns.prompt)
        case "log-normal":
            return fit_log_normal(columns.prompt)
        case _:
            return fit_empirical(columns.prompt)


def _fit_answers(columns: Columns, lengths: LengthsLaw) -> AnyAnswers:
    match lengths:
        case "joint":
            return fit_joint(columns.prompt, columns.output)
        case "zipf":
            return fit_zipf(columns.output)
        case "log-normal":
            return fit_log_normal(columns.output)
        case _:
            return fit_empirical(columns.output)
