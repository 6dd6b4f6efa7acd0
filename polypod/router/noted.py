"""What the router tells of its errands: one count and one span each."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Generator

from polypod import metrics, tracing
from polypod.router.endpoint import Endpoint
from polypod.router.routed import RoutedLive

ENDED = "ended"


@contextlib.contextmanager
def noted(live: RoutedLive, endpoint: Endpoint) -> Generator[None]:
    """The block takes the job to the endpoint; however it ends, that is noted."""
    model, trace, began, outcome = live.model.name, live.job.trace, time.time(), ENDED
    try:
        yield
    except asyncio.CancelledError:
        outcome = "cancelled"
        raise
    except Exception as error:
        outcome = type(error).__name__.lower()
        raise
    finally:
        metrics.errand_ended(model, endpoint.id, outcome)
        about = {"polypod.model": model, "polypod.endpoint": endpoint.id}
        error = "" if outcome == ENDED else outcome
        tracing.span(trace, "errand", began, time.time(), about, error)
