"""Many plans at once: a grid of policies, clusters, models' quantisations, batches, contexts and traces."""
