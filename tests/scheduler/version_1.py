"""A scheduler's database as the first version of its schema made it, with rows in it."""

from __future__ import annotations

import sqlalchemy as sa

SEQ = {
    "sqlite": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGSERIAL PRIMARY KEY",
}

TABLES = """
CREATE TABLE scheduler_version (id INTEGER NOT NULL PRIMARY KEY, version INTEGER NOT NULL);
CREATE TABLE scheduler_handlers (
    handler_id VARCHAR(200) NOT NULL PRIMARY KEY, address VARCHAR(500) NOT NULL,
    methods TEXT NOT NULL, status VARCHAR(10) NOT NULL, seen_us BIGINT NOT NULL);
CREATE TABLE scheduler_schedules (
    schedule_id VARCHAR(36) NOT NULL PRIMARY KEY, job_id VARCHAR(200) NOT NULL UNIQUE,
    handler_id VARCHAR(200) NOT NULL, method VARCHAR(200) NOT NULL, params TEXT NOT NULL,
    trigger_config TEXT NOT NULL, overlap VARCHAR(10) NOT NULL, misfire_grace_s FLOAT,
    max_attempts INTEGER NOT NULL, timeout_s FLOAT, jitter_s FLOAT NOT NULL, max_runs BIGINT,
    end_us BIGINT, paused BOOLEAN NOT NULL, runs BIGINT NOT NULL, created_us BIGINT NOT NULL,
    tick_us BIGINT, due_us BIGINT, folded VARCHAR(50));
CREATE INDEX scheduler_schedules_due ON scheduler_schedules (paused, due_us);
CREATE INDEX scheduler_schedules_folded ON scheduler_schedules (folded)
    WHERE folded IS NOT NULL;
CREATE TABLE scheduler_executions (
    seq {seq}, execution_id VARCHAR(36) NOT NULL UNIQUE, schedule_id VARCHAR(36),
    tick_us BIGINT, job_id VARCHAR(200) NOT NULL, handler_id VARCHAR(200) NOT NULL,
    method VARCHAR(200) NOT NULL, params TEXT NOT NULL, status VARCHAR(10) NOT NULL,
    late BOOLEAN NOT NULL, misfire_grace_s FLOAT, timeout_s FLOAT,
    max_attempts INTEGER NOT NULL, attempt INTEGER NOT NULL, n INTEGER NOT NULL,
    boot_id VARCHAR(200), start_by_s FLOAT, retry_safe BOOLEAN, owner VARCHAR(36),
    lease INTEGER NOT NULL, lease_until_us BIGINT, created_us BIGINT NOT NULL,
    started_us BIGINT, sent_us BIGINT, completed_us BIGINT, last_tick_us BIGINT,
    ticks BIGINT NOT NULL, result TEXT, error TEXT, idempotency_key VARCHAR(200) UNIQUE,
    request_digest VARCHAR(64),
    CONSTRAINT scheduler_executions_tick UNIQUE (schedule_id, tick_us));
CREATE INDEX scheduler_executions_handler ON scheduler_executions (handler_id, seq);
CREATE INDEX scheduler_executions_job ON scheduler_executions (job_id, seq);
CREATE INDEX scheduler_executions_open ON scheduler_executions (schedule_id, status)
    WHERE status IN ('running', 'retry', 'queued');
CREATE INDEX scheduler_executions_status ON scheduler_executions (status, seq);
INSERT INTO scheduler_version (id, version) VALUES (1, 1);
INSERT INTO scheduler_schedules (schedule_id, job_id, handler_id, method, params,
    trigger_config, overlap, max_attempts, jitter_s, paused, runs, created_us, tick_us, due_us)
VALUES ('s', 'kept', 'h0', 'm', '{{}}',
    '{{"type":"interval","seconds":1,"start_time":"1970-01-01T00:00:00+00:00"}}', 'skip', 3, 0,
    false, {count}, 0, {next_us}, {next_us})
"""

EXECUTIONS = """
INSERT INTO scheduler_executions (execution_id, schedule_id, tick_us, job_id, handler_id, method,
    params, status, late, max_attempts, attempt, n, lease, lease_until_us, owner, created_us,
    started_us, sent_us, completed_us, last_tick_us, ticks)
WITH RECURSIVE n(i) AS (SELECT CAST(1 AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < {count}),
ended AS (SELECT i, CASE WHEN i % 1000 = 1 THEN 'error' WHEN i % 1000 = 2 THEN 'lost'
    WHEN i % 1000 = 3 THEN 'missed' WHEN i % 1000 = 4 THEN 'skipped' WHEN i = {count}
    THEN 'running' ELSE 'success' END AS status FROM n)
SELECT 'e' || i, 's', i * 1000000, 'kept', 'h' || (i % 3), 'm' || (i % 7), '{{}}', status, false, 3,
    1, 1, 1, CASE WHEN status = 'running' THEN 0 END, CASE WHEN status = 'running' THEN 'gone' END,
    i * 1000000, CASE WHEN status <> 'skipped' THEN i * 1000000 END, NULL,
    CASE WHEN status <> 'running' THEN i * 1000000 + 500000 END, i * 1000000, 1
FROM ended ORDER BY i
"""


def make(url: str, count: int) -> None:
    """Make it at a URL: one schedule, and a number of executions, a second apart since 1970.

    Of each thousand four are `error`, `lost`, `missed` (its handler was away) and `skipped`; the
    last is open.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    script = TABLES.format(
        seq=SEQ[parsed.get_backend_name()], count=count, next_us=(count + 1) * 1_000_000
    )
    with engine.begin() as c:
        for statement in (*script.split(";"), EXECUTIONS.format(count=count)):
            c.exec_driver_sql(
                statement.replace("%", "%%") if c.dialect.name != "sqlite" else statement
            )
    if parsed.get_backend_name() == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.exec_driver_sql("VACUUM ANALYZE scheduler_executions")
