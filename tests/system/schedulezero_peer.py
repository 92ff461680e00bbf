"""A peer that speaks a ScheduleZero server's side of both its protocols, as measured there.

`python -m tests.system.schedulezero_peer HTTP_PORT ZMQ_PORT` serves until it is killed. To
handlers it is a REQ socket: no request_id, a ping before a connection is used again that must
say `success: true`, ten seconds for a reply, three tries, the raw reply recorded. From handlers
it takes ping, register and report_status. It keeps nothing, so that a restart forgets all.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import zmq
import zmq.asyncio
from aiohttp import web

TRIES = 3
REPLY_WITHIN_S = 10
Record = dict[str, Any]


class Peer:
    """The handlers it knows, its connections to them, and its executions, oldest first."""

    def __init__(self) -> None:
        self.context = zmq.asyncio.Context()
        self.handlers: dict[str, Record] = {}
        self.sockets: dict[str, zmq.asyncio.Socket] = {}
        self.records: list[Record] = []
        self.schedules: dict[str, asyncio.Task[None]] = {}
        self.jobs: dict[str, tuple[str, str, Record, str]] = {}
        self.turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def register_forever(self, port: int) -> None:
        """Answer handlers on one REP socket."""
        socket = self.context.socket(zmq.REP)
        socket.bind(f"tcp://127.0.0.1:{port}")
        while True:
            request = json.loads(await socket.recv_string())
            await socket.send_string(json.dumps(self.answer(request)))

    def answer(self, request: Record) -> Record:
        """The reply to ping, register and report_status."""
        params = request.get("params", {})
        name = params.get("handler_id")
        match request.get("method"):
            case "ping":
                return {"success": True, "message": "pong"}
            case "register":
                self.drop(name)
                self.handlers[name] = {"address": params["address"], "methods": params["methods"]}
                return {"success": True, "handler_id": name, "status": "registered"}
            case "report_status" if name in self.handlers:
                if params["status"] == "offline":
                    self.drop(name)
                return {"success": True, "handler_id": name, "status": params["status"]}
            case "report_status":
                return {"success": False, "error": "Handler not registered"}
        return {"success": False, "error": "Unknown method"}

    def drop(self, name: str) -> None:
        """Close the connection to a handler, if there is one."""
        if name in self.sockets:
            self.sockets.pop(name).close(linger=0)

    async def call(self, name: str, method: str, params: Record) -> Record:
        """One call over the handler's connection, in turn; one that does not end drops it."""
        async with self.turns[name]:
            return await self._call(name, method, params)

    async def _call(self, name: str, method: str, params: Record) -> Record:
        try:
            if name in self.sockets:
                pong = await self._exchange(name, "ping", {})
                if not pong.get("success"):
                    raise ConnectionError(f"Ping failed: {pong.get('error')}")
            else:
                self.sockets[name] = self.context.socket(zmq.REQ)
                self.sockets[name].connect(self.handlers[name]["address"])
            return await self._exchange(name, method, params)
        except BaseException:  # cancelled too: its reply would be taken for the next call's
            self.drop(name)
            raise

    async def _exchange(self, name: str, method: str, params: Record) -> Record:
        socket = self.sockets[name]
        await socket.send_string(json.dumps({"method": method, "params": params}))
        async with asyncio.timeout(REPLY_WITHIN_S):
            reply: Record = json.loads(await socket.recv_string())
        return reply

    async def execute(self, name: str, method: str, params: Record, job_id: str) -> Record:
        """Call up to three times, and record what came of it."""
        record: Record = {"job_id": job_id, "handler_id": name, "method_name": method}
        record |= {"started_at": datetime.now(UTC).isoformat(), "status": "running"}
        self.records.append(record)
        for attempt in range(TRIES):
            try:
                reply = await self.call(name, method, params)
                if reply.get("success") is False:
                    raise RuntimeError(f"Handler returned error: {reply.get('error')}")
            except (RuntimeError, ConnectionError, TimeoutError) as error:
                record |= {"status": "retry", "error": str(error)}
                if attempt + 1 < TRIES:
                    await asyncio.sleep(attempt + 1)
            else:
                record |= {"status": "success", "result": reply, "error": None}
                return record
        record["status"] = "error"
        return record

    async def tick(self, trigger: Record, job: tuple[str, str, Record, str]) -> None:
        """Fire once at a date; or at once, and again at each interval."""
        if trigger["type"] == "date":
            at = datetime.fromisoformat(trigger["run_date"])
            await asyncio.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds()))
            await self.execute(*job)
            return
        while True:
            await self.execute(*job)
            await asyncio.sleep(float(trigger.get("seconds", 3600)))

    def refused(self, body: Record, *needed: str) -> web.Response | None:
        """The answer to a body that cannot be carried out."""
        if missing := [name for name in needed if name not in body]:
            return failure(400, f"Missing required fields: {missing}")
        if body["handler_id"] not in self.handlers:
            return failure(404, f"Handler '{body['handler_id']}' not registered.")
        if body["job_method"] not in self.handlers[body["handler_id"]]["methods"]:
            return failure(400, f"Method '{body['job_method']}' not exposed.")
        return None

    async def schedule(self, request: web.Request) -> web.Response:
        """POST /api/schedule."""
        body = await request.json()
        if refusal := self.refused(body, "handler_id", "job_method", "job_params", "trigger"):
            return refusal
        job_id = body.get("job_id") or f"job-{len(self.schedules)}"
        job = (body["handler_id"], body["job_method"], body["job_params"], job_id)
        self.jobs[job_id] = job
        self.schedules[job_id] = asyncio.create_task(self.tick(body["trigger"], job))
        return web.json_response({"status": "success", "job_id": job_id}, status=201)

    async def list_schedules(self, request: web.Request) -> web.Response:
        """GET /api/schedules: without its trigger in full."""
        told = {"next_fire_time": None, "trigger": "Trigger(…)"}
        listed = [{"id": name, "args": job, **told} for name, job in self.jobs.items()]
        return web.json_response({"schedules": listed, "count": len(listed)})

    async def unschedule(self, request: web.Request) -> web.Response:
        """DELETE /api/schedules/{id}."""
        self.schedules.pop(request.match_info["id"]).cancel()
        self.jobs.pop(request.match_info["id"])
        return web.json_response({"status": "success"})

    async def run_now(self, request: web.Request) -> web.Response:
        """POST /api/run_now."""
        body = await request.json()
        if refusal := self.refused(body, "handler_id", "job_method", "job_params"):
            return refusal
        job = (body["handler_id"], body["job_method"], body["job_params"])
        record = await self.execute(*job, "immediate")
        if record["status"] == "error":
            return failure(500, f"Failed to execute job: {record['error']}")
        return web.json_response({"status": "success", "result": record["result"]})

    async def executions(self, request: web.Request) -> web.Response:
        """GET /api/executions: `job_id` is ignored where `handler_id` is given."""
        key = next((k for k in ("handler_id", "job_id") if k in request.query), "")
        found = [r for r in self.records if not key or r[key] == request.query[key]]
        newest = found[::-1][: int(request.query.get("limit", "100"))]
        return web.json_response({"records": newest, "count": len(newest)})

    async def list_handlers(self, request: web.Request) -> web.Response:
        """GET /api/handlers."""
        listed = [{"id": name, **known} for name, known in self.handlers.items()]
        return web.json_response({"handlers": listed})

    async def health(self, request: web.Request) -> web.Response:
        """GET /api/health."""
        return web.json_response({"status": "ok", "service": "ScheduleZero"})


def failure(status: int, reason: str) -> web.Response:
    """An error answer; a reason that no status line can carry becomes `Unknown`."""
    sayable = reason.isascii() and reason.isprintable()
    message = reason if sayable else "Unknown"
    return web.json_response({"error": {"code": status, "message": message}}, status=status)


async def main(http_port: int, zmq_port: int) -> None:
    """Serve both protocols on loopback."""
    peer, app = Peer(), web.Application()
    app.router.add_get("/api/health", peer.health)
    app.router.add_get("/api/handlers", peer.list_handlers)
    app.router.add_get("/api/executions", peer.executions)
    app.router.add_post("/api/schedule", peer.schedule)
    app.router.add_get("/api/schedules", peer.list_schedules)
    app.router.add_delete("/api/schedules/{id}", peer.unschedule)
    app.router.add_post("/api/run_now", peer.run_now)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", http_port).start()
    await peer.register_forever(zmq_port)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
