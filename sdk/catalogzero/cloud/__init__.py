"""The data's way: source, process, outbox, sender."""
