"""The command line: each command parses, calls one function, prints, and ends with its code.

It owns words on a terminal, tables, `--json` and exit codes. It never holds a rule that another
user of the product needs too: such a rule belongs to the wing that it is about.
"""
