"""astrofed: federated learning for astrobiology."""
