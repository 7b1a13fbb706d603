"""Driver: the flags of `atoll workload`."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tyro.conf import Positional

from atoll.errors import InvalidConfig
from atoll.route.balance import Name
from atoll.workload.api import Targets
from atoll.workload.fit.arrivals import Method
from atoll.workload.fit.model import ArrivalsLaw, LengthsLaw

Source = Literal["", "atoll", "azure", "burstgpt", "mooncake"]
_TARGETS: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "latency": "latency_s"}


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """What a trace is like: requests and failures, rates and bursts, lengths, conversations.

    `window cv` is the coefficient of variation of the gaps between requests within a window: 1 is Poisson, more is
    bursty. Lengths are in tokens, of the requests that were answered.
    """

    file: Positional[Path]
    """A trace, or a model: then of a trace it makes."""
    source: Source = ""
    """The trace's format; by default its first line tells."""
    window: float = 0.0
    """Seconds in a window; 0: 60, or 1200 for a trace of more than six hours."""
    seconds: float = 3600.0
    """Of a model: make a trace that long."""
    seed: int = 1
    """Of a model."""
    plots: Path | None = Path("plots")
    """Where to put the pictures, or none."""
    json: bool = False
    """One JSON object per service, then one for the rows and one for each plot."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """A model of a trace: a small JSON file, for each service with its arrivals, lengths, failures and conversations.

    Every second window is fitted and compared with the others, by Kolmogorov's distance of gaps and lengths (0: the
    same) and by how bursty windows are. Then the model is fitted to all.
    """

    file: Positional[Path]
    """A trace."""
    save: Path | None = None
    """Where to put the model; by default FILE.model.json in this folder."""
    source: Source = ""
    """The trace's format; by default its first line tells."""
    window: float = 0.0
    """Seconds in a window; 0: 60, or 1200 for a trace of more than six hours."""
    arrivals: ArrivalsLaw = "windows"
    """Windows: rate and burstiness of each window in turn. Week: one burstiness, a rate for each hour of the week.
    Gamma, poisson: one of each for all."""
    method: Method = "moments"
    """Moments keep a window's rate and cv; likelihood fits most gaps better and underrates bursts."""
    lengths: LengthsLaw = "joint"
    """Joint: measured answers to prompts of such a length. The others know nothing of the prompt."""
    seed: int = 1
    """Of the traces made to compare."""
    plots: Path | None = Path("plots")
    """Where to put the pictures, or none."""
    json: bool = False
    """One JSON object per law compared, then one for each file written."""


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """A trace in atoll's own format: from another one, or made by a model that `fit` or a person wrote.

    The same input, settings and seed give the same bytes. OUT ending in .gz is packed.
    """

    file: Positional[Path]
    """A trace, or a model."""
    out: Positional[Path]
    """The trace to write."""
    source: Source = ""
    """The trace's format; by default its first line tells."""
    start: float = 0.0
    """Leave out what comes before this second."""
    seconds: float = math.inf
    """Stop after so many seconds from the start, before any scaling; a model needs this or --requests."""
    requests: int = 0
    """Stop after so many requests; 0: no limit."""
    model: str = ""
    """Only requests to this model."""
    service: Literal["", "api", "conversation"] = ""
    """Only those of this service."""
    scale: float = 1.0
    """So many times the rate: a trace is sped up, bursts and all; a model has more requests in bursts of the same
    length."""
    cap_prompt: int = 0
    """No prompt longer than this; 0: no limit."""
    cap_output: int = 0
    """No answer longer than this; 0: no limit."""
    shrink: float = 1.0
    """Divide all lengths by this, for a tiny model."""
    drop_failed: bool = False
    """Leave out requests the source never answered."""
    seed: int = 1
    """Of a model."""
    json: bool = False
    """One JSON object."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Send requests to a server of OpenAI's API as a workload says, and tell how it fared; or to virtual engines, which
    take virtual time.

    Open loop: nobody waits for the answers of others, so a server that falls behind is seen to. Times count from when
    a request was due. What is asked for is a trace, a model of one (`atoll workload fit`), or made: poisson, or bursty
    with gaps of --cv. Prompts are random letters; answers have the lengths of the workload.
    """

    url: Positional[str | None] = None
    """Where the server is, for example http://127.0.0.1:8000."""
    virtual: bool = False
    """Instead of a server: virtual engines, the very scheduler and pool of real ones on what a step is known to take.
    All that comes out is simulated."""
    cost: str = "calib.json"
    """Of virtual engines, what their steps take: a file of `atoll sim calibrate --engine`, or the name of published
    ones: opt-13b-a100, opt-13b-a100-tp2, opt-13b-a100-tp4."""
    engines: int = 1
    """How many virtual engines."""
    balance: Name = "fewest"
    """Which of them gets a request, as of `atoll serve`."""
    max_batch: int = 16
    """Of a virtual engine, as of `atoll serve`: answers that are computed at once."""
    max_waiting: int = 256
    """The same: how many may wait."""
    chunk: int = 64
    """The same: tokens of a step. 0: prompts are read whole."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """The same: what becomes of an answer that must step back."""
    trace: Path | None = None
    """A trace or a model of one."""
    generate: Literal["poisson", "bursty"] = "poisson"
    """What to send without a trace."""
    rate: float = 2.0
    """Generated requests per second."""
    cv: float = 4.0
    """How bursty: the gaps' deviation over their mean; 1 is poisson."""
    prompt: float = 100.0
    """Median tokens of a generated prompt."""
    output: float = 50.0
    """Median tokens of a generated answer."""
    seconds: float = 60.0
    """How long requests are sent."""
    rate_scale: float = 1.0
    """So many times the rate of a trace."""
    shrink: float = 1.0
    """Divide all lengths by this, for a tiny model."""
    slo: str = ""
    """What each request was promised, for example ttft=1s,tpot=100ms,latency=30s."""
    patience: float = 120.0
    """Seconds after which an answer is given up."""
    model: str | None = None
    """Which of the server's models, or of those in the calibration. Default: the first."""
    api_key_file: Path | None = None
    """A file with the key that the server asks for."""
    seed: int = 1
    """Of all that is drawn."""
    plots: Path | None = Path("plots")
    """Where to put the pictures, or none."""
    json: bool = False
    """One JSON object per request, the report last."""

    def __post_init__(self) -> None:
        for name in ("rate", "cv", "prompt", "output", "seconds", "rate_scale", "shrink", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidConfig(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        targets(self.slo)
        if self.virtual == (self.url is not None):
            raise InvalidConfig("give the URL of a server or --virtual, one of the two")
        for name, least, most in (("engines", 1, 4096), ("max_batch", 1, 4096), ("max_waiting", 1, 1 << 20)):
            if not least <= getattr(self, name) <= most:
                raise InvalidConfig(
                    f"--{name.replace('_', '-')} must be from {least} to {most}, not {getattr(self, name)}"
                )
        if not 0 <= self.chunk <= 1 << 20:
            raise InvalidConfig(f"--chunk must be from 0 to {1 << 20}, not {self.chunk}")


def targets(text: str) -> Targets:
    """ "ttft=1s,tpot=100ms". InvalidConfig names what isn't understood."""
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)", part)
        if not match or match[1] not in _TARGETS:
            raise InvalidConfig(f"--slo: {part!r} isn't understood; write ttft=1s, tpot=100ms or latency=30s")
        found[_TARGETS[match[1]]] = float(match[2]) / (1000 if match[3] == "ms" else 1)
    return Targets(**found)
