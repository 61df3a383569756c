"""What routing statistics tell: how experts go together, how text drifts, what to plan with."""
