"""What an answer starts from: cluster, workload, routing statistics, texts, the problem they make."""
