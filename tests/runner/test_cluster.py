"""Cases over a Dask cluster: the same outcomes as the pool's, whatever becomes of the workers."""

import argparse
import os
from pathlib import Path

import pool_tasks as tasks
import pytest

from medseg.errors import EnvironmentFault, UsageError
from medseg.runner import cluster_worker, run_cases
from medseg.runner.cluster import Cluster, connect
from medseg.runner.cluster_flags import add_cluster_flags, open_cluster
from medseg.runner.cluster_worker import versions
from tests.reliability import cluster_faults
from tests.reliability.cluster_faults import infer, lines, machines, masks, write_model, write_scans

HERE = Path(__file__).parent


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_cluster_flags(parser)
    parser.add_argument("--shard")
    return parser.parse_args(arguments)


def test_no_flag_no_cluster():
    with open_cluster(parsed()) as cluster:
        assert cluster is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster-workers", "2"), "needs --cluster slurm"),
        (("--cluster", "tcp://here:1", "--cluster-workers", "2"), "other clusters have the workers they have"),
        (("--cluster", "slurm", "--cluster-workers", "0"), "expected 1 or more"),
        (("--cluster", "slurm", "--shard", "0/2"), "--shard: is given with --cluster"),
    ],
)
def test_flags_that_make_no_sense(arguments, message):
    with pytest.raises(UsageError, match=message):
        open_cluster(parsed(*arguments))


def test_versions_of_what_computes_have_to_agree():
    assert {"python", "medseg", "numpy", "scipy", "torch"} <= set(versions())


class Strange:
    _get_versions = None

    def sync(self, ask, **_):
        return {"scheduler": {"packages": {"medseg": "1"}}, "workers": {"tcp://there": {"packages": {"medseg": None}}}}


def test_a_worker_without_medseg_ends_the_run_before_it_begins(tmp_path):
    with pytest.raises(EnvironmentFault, match="a worker has no medseg"):
        list(Cluster(Strange()).run_cases(tasks.double, [("one", 1)], folder=tmp_path))


def test_a_worker_without_the_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_worker, "_SEEN_SECONDS", 0.0)
    with pytest.raises(EnvironmentFault, match=r"does not see masks, expected the same folder"):
        cluster_worker.do_case(tasks.double, 1, mark=tmp_path / "masks" / "mark", expected=versions(), level=20)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two workers with nannies, which start a killed one again."""
    import dask
    from distributed import LocalCluster

    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    options = {"distributed.scheduler.allowed-failures": 1, "distributed.nanny.environ": {"PYTHONPATH": path}}
    with dask.config.set(options):
        here = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            memory_limit=0,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        )
        yield here
        here.close()


@pytest.fixture
def cluster(pair, monkeypatch):
    with connect(pair.scheduler_address) as connected:
        yield connected


# Dask's own loops, when a worker of theirs is killed.
quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
@quiet
class TestWorkers:
    def test_outcomes_are_the_pools(self, cluster, tmp_path):
        items = [(f"case {n}", ("fine", n)) for n in range(7)]
        items += [("bad", ("refuse", 0)), ("broken", ("raise", 0)), ("full", ("disk", 0))]
        here = {o.case_id: o for o in run_cases(tasks.misbehave, items, processes=1)}
        there = {o.case_id: o for o in cluster.run_cases(tasks.misbehave, items, folder=tmp_path)}
        plain = ("kind", "value", "error", "exit_code")
        assert {k: [getattr(o, name) for name in plain] for k, o in there.items()} == {
            k: [getattr(o, name) for name in plain] for k, o in here.items()
        }
        assert list(tmp_path.iterdir()) == []

    def test_what_a_case_logs_is_logged_here(self, cluster, tmp_path, caplog):
        list(cluster.run_cases(tasks.log_a_warning, [("one", None)], folder=tmp_path))
        assert [r.getMessage() for r in caplog.records if r.name == "medseg.somewhere"] == ["one: spacing is odd"]

    def test_a_case_that_kills_its_workers_is_given_up_and_the_others_are_done(self, cluster, tmp_path):
        items = [("killer", ("kill", 0)), *((f"case {n}", ("fine", n)) for n in range(6))]
        found = {o.case_id: o for o in cluster.run_cases(tasks.misbehave, items, folder=tmp_path)}
        assert found.pop("killer").kind == "died"
        assert {outcome.kind for outcome in found.values()} == {"ok"}
        assert sorted(outcome.value for outcome in found.values()) == list(range(6))

    def test_another_version_ends_the_run(self, cluster, tmp_path, monkeypatch):
        monkeypatch.setattr("medseg.runner.cluster.versions", lambda: {**versions(), "torch": "0.1"})
        with pytest.raises(EnvironmentFault, match=r"has torch .* \(here 0.1\), expected the same"):
            list(cluster.run_cases(tasks.double, [("one", 1)], folder=tmp_path))

    def test_an_end_in_the_middle_leaves_nothing(self, cluster, tmp_path):
        running = cluster.run_cases(tasks.sleep_seconds, [(str(n), 0.01) for n in range(50)], folder=tmp_path)
        next(running)
        running.close()
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def encrypted(tmp_path):
    """A scheduler and a worker that speak TLS alone, with certificates that Dask's own config names."""
    pytest.importorskip("cryptography")
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    own = Security.temporary()
    files = {"ca.pem": own.tls_ca_file, "cert.pem": own.tls_client_cert, "key.pem": own.tls_client_key}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    ca, cert, key = (str(tmp_path / name) for name in files)
    roles = {f"distributed.comm.tls.{role}": {"cert": cert, "key": key} for role in ("scheduler", "worker", "client")}
    settings = {"distributed.comm.tls.ca-file": ca, "distributed.comm.require-encryption": True} | roles
    with dask.config.set(settings):
        here = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, protocol="tls", dashboard_address=None,
                            security=Security(), memory_limit=0, local_directory=str(tmp_path))  # fmt: skip
        yield here
        here.close()


