"""Forecasting: what a job will be like, from some of its rows, before it is run. Imports nothing."""
