"""The embedded data set: handwritten digits on photographs."""
