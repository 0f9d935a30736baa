"""Guards taken out one at a time, each with the tests that must then fail."""
