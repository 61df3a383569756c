"""Several streams of passes at once, event by event: they wait for each other where they meet."""
