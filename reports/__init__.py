"""Reports: read records, never torch."""
