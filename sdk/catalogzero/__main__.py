"""`python -m catalogzero`: the same as the `catalogzero` command."""

from catalogzero.cli.main import main

main()
