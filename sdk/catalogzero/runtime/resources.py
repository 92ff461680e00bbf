"""`@resource`: what a handler opens on first use and closes when it falls asleep."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Generic, Self, TypeVar, cast, overload

ValueT = TypeVar("ValueT")


def is_stop(error: BaseException) -> bool:
    """Whether an exception ends the running task itself, and is not raised by an author."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        task = None
    if isinstance(error, GeneratorExit):
        return task is None  # a task that the loop left behind is closed by nobody's step
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


class resource(Generic[ValueT]):
    """An async-generator method that yields one value, as a pytest fixture does.

    `await self.pool()` opens it the first time and gives the same value until the handler
    falls asleep; what stands after the `yield` closes it.
    """

    def __init__(self, function: Callable[[Any], AsyncIterator[ValueT]]) -> None:
        self.open = cast("Callable[[Any], AsyncGenerator[ValueT, None]]", function)
        self.__doc__ = function.__doc__
        self.name = function.__name__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> Callable[[], Awaitable[ValueT]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self

        async def get() -> ValueT:
            resources: Resources = instance._as_handler()._resources
            return await resources.get(self, instance)

        return get


class Resources:
    """The open resources of one handler."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[AsyncGenerator[Any, None], Any]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, wanted: resource[ValueT], owner: object) -> ValueT:
        """The value of a resource, opened now if it is closed; one may use another."""
        # Two runs may want it at once; and opening one may get another, so each has its own lock.
        if wanted.name not in self._open:
            async with self._turns[wanted.name]:
                if wanted.name not in self._open:
                    generator = wanted.open(owner)
                    self._open[wanted.name] = generator, await anext(generator)
        return cast(ValueT, self._open[wanted.name][1])

    async def close(self) -> None:
        """Close all, the last opened first; all are closed even when one fails.

        Raises:
            BaseExceptionGroup: What the closings raised.
        """
        faults: list[BaseException] = []
        while self._open:
            name, (generator, _) = self._open.popitem()
            try:
                await finish(generator, name)
            except BaseException as error:
                if is_stop(error):
                    raise
                faults.append(error)
        if faults:
            raise BaseExceptionGroup("resources did not close", faults)


async def finish(generator: AsyncGenerator[Any, None], name: str) -> None:
    """Run what stands after the `yield` of a resource.

    Raises:
        RuntimeError: There is a second one.
    """
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise RuntimeError(f"resource {name} yields more than once")
