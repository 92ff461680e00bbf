"""Whether a vendor's own backend, in any language, speaks the upload protocol."""
