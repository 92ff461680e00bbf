"""Cloud processors in the first drawing's form: only their imports are ours."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Dict

import aiohttp
from catalogzero.compat import CloudProcessorHandler, ZMQHandlerBase


class AcmeHandler(CloudProcessorHandler):
    """Reads its own source, and processes it."""

    def __init__(self, api_key: str, endpoint: str):
        super().__init__(api_key, endpoint)
        self.session = None

    async def _read_data(self, data_source: str):
        if self.session is None:
            self.session = aiohttp.ClientSession()
        return Path(data_source).read_text()

    async def _process(self, data: str, params: Dict):
        assert self.session is not None
        factor = params.get("factor", 1)
        return [{"n": factor * int(line)} for line in data.split()]


class FileHandler(CloudProcessorHandler):
    """Processes the records of files."""

    output_version = 2

    def __init__(self, api_key: str, endpoint: str):
        super().__init__(api_key, endpoint)

    async def _process(self, data, params):
        return {"total": sum(int(row["n"]) for row in data)}


class WrappingHandler(AcmeHandler):
    """Extends the job itself."""

    async def process_and_upload(self, data_source: str, params: Dict) -> Dict:
        result = await super().process_and_upload(data_source, params)
        return {**result, "wrapped": True}

    def shape(self, params) -> str:
        """A job of the old kind beside it."""
        return "old"


class WrongHandler(AcmeHandler):
    """Returns no records."""

    def _process(self, data, params):
        return "text"


class DrawnHandler(ZMQHandlerBase):
    """The drawing itself: it reads, processes and posts on its own."""

    def __init__(self, api_key: str, endpoint: str):
        super().__init__()
        self.api_key = api_key
        self.endpoint = endpoint

    async def process_and_upload(self, data_source: str, params: Dict) -> Dict:
        """Read, process and post."""
        data = await self._read_data(data_source)
        processed = await self._process(data, params)
        headers = {"Authorization": f"Bearer {self.api_key}"}
        async with aiohttp.ClientSession() as session:
            async with session.post(self.endpoint, json=processed, headers=headers) as response:
                result = await response.json()
        return {
            "status": "uploaded",
            "records": len(processed),
            "cloud_job_id": result.get("job_id"),
            "timestamp": datetime.now().isoformat(),
        }

    async def health_report(self) -> Dict:
        """Post the metrics."""
        metrics = await self.get_metrics()
        body: Dict[str, Any] = {"client_id": self.api_key, "metrics": metrics}
        headers = {"Authorization": f"Bearer {self.api_key}"}
        async with aiohttp.ClientSession() as session:
            await session.post(f"{self.endpoint}/health", json=body, headers=headers)
        return {"status": "reported", "metrics": metrics}

    async def _read_data(self, data_source: str):
        return json.loads(Path(data_source).read_text())

    async def _process(self, data, params: Dict):
        return [{**row, "format": params["format"]} for row in data]
