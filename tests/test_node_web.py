"""Handlers of a web application propose at the same time: each gets its own answer, and a bad command fails alone."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shardengine import BadEntryError, encode
from shardengine.node import Node
from tests.machines import Add, Ledger
from tests.nodes import CONFIG

REQUESTS = 3000
BAD = 1234


async def handler(request: Request) -> Response:
    number = int(request.path_params["number"])
    command = b"\xc1 no command" if number == BAD else encode(Add(b"counter", 1))
    try:
        result = await request.app.state.node.propose(command)
    except BadEntryError as error:
        return JSONResponse({"error": error.message}, 400)
    return JSONResponse({"index": result.index, "value": result.value})


async def test_three_thousand_handlers_propose_at_once_and_one_bad_command_fails_alone(tmp_path: Path) -> None:
    app = Starlette(routes=[Route("/{number}", handler, methods=["POST"])])
    async with Node(tmp_path / "data", machine=Ledger, shards=2, config=CONFIG) as node:
        app.state.node = node
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answers = await asyncio.gather(*(client.post(f"/{number}") for number in range(REQUESTS)))
        assert [number for number, answer in enumerate(answers) if answer.status_code != 200] == [BAD]
        assert "no command" in json.loads(answers.pop(BAD).content)["error"]
        results = [json.loads(answer.content) for answer in answers]
        assert sorted(result["index"] for result in results) == list(range(1, REQUESTS))
        assert all(result["value"] == result["index"] for result in results), "each is the answer to its own entry"
        assert await node.get(b"counter") == b"%d" % (REQUESTS - 1)
        assert node.status().position < REQUESTS / 10
