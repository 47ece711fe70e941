"""Writing a data set in another format."""
