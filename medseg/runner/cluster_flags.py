"""``--cluster`` of the stages that go case by case."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from medseg.errors import UsageError

if TYPE_CHECKING:
    from medseg.runner.cluster import Cluster


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cluster``, ``--cluster-workers`` and ``--cluster-lost``."""
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="do the cases on a Dask cluster: tcp://HOST:PORT, tls://..., FILE.json or slurm",
    )
    group.add_argument("--cluster-workers", type=int, metavar="N", help="SLURM jobs to start [1]")
    group.add_argument(
        "--cluster-lost", type=float, default=60.0, metavar="S", help="a silent worker's cases go to others then [60]"
    )


def open_cluster(args: argparse.Namespace) -> AbstractContextManager[Cluster | None]:
    """The cluster that the flags ask for, connected; None where they ask for none.

    Raises:
        UsageError: flags that don't go together.
        EnvironmentFault: it can't be reached, or Dask is not installed.
    """
    if args.cluster is None:
        if args.cluster_workers is not None:
            raise UsageError("--cluster-workers: needs --cluster slurm")
        return nullcontext()
    if args.cluster_workers is not None and (args.cluster != "slurm" or args.cluster_workers < 1):
        raise UsageError(
            "--cluster-workers: expected 1 or more, and --cluster slurm; other clusters have the workers they have"
        )
    if getattr(args, "shard", None) is not None:
        raise UsageError(
            "--shard: is given with --cluster, expected one of them; the cluster shares the cases out itself"
        )
    from medseg.runner.cluster import connect

    return connect(args.cluster, workers=args.cluster_workers, lost_seconds=args.cluster_lost)
