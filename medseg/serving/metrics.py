"""Counters of a service in Prometheus's text format. They say how much and how long, never of whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

_PHASES = ("receive", "read", "compute", "total")


@dataclass
class Metrics:
    """What a service has done since it began; changed and read in one thread.

    Attributes:
        answers: number of answers by status of HTTP.
        seconds: sum per phase over the answers with a mask: receive, read, compute, total.
        bytes_in: of bodies received whole.
        gone: clients that left before their answer.
    """

    answers: Counter[int] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    bytes_in: int = 0
    gone: int = 0

    def text(self, *, busy: int, waiting: int, queue: int) -> str:
        """The page that a Prometheus server reads.

        Args:
            busy: requests now, from the first byte of a body to its mask.
            waiting: those of them whose body is here and whose scan is not being computed yet.
            queue: the most there may be.
        """
        lines = ["# TYPE medseg_answers_total counter"]
        lines += [
            f'medseg_answers_total{{status="{status}"}} {count}' for status, count in sorted(self.answers.items())
        ]
        lines += ["# TYPE medseg_mask_seconds_total counter"]
        lines += [f'medseg_mask_seconds_total{{phase="{phase}"}} {self.seconds[phase]:.3f}' for phase in _PHASES]
        plain = {
            ("medseg_body_bytes_total", "counter"): self.bytes_in,
            ("medseg_clients_gone_total", "counter"): self.gone,
            ("medseg_requests_now", "gauge"): busy,
            ("medseg_requests_waiting", "gauge"): waiting,
            ("medseg_queue_limit", "gauge"): queue,
        }
        for (name, kind), value in plain.items():
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"
