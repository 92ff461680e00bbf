"""`python -m catalogzero`: the same as the `catalogzero` command.

Layer: edge.
"""

from catalogzero.cli.main import main

main()
