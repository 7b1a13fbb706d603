"""Driver: the flags of `atoll workload`."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from atoll.workload.fit.arrivals import Method
from atoll.workload.fit.model import ArrivalsLaw, LengthsLaw

Source = Literal["", "atoll", "azure", "burstgpt", "mooncake"]


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
