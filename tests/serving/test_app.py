"""The routes without a socket: what is asked, what comes back, and that nothing is left."""

import asyncio
import gzip
import json

import httpx
import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.config.sections import InferSection
from medseg.inference.engine import Engine
from medseg.runner.pool import outcome_of
from medseg.runner.worker import Reply, call
from medseg.serving.access import Access, host_name, is_loopback
from medseg.serving.app import build_app
from medseg.serving.limits import ServiceLimits
from medseg.serving.scan import read_upload
from medseg.serving.service import Service
from medseg.serving.spool import Spool
from tests.inference.stand_ins import threshold_model
from tests.synthetic import scan, write_scan

LIMITS = ServiceLimits(queue=2, max_body_bytes=1 << 20, max_voxels=10**6, grace_seconds=0.2)
HERE = "http://127.0.0.1:8000"


def read(case_id, upload):
    return outcome_of(case_id, call(read_upload, upload), 0.0)


def with_service(talk, *, read=read, token=None, limits=LIMITS, folder, base=HERE):
    """Runs ``talk(client, service)``; afterwards no file and no place is taken."""

    async def run():
        engine = Engine([threshold_model()], InferSection(mirror=False), device=torch.device("cpu"))
        with Spool(folder) as spool:
            async with Service(engine, limits=limits, spool=spool, read=read) as service:
                transport = httpx.ASGITransport(build_app(service, Access(token)))
                async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                    result = await talk(client, service)
                while service.busy:
                    await asyncio.sleep(0.01)
                assert len(spool) == 0
        assert list(folder.iterdir()) == []
        return result

    return asyncio.run(run())


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    image, _ = write_scan(scan("oblique_flipped"), tmp_path_factory.mktemp("scan"))
    return image.read_bytes()


def answered(body, folder, *, path="/segment", method="POST", headers=None, **more):
    async def talk(client, _service):
        return await client.request(method, path, content=body, headers=headers)

    return with_service(talk, folder=folder, **more)


def test_a_scan_gives_its_mask_on_its_own_grid(tmp_path, body):
    answer = answered(body, tmp_path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/gzip")
    assert answer.headers["content-disposition"] == 'attachment; filename="mask.nii.gz"'
    mask, truth = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)), scan("oblique_flipped")
    assert np.allclose(mask.affine, truth.affine, atol=1e-5)
    drawn = np.asarray(mask.dataobj)
    assert (drawn[truth.image > 450] == 2).all()
    assert drawn[truth.image < 150].max() == 0
    volumes = json.loads(answer.headers["x-medseg-volume-ml"])
    assert volumes["lesion"] == pytest.approx((drawn == 2).sum() * 0.002, abs=1e-3)  # voxels of 1 x 1 x 2 mm


def test_a_format_is_chosen_by_the_query(tmp_path, body):
    answer = answered(body, tmp_path, path="/segment?format=nrrd")
    assert answer.content.startswith(b"NRRD")
    assert 'filename="mask.nrrd"' in answer.headers["content-disposition"]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b"x" * (1 << 20) + b"x"}, 413, "is larger than 1 MiB"),
        ({"content": b""}, 422, "is empty"),
        ({"content": b"hello"}, 422, "is text, expected NIfTI"),
        ({"content": b"PK\x03\x04 no zip"}, 422, "is no whole zip"),
        ({"content": b"x", "headers": {"content-encoding": "gzip"}}, 415, "Content-Encoding"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=y"}}, 415, "is a form"),
        ({"content": b"x", "headers": {"origin": "https://example.org"}}, 403, "web page"),
        ({"content": b"x", "headers": {"host": "rebound.example.org"}}, 403, "foreign name"),
        ({"content": b"x", "url": "/segment?format=exe"}, 400, "format= one of"),
        ({"content": b"x", "url": "/segment?model=/etc"}, 400, "format= one of"),
        ({"content": b"x", "url": "/segment?format=nrrd&format=png"}, 400, "format= one of"),
        ({"content": b"x", "headers": {"transfer-encoding": "chunked", "content-length": "1"}}, 400, "one of them"),
        ({"content": b"x", "url": "/segment/"}, 404, "none of"),
        ({"url": "/elsewhere"}, 404, "expected|none of"),
        ({"url": "/health", "method": "DELETE"}, 405, "none of"),
    ],
)
def test_a_refusal_is_one_sentence(tmp_path, request_, status, words):
    async def talk(client, _service):
        return await client.request(**{"method": "POST", "url": "/segment", **request_})

    answer = with_service(talk, folder=tmp_path)
    assert answer.status_code == status
    sentence = answer.json()["error"]
    assert words.split("|")[-1] in sentence
    assert str(tmp_path) not in sentence


