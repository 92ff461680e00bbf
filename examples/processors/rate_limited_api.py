"""An HTTP API with pages and a rate limit; a run that is killed goes on at its last page."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import httpx
from catalogzero import Checkpoint, CloudProcessor, Params, Rows
from tenacity import RetryCallState, retry, retry_if_exception_type, stop_after_attempt


class ApiError(Exception):
    """An answer that may be another one later."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"{answer.url.path}: {answer.status_code}")
        self.after_s = float(answer.headers.get("Retry-After", "1"))


def asked_for(state: RetryCallState) -> float:
    """As long as the API asks for; a second after any other fault."""
    failed = state.outcome.exception() if state.outcome else None
    return failed.after_s if isinstance(failed, ApiError) else 1.0


class RateLimitedApi(CloudProcessor):
    """Sends the orders of an API, page by page."""

    stream = "api_orders"
    mode = "append"

    def read(
        self, data_source: str, params: Params, after: int | None = None
    ) -> Generator[Rows | Checkpoint, None, int]:
        """The pages behind the last one."""
        page = after or 0
        with httpx.Client(base_url=data_source, timeout=30) as api:
            while rows := self._page(api, page + 1):
                yield rows
                page += 1
                yield Checkpoint(page)
        return page

    @retry(
        wait=asked_for,
        stop=stop_after_attempt(8),
        retry=retry_if_exception_type((ApiError, httpx.TransportError)),
        reraise=True,
    )
    def _page(self, api: httpx.Client, number: int) -> Rows:
        answer = api.get("/orders", params={"page": number})
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            raise ApiError(answer)
        rows: Rows = answer.raise_for_status().json()
        return rows

    def process(self, batches: Iterable[Rows], params: Params) -> Iterator[Rows]:
        """The rows as they are."""
        yield from batches
