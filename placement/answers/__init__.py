"""What a user asks: a plan, a prediction, advice, a better plan, what if, a study."""
