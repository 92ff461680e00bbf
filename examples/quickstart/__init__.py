"""The whole way on real data: vendor, client and backend on this machine, as real processes."""
