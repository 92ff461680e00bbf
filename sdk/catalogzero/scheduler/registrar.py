"""The scheduler's ZeroMQ side: handlers register here, and report that they are online.

One JSON text frame a request, as ScheduleZero's server takes it: `ping`, `register`,
`report_status`; the replies are its replies.

A handler that says its boot_id has its handler_id for itself: while one at another address answers,
it is refused. One that says an instance_id too shares the handler_id with those of other names, and
has that name for itself. Those of ScheduleZero say none, and the last one that registers is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import orjson
from sqlalchemy.exc import SQLAlchemyError
from structlog.typing import FilteringBoundLogger

from catalogzero.config.address import Address
from catalogzero.config.seldom import Seldom
from catalogzero.errors import CatalogZeroError, ConfigError, HandlerIdTakenError
from catalogzero.scheduler.models import KnownHandler, KnownInstance
from catalogzero.scheduler.requests import MAX_ID_CHARS
from catalogzero.scheduler.runner import Runner
from catalogzero.wire.calls import MAX_BOOT_ID_CHARS
from catalogzero.wire.carriers import transport_for
from catalogzero.wire.keys import CurveServerSource
from catalogzero.wire.messages import MAX_CALL_BYTES, JsonObject, one_line_ascii
from catalogzero.wire.reporting import Reporter
from catalogzero.wire.transport import Envelope
from catalogzero.wire.waiting import MAX_WAITING, Waiter, Waiting
from catalogzero.wire.zeromq import ZeroMQ

MAX_ADDRESS_CHARS = 500
MAX_METHODS = 1_000
MAX_PLACES = 1_000_000
METHODS = ("ping", "register", "report_status")


class Registrar:
    """Answers handlers on a ROUTER socket.

    Args:
        runner: Has the store.
        log: Where registrations are reported.
        curve: Keys; without them the wire is plain.
    """

    def __init__(
        self, runner: Runner, log: FilteringBoundLogger, *, curve: CurveServerSource | None = None
    ) -> None:
        self._runner = runner
        self._log, self._seldom = log, Seldom(runner.clock)
        self._server = ZeroMQ(server_keys=curve).serve(
            self._on_message, report=Reporter(log, runner.clock)
        )
        self._waiting = Waiting(self._server.send, runner.clock)
        self._tasks: set[asyncio.Task[None]] = set()

    def bind(self, address: Address) -> Address:
        """Listen, and return the address with its port."""
        return self._server.bind(address)

    async def close(self) -> None:
        """Stop listening; what is being answered is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._server.unbind()

    def _on_message(self, envelope: Envelope, payload: bytes) -> None:
        waiter = None
        refusal = f"{MAX_WAITING} requests of this peer are being answered: ask again"
        if len(payload) > MAX_CALL_BYTES:
            refusal = f"a request has at most {MAX_CALL_BYTES} bytes"
        else:
            waiter = self._waiting.enter(envelope[0], envelope)
        if waiter is None:
            self._server.send(envelope, orjson.dumps({"success": False, "error": refusal}))
            return
        task = asyncio.create_task(self._answer(waiter, payload), name="scheduler-registrar")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda task: self._waiting.leave(waiter))

    async def _answer(self, waiter: Waiter, payload: bytes) -> None:
        try:
            method, params = read_request(payload)
            if method == "ping":
                reply: JsonObject = {"success": True, "message": "pong"}
            elif method == "register":
                reply = await self.register(params)
            else:
                reply = await self.report_status(params)
        except (ValueError, SQLAlchemyError, CatalogZeroError) as error:
            reply = {"success": False, "error": one_line_ascii(str(error))}
            if isinstance(error, HandlerIdTakenError):
                reply |= {"code": error.code, "retryable": error.retryable}
        self._waiting.answer(waiter, orjson.dumps(reply))

    async def register(self, params: JsonObject) -> JsonObject:
        """Remember where a handler is and what it does.

        Raises:
            ValueError: A parameter is missing or wrong.
            HandlerIdTakenError: Another host answers under its handler_id.
            LostRaceError: Another one registered meanwhile.
        """
        handler_id = name_of(params, "handler_id", MAX_ID_CHARS)
        address = name_of(params, "address", MAX_ADDRESS_CHARS)
        is_plain = params.get("boot_id") is None
        boot_id = "" if is_plain else name_of(params, "boot_id", MAX_BOOT_ID_CHARS)
        instance = None if is_plain else instance_in(params, address, boot_id)
        try:
            transport_for(Address.parse(address))  # which may need more than is installed here
        except ConfigError as error:
            raise ValueError(f"'address': {error}") from None
        methods = params.get("methods") or []
        if not isinstance(methods, list) or not all(isinstance(name, str) for name in methods):
            raise ValueError("'methods' must be a list of names")
        if len(methods) > MAX_METHODS:
            raise ValueError(f"'methods' has more than {MAX_METHODS} names")
        store, named = self._runner.store, {"handler_id": handler_id, "address": address}
        if instance is not None:
            named["instance_id"] = instance.instance_id
        replaces = None if is_plain else await self._replaced_by(named, boot_id)
        new = await self._runner.write(
            store.register,
            handler_id,
            address,
            methods,
            replaces=replaces,
            anyone=is_plain,
            instance=instance,
        )
        self._runner.handler_seen(handler_id, instance.instance_id if instance else "")
        self._seldom.over(handler_id)
        status = "registered" if new else "re-registered"
        if replaces is None:
            self._log.info(f"handler_{status}", **named)
        else:
            self._log.info("handler_taken_over", **named, from_address=replaces.address)
        message = f"Handler '{handler_id}' {status} successfully"
        return {"success": True, **named, "status": status, "methods": methods, "message": message}

    async def _replaced_by(
        self, named: Mapping[str, str], boot_id: str
    ) -> KnownHandler | KnownInstance | None:
        """The one at another address whose place a handler takes, as it does not answer there.

        An instance takes the place of the one of its name, or of a handler that was alone; a
        handler that is alone that of all instances.

        Raises:
            HandlerIdTakenError: One of them does.
        """
        handler_id, instance_id = named["handler_id"], named.get("instance_id")
        known = await self._runner.read(self._runner.store.find_handler, handler_id)
        if known is None:
            return None
        holders: list[KnownHandler | KnownInstance] = [*known.instances] or [known]
        if instance_id and known.instances:
            holders = [one for one in known.instances if one.instance_id == instance_id]
        replaced = None
        for one in holders:
            if one.address == named["address"]:
                continue
            replaced = one if instance_id else known
            if not await self._runner.links.to(one).is_held(handler_id, boot_id):
                continue
            if times := self._seldom.is_due(handler_id):
                self._log.warning("handler_refused", **named, held_by=one.address, times=times)
            among = f", instance '{one.instance_id}'," if one.instance_id else ""
            fix = "give this one a handler_id of its own"
            if instance_id:
                fix = "give this one an instance_id of its own"
                if not one.instance_id:
                    fix = "have that one share its calls: give it an instance_id too"
            raise HandlerIdTakenError(
                f"another host is registered as '{handler_id}'{among} and answers at "
                f"{one.address}: stop that one, or {fix}"
            )
        return replaced

    async def report_status(self, params: JsonObject) -> JsonObject:
        """Note that a handler is online or offline.

        One that says its address hears that it is not registered where another took its place.

        Raises:
            ValueError: It does not say which one it is.
        """
        handler_id = name_of(params, "handler_id", MAX_ID_CHARS)
        status = "offline" if params.get("status") == "offline" else "online"
        address, instance_id = params.get("address"), params.get("instance_id") or ""
        if address is not None:
            address = name_of(params, "address", MAX_ADDRESS_CHARS)
        if instance_id:
            instance_id = name_of(params, "instance_id", MAX_ID_CHARS)
        report = self._runner.store.report
        known = await self._runner.write(report, handler_id, status, address, instance_id)
        if not known:
            return {"success": False, "error": "Handler not registered"}
        return {"success": True, "handler_id": handler_id, "status": params.get("status")}


