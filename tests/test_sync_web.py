"""`SyncEngine` in web programs: handlers that are no coroutines, in the threads of their servers."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import flask
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from werkzeug.serving import make_server

from shardengine import EngineStoppedError, Entry, Put, SyncEngine, encode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have a successor of httpx
    from starlette.testclient import TestClient

REQUESTS = 60


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SyncEngine]:
    with SyncEngine(tmp_path / "db", shards=2) as db:
        yield db


class Counter:
    """A log of one's own: puts what is asked for, at the next index."""

    def __init__(self, db: SyncEngine) -> None:
        self.db = db
        self._turn = threading.Lock()

    def put(self, key: str) -> str:
        with self._turn:
            (result,) = self.db.apply_chunk(
                [Entry(self.db.last_applied().index + 1, 1, encode(Put(key.encode(), b"of " + key.encode())))]
            )
            return str(result.index)

    def get(self, key: str) -> str:
        return (self.db.get(key.encode()) or b"nothing").decode()


def flask_app(counter: Counter) -> flask.Flask:
    app = flask.Flask("counter")
    app.add_url_rule("/put/<key>", "put", counter.put)
    app.add_url_rule("/get/<key>", "get", counter.get)
    return app


def starlette_app(counter: Counter) -> Starlette:
    def put(request: Request) -> Response:
        return PlainTextResponse(counter.put(request.path_params["key"]))

    def get(request: Request) -> Response:
        return PlainTextResponse(counter.get(request.path_params["key"]))

    async def here(request: Request) -> Response:
        """In the loop of the server, which waits."""
        return PlainTextResponse(f"{counter.get('k')} {len(counter.db.digest())}")

    return Starlette(routes=[Route("/put/{key}", put), Route("/get/{key}", get), Route("/here", here)])


def test_flask_handlers_read_and_write(db: SyncEngine) -> None:
    app = flask_app(Counter(db))
    app.testing = True  # what a handler raises comes out
    client = app.test_client()
    assert client.get("/get/k").text == "nothing"
    assert client.get("/put/k").text == "1"
    assert client.get("/get/k").text == "of k"
    db.stop()
    with pytest.raises(EngineStoppedError):
        client.get("/get/k")


def test_a_server_with_threads_serves_many_at_once(db: SyncEngine) -> None:
    server = make_server("127.0.0.1", 0, flask_app(Counter(db)), threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()

    def fetch(path: str) -> str:
        with urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as answer:
            return str(answer.read().decode())

    def visit(number: int) -> int:
        index = int(fetch(f"/put/k{number}"))
        assert fetch(f"/get/k{number}") == f"of k{number}"
        return index

    try:
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(visit, range(REQUESTS))) == list(range(1, REQUESTS + 1))
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
    assert len(db) == REQUESTS


def test_starlette_handlers_that_are_no_coroutines_read_and_write(db: SyncEngine) -> None:
    with TestClient(starlette_app(Counter(db))) as client:
        assert client.get("/get/k").text == "nothing"
        assert client.get("/put/k").text == "1"
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: client.get("/get/k").text, range(REQUESTS)))
        assert found == ["of k"] * REQUESTS
        assert client.get("/here").text == "of k 16"
