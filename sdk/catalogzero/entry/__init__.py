"""What makes a package an entry of a catalog: scaffold, manifest, rules, index, installation.

It owns the manifest and its rules, the static index that `catalog build` writes, and what a
client's `catalog install` does. It never imports an entry's package to read its manifest, and
never serves a handler.
"""
