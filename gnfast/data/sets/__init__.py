"""The data sets with a name: a file for each format, whose list SETS says which data sets have it."""
