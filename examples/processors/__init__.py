"""Four processors of the kinds that most are of; `docs/compare.md` counts their lines."""
