"""Training of potluck-tiny, the small Step-3.5-architecture model that Potluck ships."""
