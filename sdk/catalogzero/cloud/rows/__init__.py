"""Rows: what a batch and a value are in memory, in Arrow and as text.

A value is never cut, rounded or turned into another kind; where it has no form, it is refused.
"""