@pytest.mark.slow
@quiet
class TestEncrypted:
    def test_cases_go_over_tls_with_the_certificates_of_dasks_config(self, encrypted, tmp_path):
        assert encrypted.scheduler_address.startswith("tls://")
        folder = tmp_path / "output"
        folder.mkdir()
        with connect(encrypted.scheduler_address) as cluster:
            outcomes = list(cluster.run_cases(tasks.double, [("a", 1), ("b", 2)], folder=folder))
        assert sorted(outcome.value for outcome in outcomes) == [2, 4]


@pytest.mark.parametrize("by_file", [False, True])
def test_tls_without_certificates_is_refused_before_anything_is_asked(by_file, tmp_path):
    address = "tls://127.0.0.1:9"
    if by_file:
        (tmp_path / "scheduler.json").write_text(f'{{"address": "{address}"}}')
        address = str(tmp_path / "scheduler.json")
    with pytest.raises(EnvironmentFault, match="no certificates for it, expected ca-file"):
        connect(address)


def test_a_scheduler_file_that_is_not_there():
    with pytest.raises(EnvironmentFault, match=r"nowhere\.json is not there"):
        connect("nowhere.json")


@pytest.mark.slow
@quiet
def test_slurm_jobs_are_workers(tmp_path, monkeypatch):
    import dask

    programs = tmp_path / "bin"
    programs.mkdir()
    # As sbatch does, it takes a copy: the script is gone a moment after it returned.
    stand_ins = {
        "sbatch": 'cp "$1" "$OUT/job.sh"\nsetsid bash "$OUT/job.sh" > "$OUT/job.log" 2>&1 &\necho $! > "$OUT/job"\n'
        'echo "Submitted batch job 4711"'
    }
    stand_ins["scancel"] = 'kill -- -$(cat "$OUT/job"); echo "$@" > "$OUT/cancelled"'
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    monkeypatch.chdir(tmp_path)
    settings = {"cores": 1, "memory": "4GB", "walltime": "00:10:00", "interface": "lo"}
    known = {f"jobqueue.slurm.{name}": value for name, value in settings.items()}
    with dask.config.set(known), connect("slurm", workers=1) as cluster:
        outcomes = list(cluster.run_cases(tasks.double, [("a", 1), ("b", 2)], folder=tmp_path / "bin"))
    assert sorted(outcome.value for outcome in outcomes) == [2, 4]
    assert (tmp_path / "cancelled").read_text().strip() == "4711"


@pytest.mark.slow
def test_a_killed_and_a_frozen_worker_lose_nothing(tmp_path):
    found = cluster_faults.run(tmp_path, cases=30)
    assert found.faults == []


@pytest.mark.slow
def test_prepare_infer_and_evaluate_give_what_they_give_alone(tmp_path):
    scans, model = write_scans(tmp_path, 4), write_model(tmp_path / "model")
    with machines(tmp_path / "machines", 2) as made:
        for name, more in (("alone", ()), ("there", ("--cluster", made.address))):
            log = tmp_path / "log"
            assert infer(scans, model, tmp_path / name, *more, log=log).wait(300) == 0, log.read_text()
    assert masks(tmp_path / "alone") == masks(tmp_path / "there")
    assert {line["status"] for line in lines(tmp_path / "there")} == {"ok"}
