"""Lets the tests of training import what they share."""
