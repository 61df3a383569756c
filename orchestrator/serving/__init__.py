"""Many requests at once: what every API asks of the model, and what it gets back."""
