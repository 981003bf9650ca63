"""Arrays in, intervals and p-values out: what samples tell, whatever they are samples of."""
