"""The machine's own figures: processor, memory and disk, with the keys that clients know.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import psutil

MB = 1024**2
GB = 1024**3
CPU_SAMPLE_S = 1.0


def read_system(now: datetime) -> dict[str, Any]:
    """Processor use over one second, memory and disk; blocks that long: call it in a thread."""
    cpu_percent = psutil.cpu_percent(interval=CPU_SAMPLE_S)
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage("/")
    return {
        "cpu_percent": cpu_percent,
        "memory": {
            "total_mb": memory.total / MB,
            "available_mb": memory.available / MB,
            "used_mb": memory.used / MB,
            "percent": memory.percent,
        },
        "disk": {
            "total_gb": disk.total / GB,
            "free_gb": disk.free / GB,
            "used_gb": disk.used / GB,
            "percent": disk.percent,
        },
        "timestamp": now.isoformat(),
    }
