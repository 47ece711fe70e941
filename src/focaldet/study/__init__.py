"""What the papers print, and the demonstration on the embedded data."""