def test_a_scan_beyond_the_voxel_limit_is_refused_by_its_header(tmp_path, body):
    answer = answered(body, tmp_path, limits=ServiceLimits(max_voxels=1000))
    assert answer.status_code == 422
    assert "expected at most 1,000" in answer.json()["error"]


def test_a_slow_body_and_one_of_unknown_length(tmp_path):
    async def stopping():
        yield b"x" * 10
        await asyncio.sleep(5)
        yield b"x"

    async def endless():
        for _ in range(40):
            yield b"x" * 100_000

    async def talk(client, _service):
        return [await client.post("/segment", content=body()) for body in (stopping, endless)]

    slow, large = with_service(talk, folder=tmp_path)
    assert slow.status_code == 408
    assert "too slowly (10 bytes" in slow.json()["error"]
    assert large.status_code == 413


def test_a_full_service_answers_429_and_then_goes_on(tmp_path, body):
    async def talk(client, service):
        asked = [asyncio.create_task(client.post("/segment", content=body)) for _ in range(6)]
        answers = await asyncio.gather(*asked)
        return answers, (await client.get("/metrics")).text, (await client.post("/segment", content=body)).status_code

    answers, page, later = with_service(talk, folder=tmp_path)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert all(answer.headers["retry-after"] == "5" for answer in answers if answer.status_code == 429)
    assert later == 200
    assert 'medseg_answers_total{status="429"} 4' in page.splitlines()
    assert "medseg_requests_now 0" in page.splitlines()


def test_a_crashed_reader_is_that_request_s_fault_and_a_broken_disk_is_ours(tmp_path, body):
    died = answered(body, tmp_path, read=lambda name, _: outcome_of(name, Reply("died", error="x", exit_code=1), 0.0))
    assert (died.status_code, "crashed" in died.json()["error"]) == (422, True)
    disk = answered(body, tmp_path, read=lambda name, _: outcome_of(name, Reply("failed", error="x", exit_code=1), 0.0))
    assert (disk.status_code, disk.headers["retry-after"]) == (503, "30")


def test_a_fault_of_ours_is_told_without_its_text(tmp_path, body, caplog):
    def broken(_case_id, _upload):
        raise ZeroDivisionError("text that may hold a header")

    answer = answered(body, tmp_path, read=broken)
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]
    assert "header" not in answer.text


def test_a_client_that_leaves_while_it_waits_is_forgotten(tmp_path, body):
    async def talk(client, service):
        await service._in_memory.acquire()
        await service._in_memory.acquire()
        asked = asyncio.create_task(client.post("/segment", content=body))
        while not service.waiting:
            await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        while service.busy:
            await asyncio.sleep(0.01)
        service._in_memory.release()
        service._in_memory.release()
        return service.waiting

    assert with_service(talk, folder=tmp_path) == 0


def test_a_token_is_asked_for_everywhere_but_health(tmp_path, body):
    async def talk(client, _service):
        paths = ("/health", "/metrics", "/model")
        without = [(await client.get(path)).status_code for path in paths]
        wrong = await client.post("/segment", content=body, headers={"authorization": "Bearer " + "b" * 16})
        right = await client.get("/model", headers={"authorization": "Bearer " + "a" * 16})
        return without, wrong, right

    without, wrong, right = with_service(talk, folder=tmp_path, token="a" * 16, base="http://elsewhere:80")
    assert without == [200, 401, 401]
    assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
    assert right.json()["labels"] == {"background": [0], "organ": [1], "lesion": [2]}


def test_a_token_of_any_letters(tmp_path):
    token = "schlüssel-für-die-klinik"
    sent = {"authorization": b"Bearer " + token.encode()}
    assert answered(None, tmp_path, path="/model", method="GET", token=token, headers=sent).status_code == 200
    sent["authorization"] = b"Bearer " + token.encode("latin-1")
    assert answered(None, tmp_path, path="/model", method="GET", token=token, headers=sent).status_code == 401


def test_a_stopping_service_says_so(tmp_path, body):
    async def talk(client, service):
        service.stopping = True
        return await client.get("/health"), await client.post("/segment", content=body)

    health, answer = with_service(talk, folder=tmp_path)
    assert (health.status_code, health.json(), answer.status_code) == (503, {"status": "stopping"}, 503)


@pytest.mark.parametrize(
    ("host", "name", "here"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("::1", "::1", True),
        ("localhost", "localhost", True),
        ("127.0.0.1.evil.org:80", "127.0.0.1.evil.org", False),
        ("0.0.0.0", "0.0.0.0", False),
        ("", "", False),
    ],
)
def test_names_of_this_machine(host, name, here):
    assert host_name(host) == name
    assert is_loopback(name) is here
