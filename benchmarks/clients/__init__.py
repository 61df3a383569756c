"""Other people's clients against a server."""
