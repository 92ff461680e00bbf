"""What a vendor's package looks like to the registry file beside it."""
