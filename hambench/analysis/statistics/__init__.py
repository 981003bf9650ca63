"""Statistics from arrays to intervals and p-values, independent of what the samples are."""
