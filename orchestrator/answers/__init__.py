"""The model's manners: its text taken apart, old turns cleaned, reasoning bounded, loops found."""
