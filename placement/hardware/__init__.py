"""The catalogue: devices and links that people ask about, by data sheet and by what they reach."""
