"""The machine's own figures: processor, memory and disk, with the keys that clients know.

Layer: catalog entry, imports nothing of catalogzero.
"""

from __future__ import annotations

from datetime import datetime

import psutil

from conductorzero.fleet import JsonObject

MB = 1024**2
GB = 1024**3
CPU_SAMPLE_S = 1.0


def read_system(now: datetime) -> JsonObject:
    """Processor use over one second, memory and disk; blocks that long: call it in a thread."""
    cpu_percent = psutil.cpu_percent(interval=CPU_SAMPLE_S)
    memory = psutil.virtual_memory()
    disk = psutil.disk_usage("/")
    return {
        "cpu_percent": cpu_percent,
        "memory": {
            **{f"{name}_mb": getattr(memory, name) / MB for name in ("total", "available", "used")},
            "percent": memory.percent,
        },
        "disk": {
            **{f"{name}_gb": getattr(disk, name) / GB for name in ("total", "free", "used")},
            "percent": disk.percent,
        },
        "timestamp": now.isoformat(),
    }
