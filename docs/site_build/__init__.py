"""Builds the documentation's site: `python -m docs.site_build [FOLDER]`."""
