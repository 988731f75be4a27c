"""What a job tells of itself while it runs: times of replicas, sums of measures, metrics for Prometheus."""
