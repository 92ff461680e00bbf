"""Handlers in the shape in which the product was first drawn: only their imports are ours."""

import asyncio
import gc
from datetime import datetime
from typing import Any, Dict, List, Optional

import psutil
import zmq
import zmq.asyncio
from catalogzero.compat import ZMQHandlerBase


class Pool:
    """A database pool that counts."""

    opened = 0

    def __init__(self) -> None:
        type(self).opened += 1
        self.closed = False

    async def close(self) -> None:
        """Close it."""
        self.closed = True


async def create_db_pool() -> Pool:
    """Open one."""
    await asyncio.sleep(0)
    return Pool()


class SmartHandler(ZMQHandlerBase):
    """Handler that self-manages resource consumption."""

    def __init__(self):
        super().__init__()
        self.idle_since = None
        self.sleep_mode = False
        self.cache = {}
        self.db_pool = None
        self.warmed = 0

    async def lookup(self, key: str) -> Dict[str, Any]:
        """A job that needs pool and cache."""
        if self.db_pool is None:
            self.db_pool = await create_db_pool()
        self.cache.setdefault(key, f"row of {key}")
        return {"row": self.cache[key], "pool_open": not self.db_pool.closed}

    async def _release_resources(self):
        """Release expensive resources while idle."""
        if hasattr(self, "db_pool"):
            await self.db_pool.close()
            self.db_pool = None
        if hasattr(self, "cache"):
            self.cache.clear()
        gc.collect()
        self.logger.info("Resources released", mode="sleep")

    async def _ensure_resources(self):
        """Restore resources when needed."""
        if self.sleep_mode:
            self.logger.info("Waking from sleep mode")
            self.sleep_mode = False
            if not self.db_pool:
                self.db_pool = await create_db_pool()
            await self._warm_cache()

    async def _warm_cache(self):
        self.warmed += 1
        self.cache["warm"] = "row of warm"


class ConductorZero(ZMQHandlerBase):
    """Lightweight orchestration handler."""

    def __init__(self, handler_registry: Dict[str, int]):
        super().__init__()
        self.handler_registry = handler_registry
        self.zmq_client_ctx = zmq.asyncio.Context()

    async def ping_handler(self, handler_id: str) -> Dict:
        """Ping a handler to check if it's alive."""
        port = self.handler_registry.get(handler_id)
        if not port:
            return {"alive": False, "error": f"Unknown handler: {handler_id}"}
        answer = await self._ask(port, "ping", f"conductor_ping_{handler_id}")
        if answer is None:
            return {"alive": False, "error": "Timeout"}
        return {
            "alive": True,
            "handler_id": handler_id,
            "response_time_ms": answer.get("duration_ms", 0),
        }

    async def collect_metrics(self, handler_ids: Optional[List[str]] = None) -> Dict:
        """Collect resource metrics from handlers."""
        if handler_ids is None:
            handler_ids = list(self.handler_registry.keys())
        metrics = {}
        for handler_id in handler_ids:
            port = self.handler_registry.get(handler_id)
            answer = await self._ask(port, "get_metrics", f"conductor_metrics_{handler_id}")
            metrics[handler_id] = answer["result"] if answer else {"error": "Timeout"}
        alive = [m for m in metrics.values() if "error" not in m]
        return {
            "handlers": metrics,
            "summary": {
                "total_handlers": len(handler_ids),
                "alive_handlers": len(alive),
                "total_memory_mb": sum(m.get("memory_mb", 0) for m in alive),
                "timestamp": datetime.now().isoformat(),
            },
        }

    async def get_metrics(self) -> Dict:
        """The conductor's own metrics: a few figures, and none of the runtime's."""
        process = psutil.Process()
        since = datetime.now() - self.start_time
        return {"threads_of_mine": process.num_threads(), "up_s": since.total_seconds()}

    async def _ask(self, port: int, method: str, request_id: str) -> Optional[Dict]:
        socket = self.zmq_client_ctx.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"tcp://localhost:{port}")
        try:
            await socket.send_json({"method": method, "params": {}, "request_id": request_id})
            if await socket.poll(timeout=5000):
                return await socket.recv_json()
            return None
        finally:
            socket.close()
