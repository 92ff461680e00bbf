"""Read the newest metrics from the scheduler's execution log."""

import requests

# Get latest metrics
response = requests.get("http://localhost:8888/api/executions", params={
    "handler_id": "conductor",
    "limit": 1
})

metrics = response.json()["records"][0]["result"]
print(f"Total memory: {metrics['summary']['total_memory_mb']} MB")
print(f"Alive handlers: {metrics['summary']['alive_handlers']}")
