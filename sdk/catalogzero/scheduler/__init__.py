"""The embedded scheduler, speaking ScheduleZero's protocols."""
