"""A tiny random model, and commands to try it with, for every layer of tests."""
