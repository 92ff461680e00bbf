"""Reading: from what a call names to batches of records, of files, queries and own sources.

`items` says what a source is and what one pass over it gives; nothing here knows what becomes of
the records.
"""
