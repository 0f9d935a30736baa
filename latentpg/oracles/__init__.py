"""Exact answers: finite sums and linear solves against which every estimator is held."""
