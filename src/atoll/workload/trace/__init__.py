"""Interface: requests as they were: published traces read by the names of their columns, and our own format."""
