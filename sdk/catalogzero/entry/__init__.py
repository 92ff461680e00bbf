"""What makes a package an entry of a catalog: its scaffold, manifest, rules, index, installation.

Layer: edge.
"""
