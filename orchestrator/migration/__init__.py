"""Experts follow the traffic while a run goes on: what is asked for lately, whether to move, and the move."""
