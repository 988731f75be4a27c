"""Replicas: models that answer units, where they are placed and how they start."""
