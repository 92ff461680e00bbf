"""Singer taps as sources: a tap runs as a child process, and what it says becomes rows.

The protocol is that of the Singer specification: SCHEMA, RECORD, STATE and ACTIVATE_VERSION on
standard output, a catalog and a state as files. Nothing here knows what becomes of the rows.
"""
