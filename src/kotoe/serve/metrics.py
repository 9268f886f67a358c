"""What a server counts, for Prometheus, and what it writes into its log: no prompts, unless it is told to."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from kotoe.serve.service import Job, Service

log = logging.getLogger("kotoe.serve")
SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record; what was given as `extra={"fields": …}` stands beside its words."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["trace"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def tell(level: int, message: str, **fields: Any) -> None:
    """Write a line into the log."""
    log.log(level, message, extra={"fields": fields})


class Metrics:
    """Of one service. `text` is what Prometheus reads."""

    def __init__(self, service: Service) -> None:
        self.service, self.registry = service, CollectorRegistry()
        within = {"registry": self.registry}
        self.requests = Counter("kotoe_requests", "HTTP requests", ["route", "status"], **within)  # type: ignore[arg-type]
        self.jobs = Counter("kotoe_jobs", "Jobs that ended", ["state"], **within)  # type: ignore[arg-type]
        self.pictures = Counter("kotoe_pictures", "Pictures that were drawn", ["language"], **within)  # type: ignore[arg-type]
        self.latency = Histogram(
            "kotoe_job_seconds", "From taking a job to its end", buckets=SECONDS, registry=self.registry
        )
        self.unkept = Counter("kotoe_not_kept", "Jobs that could not be written to the store", **within)  # type: ignore[arg-type]
        self.draining = Gauge("kotoe_draining", "1 while the server ends", **within)  # type: ignore[arg-type]
        self.draining.set_function(lambda: float(service.draining))
        self.registry.register(_Now(service))  # type: ignore[arg-type]

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def taken(self, job: Job) -> None:
        """A job was taken."""
        words = {"prompt": job.plan[0].prompt} if self.service.settings.log_prompts else {}
        request = job.request
        tell(
            logging.INFO, "job taken", job=job.id, model=job.bundle.name, language=job.plan[0].language,
            pictures=len(job.plan), steps=request.steps, size=f"{request.width}x{request.height}", **words,
        )  # fmt: skip

    def drawn(self, job: Job) -> None:
        """One of its pictures is done."""
        self.pictures.labels(job.plan[0].language).inc()

    def ended(self, job: Job) -> None:
        """A job ended, one way or another."""
        seconds = time.time() - job.created
        self.jobs.labels(job.state).inc()
        self.latency.observe(seconds)
        tell(logging.INFO, "job ended", job=job.id, state=job.state, seconds=round(seconds, 3))

    def failed(self, job: Job, error: BaseException) -> None:
        """Why a job failed; of what isn't its caller's fault, where."""
        from kotoe.errors import UserError

        if isinstance(error, UserError):
            return
        log.error("job failed", exc_info=error, extra={"fields": {"job": job.id, "error": type(error).__name__}})

    def not_kept(self, error: BaseException) -> None:
        """A job that is in memory alone."""
        self.unkept.inc()
        tell(logging.ERROR, "the store can't be written; results are in memory alone", error=str(error))


class _Now:
    """What is counted elsewhere, read when Prometheus asks."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Any:
        """The families."""
        jobs = list(self.service.running.values())
        waiting = sum(job.open for job in jobs)
        yield GaugeMetricFamily("kotoe_pictures_open", "Pictures waiting or being drawn", value=waiting)
        yield GaugeMetricFamily("kotoe_pictures_begun", "Pictures being drawn", value=self.service.drawer.begun)
        calls = self.service.drawer.calls
        total, buckets = 0, []
        for size in sorted(calls):
            total += calls[size]
            buckets.append((str(float(size)), float(total)))
        yield HistogramMetricFamily(
            "kotoe_unet_batch", "Pictures in one call of the UNet",
            buckets=[*buckets, ("+Inf", float(total))], sum_value=float(sum(s * n for s, n in calls.items())),
        )  # fmt: skip
