"""Who computes a layer's experts: the cluster as one view, a layer's sum, and the sockets around it."""