def read_request(payload: bytes) -> tuple[str, JsonObject]:
    """The method and the parameters of a request.

    Raises:
        ValueError: It is no request, or one for another method.
    """
    try:
        request = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise ValueError("Invalid JSON") from None
    if not isinstance(request, dict):
        raise ValueError("a request is one JSON object")
    params, name = request.get("params") or {}, request.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"Unknown method: {name if isinstance(name, str) else '(no name)'}")
    if not isinstance(params, dict):
        raise ValueError("'params' must be an object")
    return name, params


def instance_in(params: JsonObject, address: str, boot_id: str) -> KnownInstance | None:
    """What a registration says of itself as one of several instances; None where it is alone.

    Raises:
        ValueError: A parameter is wrong.
    """
    if params.get("instance_id") is None:
        return None
    places = params.get("places", 1)
    if type(places) is not int or not 0 < places <= MAX_PLACES:
        raise ValueError(f"'places' must be a whole number from 1 to {MAX_PLACES:,}")
    return KnownInstance(
        handler_id=name_of(params, "handler_id", MAX_ID_CHARS),
        instance_id=name_of(params, "instance_id", MAX_ID_CHARS),
        address=address,
        boot_id=boot_id,
        status="online",
        seen_us=0,
        places=places,
    )


def name_of(params: JsonObject, name: str, longest: int) -> str:
    """A parameter that must be a printable name."""
    value = params.get(name)
    if not isinstance(value, str) or not value or len(value) > longest or not value.isprintable():
        raise ValueError(f"'{name}' must be 1 to {longest} printable characters")
    return value
