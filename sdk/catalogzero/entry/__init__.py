"""What makes a package an entry of a catalog."""
