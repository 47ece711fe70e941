"""Fuzzing: damaged files of every kind that the program reads, at random and guided by the lines that they reach."""
