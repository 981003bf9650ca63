"""Figures of steps that need more than counts: the stop head's calibration, and acceptance by place in the draft."""
