"""The embedded scheduler, speaking ScheduleZero's protocols.

It owns schedules, their triggers, and the executions that it records, in SQLite or PostgreSQL;
it calls handlers as any client does. It never judges whether a run began: the handler alone
knows, and it never runs a method itself.
"""
