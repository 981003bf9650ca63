"""Analysis: from records to numbers, intervals and verdicts."""
