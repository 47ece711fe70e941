"""Charts and pages: every HTML page that the program writes."""
