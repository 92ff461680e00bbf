"""Schedule the conductor's methods over the scheduler's HTTP.

A ScheduleZero server takes the same bodies with `job_method` for `method_name`, and with
`job_params` (`{}` here) beside it.
"""

import requests

# Collect metrics every 5 minutes
response = requests.post("http://localhost:8888/api/schedule", json={
    "handler_id": "conductor",
    "method_name": "collect_metrics",
    "trigger": {
        "type": "interval",
        "minutes": 5
    },
    "job_id": "metrics_collection"
})

# Health check every minute
response = requests.post("http://localhost:8888/api/schedule", json={
    "handler_id": "conductor",
    "method_name": "health_check",
    "trigger": {
        "type": "interval",
        "minutes": 1
    },
    "job_id": "health_monitor"
})

# System metrics every 10 minutes
response = requests.post("http://localhost:8888/api/schedule", json={
    "handler_id": "conductor",
    "method_name": "get_system_metrics",
    "trigger": {
        "type": "interval",
        "minutes": 10
    },
    "job_id": "system_metrics"
})
