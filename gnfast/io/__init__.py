"""Files that others made, read without trust; files that outlive a kill."""
