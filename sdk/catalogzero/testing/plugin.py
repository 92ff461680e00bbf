"""The pytest plugin of `catalogzero.testing`: loaded by pytest in every environment that has it.

Layer: edge.
"""
