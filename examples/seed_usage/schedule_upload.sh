#!/bin/sh
# Via ScheduleZero API or portal
curl -X POST http://localhost:8888/api/schedule \
  -H "Content-Type: application/json" \
  -d '{
    "handler_id": "cloud_processor",
    "method_name": "process_and_upload",
    "params": {"data_source": "/data/exports"},
    "trigger": {"type": "cron", "hour": 2, "minute": 0}
  }'
